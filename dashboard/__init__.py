"""The dashboard: a Streamlit application that only reads."""
