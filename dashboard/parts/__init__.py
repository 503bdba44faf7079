"""The feature view: one Streamlit component that draws a feature, moves between features and takes labels.

It is drawn in the browser from JSON with createElement, textContent and SVG alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["feature_view"]

FOLDER = Path(__file__).parent
SCRIPTS = ("elements.js", "card.js", "form.js", "feature_view.js")


def _read(*names: str) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


# registered once, at import: doing it again makes the browser load it again
_component = st.components.v2.component(
    "almanac.feature_view", html=_read("feature_view.html"), css=_read("feature_view.css"), js=_read(*SCRIPTS)
)


def feature_view(data: Mapping[str, Any], key: str, on_ask: Callable[[], None]) -> None:
    """Draw `data`. What the browser asks for lies in st.session_state[key]["ask"] while `on_ask` runs."""
    _component(data=dict(data), key=key, on_ask_change=on_ask)
