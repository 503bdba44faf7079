"""How training went, or goes: the curves of runs over tokens, one over the other. The URL holds which."""

from functools import partial
from typing import Any

import streamlit as st

from dashboard import data
from dashboard.building import at_work
from dashboard.errors import guarded
from dashboard.parts import training_view
from dashboard.parts.text import md_escape, visible
from dashboard.training import choice, runs, view

__all__ = ["page"]

KEY = "training_view"
LIVE_SECONDS = 3.0  # between two looks while something trains
IDLE_SECONDS = 20.0  # to notice that something began


def page() -> None:
    """While something trains, the curves grow by themselves."""
    is_live = _is_live(runs())
    st.fragment(_followed, run_every=LIVE_SECONDS if is_live else IDLE_SECONDS)(is_live)


def _followed(was_live: bool) -> None:
    guarded(partial(_content, was_live))  # a fragment runs again by itself, without the page around it


def _content(was_live: bool) -> None:
    known = runs()
    if was_live != _is_live(known):
        st.rerun()  # begun, or ended: the whole page once more, with the other clock
    if not known:
        _empty()
        return
    asked: dict[str, Any] = st.session_state.pop("training_asked", None) or {}
    if asked:
        _write_url(asked, known)
    url = st.query_params
    scale = "linear" if url.get("scale") == "linear" else "log"
    reply = st.session_state["training_reply"] = asked.get("number", st.session_state.get("training_reply", 0))
    chosen = [one for one in url.get("run", "").split(",") if one]
    training_view({**view(chosen, known), "scale": scale, "reply": reply}, key=KEY, on_ask=_keep_asked)


def _is_live(known: list[data.Row]) -> bool:
    return any(run["state"] == "running" for run in known)


def _keep_asked() -> None:
    """A trigger lives for one run only, and is taken before the component is drawn."""
    st.session_state["training_asked"] = dict(st.session_state[KEY]["ask"] or {})


def _write_url(asked: dict[str, Any], known: list[data.Row]) -> None:
    """What is as it would be anyway stays out of the URL: then the page follows the run that is going on."""
    chosen = choice(known, [str(one) for one in asked.get("chosen") or ()])
    wanted = {} if sorted(chosen) == sorted(choice(known, None)) else {"run": ",".join(chosen)}
    wanted |= {"scale": "linear"} if asked.get("scale") == "linear" else {}
    if dict(st.query_params) != wanted:
        st.query_params.from_dict(wanted)


def _empty() -> None:
    work = at_work(data.store())
    if work:
        st.header("Nothing to draw yet", anchor=False)
        steps = "; ".join(f"**{md_escape(one.step)}** since {md_escape(one.since)}" for one in work)
        st.info(f"A build is running: {steps}. The curves appear here when it trains.", icon=":material/autorenew:")
        return
    root = visible(str(data.store().root))
    st.header("Nothing was trained in this store yet", anchor=False)
    st.text("A build trains an SAE and writes its curves here while it does. Make one, in a few minutes on a laptop:")
    st.code(f"almanac build demo --store '{root}'", language=None)
