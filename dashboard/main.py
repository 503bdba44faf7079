"""The pages, and the navigation between them. Streamlit runs this file from its first line at every interaction."""

import streamlit as st

from dashboard.errors import guarded
from dashboard.pages import pages

st.set_page_config(page_title="SAE Almanac", page_icon="📖", layout="wide")
guarded(st.navigation(list(pages().values()), position="top").run)
