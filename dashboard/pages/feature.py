"""One feature, the form to label it, and the way to the next. The component does the drawing and the moving."""

import uuid
from typing import Any

import streamlit as st

from catalog import CatalogError, NotFound
from dashboard import data, people
from dashboard.cards import cards
from dashboard.filters import Filter
from dashboard.parts import feature_view
from dashboard.parts.text import visible
from dashboard.settings import settings

__all__ = ["page"]

KEY = "feature_view"
MOST_AT_ONCE = 36
ORDER_REACH = 60
MOST_LISTED = 20_000
State = dict[str, Any]


def page() -> None:
    """Find out which feature of which list is meant, and hand it to the component."""
    asked = st.session_state.pop("asked", None)
    state = _state(asked)
    answers = _record(asked)
    wanted = [state["at"]] if asked is None or "open" in asked else []
    features = [state["order"][at] for at in wanted] + [int(feature) for feature in (asked or {}).get("need", [])]
    features += [int(act["feature"]) for act in (asked or {}).get("outbox", []) if act.get("feature") is not None]
    offset = max(0, state["at"] - ORDER_REACH)
    feature_view(
        {
            "visit": state["visit"],
            "start": state["at"],
            "total": len(state["order"]),
            "offset": offset,
            "order": list(state["order"][offset : state["at"] + ORDER_REACH]),
            "list": "" if not state["filter"].changed else "found",
            "sae": state["sae"],
            "shown_sae": visible(state["sae"]),
            "items": cards(state["sae"], list(dict.fromkeys(features))[:MOST_AT_ONCE]),
            "answers": answers,
            "reply": (asked or {}).get("number", 0),
            "author": settings().user,
            "tags": [row["tag"] for row in data.rows("known_tags")] if asked is None else None,
        },
        key=KEY,
        on_ask=_keep_asked,
    )


def _keep_asked() -> None:
    """A trigger lives for one run only, and is taken before the component is drawn."""
    st.session_state["asked"] = dict(st.session_state[KEY]["ask"] or {})


def _state(asked: State | None) -> State:
    """Where this browser tab is: SAE, list and place in it. `visit` names one opening of a list."""
    state: State | None = st.session_state.get("at_feature")
    sae_id, chosen, feature = _from_url()
    if state is not None and asked is not None and state["sae"] == asked.get("sae", state["sae"]):
        if "open" in asked:
            state = _arrive(state["sae"], Filter(), int(asked["open"]))
        else:
            state["at"] = min(max(int(asked["at"]), 0), len(state["order"]) - 1)
    elif state is None or (state["sae"], state["filter"], state["order"][state["at"]]) != (sae_id, chosen, feature):
        state = _arrive(sae_id, chosen, feature)
    st.session_state["at_feature"] = state
    return state


def _from_url() -> tuple[str, Filter, int | None]:
    url = st.query_params
    sae_id = url.get("sae") or next(iter(data.sizes()), "")
    feature = url.get("feature", "").strip()
    if feature and not feature.isdecimal():
        raise NotFound(f"{feature!r} is no feature number; give a whole number, as in ?sae=…&feature=7")
    return sae_id, Filter.of(dict(url)), int(feature) if feature else None


def _arrive(sae_id: str, chosen: Filter, feature: int | None) -> State:
    """The list that the URL means, and the feature's place in it; not in it: the list of all features."""
    n_features = data.n_features(sae_id)
    if feature is not None and feature >= n_features:
        raise NotFound(f"no feature {feature} in {sae_id!r}; it has the features 0 to {n_features - 1}")
    order: Any = range(n_features)
    if chosen.changed:
        found = data.ask("browse_features", sae_id=sae_id, n=MOST_LISTED, **chosen.parameters)
        order = found["feature"].to_pylist()
    if (feature is not None and feature not in order) or not order:
        chosen, order = Filter(), range(n_features)
    at = 0 if feature is None else order.index(feature)
    _write_url(sae_id, order[at], chosen)
    return {"sae": sae_id, "filter": chosen, "order": order, "at": at, "visit": uuid.uuid4().hex}


def _write_url(sae_id: str, feature: int, chosen: Filter) -> None:
    wanted = {"sae": sae_id, "feature": str(feature), **chosen.changed}
    if dict(st.query_params) != wanted:
        st.query_params.from_dict(wanted)


def _record(asked: State | None) -> dict[str, str]:
    """What the browser sent, recorded; where the labels cannot be written at all, each act is told why."""
    outbox = (asked or {}).get("outbox") or []
    if not outbox:
        return {}
    sizes = data.sizes()
    known = [act for act in outbox if 0 <= int(act.get("feature", -1)) < sizes.get(act.get("sae", ""), 0)]
    unknown = {
        str(act.get("id")): "there is no such feature in this store any more" for act in outbox if act not in known
    }
    try:
        return people.record(data.labels(), known) | unknown
    except CatalogError as error:
        return {str(act["id"]): str(error) for act in known} | unknown
