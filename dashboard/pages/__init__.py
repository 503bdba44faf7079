"""One module a page: a function `page` that draws it."""

import streamlit as st

from dashboard.pages import feature, features, overview, sql, training

__all__ = ["pages"]


def pages() -> dict[str, st.Page]:
    """Name -> page, in the order of the navigation. Streamlit makes pages only while a script runs."""
    return {
        "overview": st.Page(overview.page, title="Overview", url_path="overview", default=True),
        "features": st.Page(features.page, title="Features", url_path="features"),
        "feature": st.Page(feature.page, title="Feature", url_path="feature"),
        "training": st.Page(training.page, title="Training", url_path="training"),
        "sql": st.Page(sql.page, title="SQL", url_path="sql"),
    }
