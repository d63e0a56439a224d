"""The dashboard's entry point: navigation and nothing else.

`autopeft dashboard` starts it; see `dashboard.launch`.
"""

from pathlib import Path

import streamlit as st

# A file, as the icons that Streamlit knows by name are fetched from a server.
ICON = Path(__file__).with_name("icon.svg")

st.set_page_config(page_title="autopeft", page_icon=ICON, layout="wide")
st.navigation(
    [
        st.Page("views/studies.py", title="Studies", icon=":material/list:", default=True),
        st.Page("views/front.py", title="Front", icon=":material/scatter_plot:"),
        st.Page("views/trial.py", title="Trial", icon=":material/science:"),
        st.Page("views/progress.py", title="Progress", icon=":material/trending_up:"),
        st.Page("views/importance.py", title="Importance", icon=":material/grid_on:"),
        st.Page("views/explanations.py", title="Explanations", icon=":material/lightbulb:"),
    ],
    position="top",
).run()
