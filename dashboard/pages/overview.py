"""What is in the store: SAEs and how good they are, how they were trained, how far the labels are, what ran lately."""

from functools import partial

import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.building import Work, at_work
from dashboard.data import Row
from dashboard.errors import guarded
from dashboard.navigation import open_page
from dashboard.parts import training_view
from dashboard.parts.text import md_escape, visible
from dashboard.training import runs, view

__all__ = ["page"]

BUILDING_SECONDS = 3.0  # between two looks while a build runs
IDLE_SECONDS = 20.0
N_RUNS = 15
MOST_CURVES = 6
PANELS = ("fvu", "l0", "dead_share", "tokens_per_second")


def page() -> None:
    """While a build runs, the page keeps itself up to date."""
    is_building = bool(at_work(data.store()))
    st.fragment(_followed, run_every=BUILDING_SECONDS if is_building else IDLE_SECONDS)(is_building)


def _followed(was_building: bool) -> None:
    guarded(partial(_content, was_building))  # a fragment runs again by itself, without the page around it


def _content(was_building: bool) -> None:
    work = at_work(data.store())
    if was_building != bool(work):
        st.rerun()  # begun, or ended: the whole page once more, with the other clock
    if work:
        _at_work(work)
    for section in (partial(_saes, bool(work)), _training, _runs):
        guarded(section)  # a damaged table takes its own section with it, no more


def _empty() -> None:
    st.header("This store is empty", anchor=False)
    st.text(f"There is no SAE in {visible(str(data.store().root))} yet. Make one, in a few minutes on a laptop:")
    st.code(f"almanac build demo --store '{visible(str(data.store().root))}'", language=None)


def _at_work(work: list[Work]) -> None:
    lines = [f"**{md_escape(one.step)}** since {md_escape(one.since)}, {md_escape(one.process)}" for one in work]
    st.info("A build is running: " + "; ".join(lines) + ". This page follows it.", icon=":material/autorenew:")


def _saes(is_building: bool) -> None:
    known = data.saes()
    if not known and not is_building:
        _empty()
    if known:
        _sae_table(known)


def _sae_table(known: list[Row]) -> None:
    coverage = {row["sae_id"]: row for row in data.rows("coverage")}
    shown = pd.DataFrame(
        [
            {
                "SAE": visible(sae["sae_id"]),
                "architecture": sae["architecture"],
                "features": sae["n_features"],
                "FVU": sae["fvu"],
                "L0": sae["l0"],
                "loss recovered": _percent(sae["loss_recovered"]),
                "dead": _percent(sae["dead_share"]),
                "labelled": sae["n_labelled"],
                "labelled, of features": _percent(coverage.get(sae["sae_id"], {}).get("share_of_features")),
                "labelled, of firings": _percent(coverage.get(sae["sae_id"], {}).get("share_of_firings")),
            }
            for sae in known
        ]
    )
    st.subheader("SAEs", anchor=False)
    chosen = st.dataframe(
        shown, hide_index=True, on_select="rerun", selection_mode="single-cell", column_config=SAE_COLUMNS,
        key=f"saes {data.version()}",
    )  # fmt: skip
    st.caption("Click an SAE to see its features.")
    selected = chosen["selection"]["cells"]
    if selected:
        open_page("features", {"sae": known[selected[0][0]]["sae_id"]})


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _training() -> None:
    """The curves in small: of what trains now, else of the newest SAEs."""
    known = runs()
    if not known:
        return
    live = [run["id"] for run in known if run["state"] == "running"]
    chosen = live or [run["id"] for run in known[:MOST_CURVES]]
    head = st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom")
    head.subheader("Training", anchor=False, width="content")
    if head.button("All curves and runs", icon=":material/show_chart:", type="tertiary"):
        open_page("training", {} if live else {"run": ",".join(chosen)})
    training_view(view(chosen, known, PANELS), key="training_small", on_ask=lambda: None)


def _runs() -> None:
    runs = data.ask("recent_runs", n=N_RUNS).to_pandas()
    if runs.empty:
        return
    st.subheader("Recent runs", anchor=False)
    shown = pd.DataFrame(
        {
            "step": runs["step"],
            "state": runs["state"],
            "started": runs["started_at"],
            "seconds": runs["seconds"],
            "tokens": runs["n_tokens"],
            "tokens/s": runs["tokens_per_second"],
            "memory": runs["peak_memory_bytes"] / 1e9,
            "on": [visible(device) if isinstance(device, str) else "" for device in runs["device"]],
            "error": [visible(error) if isinstance(error, str) else "" for error in runs["error"]],
        }
    )
    if not shown["error"].any():
        shown = shown.drop(columns="error")
    st.dataframe(shown, hide_index=True, column_config=RUN_COLUMNS, placeholder="")


SAE_COLUMNS = {
    "SAE": st.column_config.TextColumn("SAE", width=300, pinned=True),
    "features": st.column_config.NumberColumn("features", format="localized"),
    "FVU": st.column_config.NumberColumn("FVU", format="%.3f", help="fraction of variance unexplained, held-out text"),
    "L0": st.column_config.NumberColumn("L0", format="%.1f", help="features that fire on a token, on average"),
    "loss recovered": st.column_config.NumberColumn(
        "loss recovered", format="%.1f %%", help="of the loss that mean ablation costs"
    ),
    "dead": st.column_config.NumberColumn("dead", format="%.1f %%", help="features that never fire"),
    "labelled": st.column_config.NumberColumn("labelled", format="localized", help="features that a person named"),
    "labelled, of features": st.column_config.ProgressColumn(
        "labelled, of features", format="%.1f %%", min_value=0, max_value=100
    ),
    "labelled, of firings": st.column_config.ProgressColumn(
        "labelled, of firings",
        format="%.1f %%",
        min_value=0,
        max_value=100,
        help="share of all firings that have a name",
    ),
}
RUN_COLUMNS = {
    "started": st.column_config.DatetimeColumn("started (UTC)", format="YYYY-MM-DD HH:mm:ss"),
    "seconds": st.column_config.NumberColumn("seconds", format="%.1f"),
    "tokens": st.column_config.NumberColumn("tokens", format="localized"),
    "tokens/s": st.column_config.NumberColumn("tokens/s", format="%,.0f"),
    "memory": st.column_config.NumberColumn("memory", format="%.2f GB", help="largest resident memory"),
}
