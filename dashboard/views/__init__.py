"""The dashboard's pages, one file each; `dashboard.app` names them.

The folder is not called `pages`: Streamlit runs the files of a folder of that name by itself, and
a link to a page would bypass `app.py` in a server that has just started.
"""
