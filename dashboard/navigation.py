"""Going from one page to another."""

from collections.abc import Mapping
from typing import NoReturn

import streamlit as st

__all__ = ["open_page"]


def open_page(name: str, query: Mapping[str, str]) -> NoReturn:
    """Show another page with this state in its URL."""
    from dashboard.pages import pages  # the pages import this module

    st.switch_page(pages()[name], query_params=dict(query))
