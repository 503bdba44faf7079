"""The components of the pages: the feature view, and the curves of training.

Both are drawn in the browser from JSON with createElement, textContent and SVG alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["feature_view", "training_view"]

FOLDER = Path(__file__).parent


def _read(*names: str) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


def _registered(name: str, *scripts: str) -> Any:
    html, css = _read(f"{name}.html"), _read(f"{name}.css")
    return st.components.v2.component(f"almanac.{name}", html=html, css=css, js=_read("elements.js", *scripts))


# registered once, at import: doing it again makes the browser load it again
_feature_view = _registered("feature_view", "card.js", "form.js", "feature_view.js")
_training_view = _registered("training_view", "scales.js", "panel.js", "runs.js", "training_view.js")


def feature_view(data: Mapping[str, Any], key: str, on_ask: Callable[[], None]) -> None:
    """Draw `data`. What the browser asks for lies in st.session_state[key]["ask"] while `on_ask` runs."""
    _feature_view(data=dict(data), key=key, on_ask_change=on_ask)


def training_view(data: Mapping[str, Any], key: str, on_ask: Callable[[], None]) -> None:
    """Draw the curves in `data`; asked is for other runs, in the same way."""
    _training_view(data=dict(data), key=key, on_ask_change=on_ask)
