"""The features of one SAE: filter, sort, search; a row opens its feature. The URL holds the state."""

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.filters import LABELLED, LOWEST_LOG10, SORTS, STATUSES, Filter
from dashboard.navigation import open_page
from dashboard.parts.text import md_escape, visible

__all__ = ["page", "table"]

MOST_ROWS = 5_000
SEEN_URL = "features_url"
DENSITIES = [LOWEST_LOG10, -5.0, -4.5, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, 0.0]


def page() -> None:
    """The filter row and the table."""
    known = list(data.sizes())
    if not known:
        st.header("No features yet", anchor=False)
        st.text("There is no SAE in this store. Make one with `almanac build RUN.toml`, or wait for the build to end.")
        return
    sae_id, chosen = _controls(known)
    rows = data.ask("browse_features", sae_id=sae_id, n=MOST_ROWS, **chosen.parameters).to_pandas()
    n_found = int(rows["n_found"].iloc[0]) if len(rows) else 0
    st.caption(_summary(n_found, data.n_features(sae_id)))
    if not n_found:
        return
    shown = st.dataframe(
        table(rows),
        hide_index=True,
        height=min(38 + 35 * len(rows), 560),
        on_select="rerun",
        selection_mode="single-cell",
        placeholder="",
        column_config=COLUMNS,
        key=f"features {data.version()} {sae_id} {chosen}",  # another content is another table: no stale selection
    )
    selected = shown["selection"]["cells"]
    if selected:
        feature = int(rows["feature"].iloc[selected[0][0]])
        open_page("feature", {"sae": sae_id, "feature": str(feature), **chosen.changed})


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """What is shown of the rows: texts made visible."""
    return pd.DataFrame(
        {
            "feature": rows["feature"],
            "name": [visible(name) if isinstance(name, str) else "" for name in rows["name"]],
            "by": rows["name_source"].replace({"human": "person"}),
            "status": rows["status"],
            "density": rows["density"] * 100,
            "activations": rows["act_quantiles"],
            "act_max": rows["act_max"],
            "top_token": [visible(token) if isinstance(token, str) else "" for token in rows["top_token"]],
            "promoted": [[visible(t) for t in tokens] if tokens is not None else [] for tokens in rows["promoted"]],
            "reconstructive": rows["reconstructive"] * 100,
            "token_entropy": rows["token_entropy"],
            "safety": rows["safety"],
            "tags": [[visible(tag) for tag in tags] if tags is not None else [] for tags in rows["tags"]],
        }
    )


def _controls(known: list[str]) -> tuple[str, Filter]:
    """The filter row, which follows the URL and is followed by it."""
    _follow_url(known)
    top = st.columns([4, 2, 3, 2, 2.4], vertical_alignment="bottom")
    bottom = st.columns([4, 1.7, 1.7, 6], vertical_alignment="bottom")
    given: dict[str, Any] = {
        "sae": top[0].selectbox("SAE", known, key=_key("sae")),
        "labelled": top[1].selectbox("Labels", LABELLED, index=None, placeholder="any", key=_key("labelled")),
        "q": top[2].text_input("Search", key=_key("q"), placeholder="in names, tags and tokens"),
        "token": top[3].text_input("Fires on token", key=_key("token")),
        "sort": top[4].selectbox("Sort by", list(SORTS), key=_key("sort")),
        "status": bottom[0].pills("Status", STATUSES, key=_key("status")),
    }
    for column, name, label in ((1, "low", "Density from"), (2, "high", "to")):
        given[name] = bottom[column].selectbox(label, DENSITIES, format_func=_density_text, key=_key(name))
    sae_id, chosen = str(given["sae"]), Filter.of(given)
    wanted = {"sae": sae_id, **chosen.changed}
    if dict(st.query_params) != wanted:
        st.query_params.from_dict(wanted)
    st.session_state[SEEN_URL] = wanted
    return sae_id, chosen


def _follow_url(known: list[str]) -> None:
    """At the first visit, and when somebody goes back or forward: the widgets take what the URL says."""
    url = dict(st.query_params)
    if st.session_state.get(SEEN_URL) == url and _key("sae") in st.session_state:
        return
    if url.get("sae", known[0]) not in known:
        data.n_features(url["sae"])  # says which SAEs there are
    chosen = Filter.of(url)
    values: dict[str, Any] = {
        **{name: min(DENSITIES, key=lambda density: abs(density - getattr(chosen, name))) for name in ("low", "high")},
        **{name: getattr(chosen, name) or "" for name in ("q", "token")},
        **{name: getattr(chosen, name) for name in ("labelled", "sort", "status")},
        "sae": url.get("sae", known[0]),
    }
    st.session_state.update({_key(name): value for name, value in values.items()})


def _key(name: str) -> str:
    return f"features_{name}"


def _density_text(log10: float) -> str:
    return "0" if log10 <= LOWEST_LOG10 else f"{100 * 10**log10:.3g} %"


def _summary(n_found: int, n_features: int) -> str:
    if not n_found:
        return "No feature fits. Loosen the filter."
    shown = "" if n_found <= MOST_ROWS else f", the first {MOST_ROWS:,} are shown"
    return md_escape(f"{n_found:,} of {n_features:,} features{shown}. Click a row to open it.")


COLUMNS = {
    "feature": st.column_config.NumberColumn("feature", format="%d", width=65, pinned=True),
    "name": st.column_config.TextColumn("name", width=195),
    "by": st.column_config.TextColumn("by", width=65, help="who gave the name"),
    "status": st.column_config.TextColumn("status", width=62),
    "density": st.column_config.NumberColumn("density", format="%.3g %%", width=80, help="share of tokens it fires on"),
    "activations": st.column_config.AreaChartColumn(
        "activations", width=85, y_min=0, help="quantiles of its non-zero activations, low to high"
    ),
    "act_max": st.column_config.NumberColumn("max", format="%.3g", width=60, help="largest activation"),
    "top_token": st.column_config.TextColumn("top token", width=85, help="the token it fires on most often"),
    "promoted": st.column_config.ListColumn("promotes", width=150, help="tokens whose logits it raises most"),
    "reconstructive": st.column_config.NumberColumn(
        "reconstr.", format="%.2g %%", width=80, help="share of the variance that is lost without it"
    ),
    "token_entropy": st.column_config.NumberColumn(
        "entropy", format="%.2f", width=65, help="nats, of the tokens it fires on; 0 = always the same token"
    ),
    "safety": st.column_config.NumberColumn("safety", format="%d", width=58),
    "tags": st.column_config.ListColumn("tags", width=100),
}
