"""A study: its definition (the study file), its records, and the Store protocol."""
