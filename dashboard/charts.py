"""Charts of the overview, as Vega-Lite written out: nothing of Altair to import or to validate."""

from typing import Any

import pandas as pd
import streamlit as st

__all__ = ["training_curves"]

HEIGHT = 300
MOST_POINTS = 400


def training_curves(points: pd.DataFrame, names: "pd.Series[str]", column: str, title: str, is_log: bool) -> None:
    """One line a name over the tokens seen."""
    drawn = pd.DataFrame({"name": names, "tokens": points["n_tokens"], "value": points[column]}).dropna()
    if is_log:
        drawn = drawn[drawn["value"] > 0]
    step = max(1, len(drawn) // (MOST_POINTS * max(1, drawn["name"].nunique())))
    st.vega_lite_chart({**_spec(title, is_log), "data": {"values": drawn.iloc[::step].to_dict("records")}})


def _spec(title: str, is_log: bool) -> dict[str, Any]:
    return {
        "height": HEIGHT,
        "mark": {"type": "line", "strokeWidth": 1.6, "interpolate": "linear"},
        "encoding": {
            "x": {"field": "tokens", "type": "quantitative", "title": "training tokens", "axis": {"format": "~s"}},
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": title,
                "scale": {"type": "log", "nice": False} if is_log else {"zero": True},
                "axis": {"format": "~g", "tickCount": 4},
            },
            "color": {
                "field": "name",
                "type": "nominal",
                "title": None,
                "legend": {"orient": "bottom", "columns": 1, "labelLimit": 480},
            },
            "tooltip": [
                {"field": "name", "type": "nominal"},
                {"field": "tokens", "type": "quantitative", "format": ",.0f"},
                {"field": "value", "type": "quantitative", "format": ".4g"},
            ],
        },
    }
