"""Features as the component draws them: rows of the catalog -> JSON in which every text is ready to be shown.

What a machine measured is kept per feature and snapshot; names and what people said are asked anew each time.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

from catalog import query
from dashboard import data
from dashboard.data import Row
from dashboard.parts.text import number, share, visible

__all__ = ["cards"]

KEPT = 2_000
LEVELS = 10
BUCKETS = {
    "top": "Strongest", "q5": "Highest fifth", "q4": "Fourth fifth", "q3": "Middle fifth", "q2": "Second fifth",
    "q1": "Lowest fifth", "random": "Random firings", "near_miss": "Near misses (it does not fire)",
    "negative": "Elsewhere (it does not fire)",
}  # fmt: skip
KINDS = {"decoder_cosine": "decoder cosine", "coactivation": "fires together", "correlation": "correlation"}
Names = dict[tuple[str, int], Row]

_kept: OrderedDict[tuple[Any, ...], Row] = OrderedDict()
_lock = threading.Lock()
_pool = ThreadPoolExecutor(4, thread_name_prefix="cards")


def cards(sae_id: str, features: Sequence[int]) -> list[Row]:
    """One card a feature, in the order asked; numbers that the SAE does not have are left out."""
    if not features:
        return []
    measured = _measured(sae_id, features)
    near = [near for card in measured.values() for kind in card["near"] for near in kind["rows"]]
    named, said = _people(sae_id, features, near)
    return [
        {
            **{name: value for name, value in measured[feature].items() if name != "near"},
            **_name(measured[feature], named[sae_id, feature]),
            "neighbors": [
                {**kind, "rows": [_neighbor(sae_id, near, named) for near in kind["rows"]]}
                for kind in measured[feature]["near"]
            ],
            "history": [_event(row) for row in said.get(feature, [])],
        }
        for feature in features
        if feature in measured
    ]


def _people(sae_id: str, features: Sequence[int], near: list[Row]) -> tuple[Names, dict[int, list[Row]]]:
    """The names of these features and of their neighbours, and the history of these: asked anew each time."""
    wanted: dict[str, set[int]] = {sae_id: set(features)}
    for other in near:
        wanted.setdefault(other["sae"], set()).add(other["feature"])
    questions = [("label_history", sae_id, _listed(features))]
    questions += [("names_of_features", sae, _listed(sorted(own))) for sae, own in wanted.items()]
    said, *named = _ask(questions)
    names = {(sae, row["feature"]): row for sae, rows in zip(wanted, named, strict=True) for row in rows}
    return names, _by_feature(said)


def _measured(sae_id: str, features: Sequence[int]) -> dict[int, Row]:
    """Kept per snapshot; those that are missing are asked for together."""
    place, snapshot = data.place(), data.version().snapshot
    with _lock:
        known = {f: _kept[place, snapshot, sae_id, f] for f in features if (place, snapshot, sae_id, f) in _kept}
    missing = [feature for feature in features if feature not in known]
    if missing:
        made = _ask_measured(sae_id, missing)
        known |= made
        with _lock:
            _kept.update({(place, snapshot, sae_id, feature): card for feature, card in made.items()})
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
    return known


def _ask_measured(sae_id: str, features: Sequence[int]) -> dict[int, Row]:
    tables = ("examples", "statistics", "histograms", "tokens", "logits", "neighbors")
    answers = _ask([(f"{table}_of_features", sae_id, _listed(features)) for table in tables])
    by = {table: _by_feature(answer) for table, answer in zip(tables, answers, strict=True)}
    return {
        feature: {
            "feature": feature,
            "status": row["status"],
            "properties": _properties(row),
            "histogram": _histogram(by["histograms"].get(feature, [])),
            "lists": _lists(by["tokens"].get(feature, []), by["logits"].get(feature, [])),
            "buckets": _buckets(by["examples"].get(feature, []), row["act_max"] or 0.0),
            "near": _near(by["neighbors"].get(feature, [])),
        }
        for feature, (row,) in by["statistics"].items()
    }


def _ask(questions: Sequence[tuple[str, str, str]]) -> list[list[Row]]:
    """The answers to (query, sae_id, features), side by side: planning them takes longer than reading."""
    reader = data.reader()

    def answer(question: tuple[str, str, str]) -> list[Row]:
        name, sae_id, features = question
        found: list[Row] = query(reader.cursor(), name, sae_id=sae_id, features=features).to_pylist()
        return found

    return list(_pool.map(answer, questions))


def _listed(features: Iterable[int]) -> str:
    return ",".join(str(int(feature)) for feature in features)


def _by_feature(rows: list[Row]) -> dict[int, list[Row]]:
    return {feature: list(own) for feature, own in groupby(rows, key=lambda row: row["feature"])}


def _name(measured: Row, card: Row) -> Row:
    interpretable = _property(
        "Interpretable", number(card["interpretable"]), "" if card["interpretable"] is None else "detection",
        "no score yet" if card["interpretable"] is None else f"gap {number(card['score_gap'])}",
        "held-out detection score of its name; gap: top bucket minus lowest fifth",
    )  # fmt: skip
    return {
        "name": visible(card["name"] or ""),
        "source": {"human": "a person's label", "machine": "a machine's explanation"}.get(card["name_source"], ""),
        "agreement": card["agreement"] or "",
        "authors": card["n_authors"] or 0,
        "safety": card["safety"] or 0,
        "tags": [visible(tag) for tag in card["tags"] or []],
        "explanation": visible(card["explanation"] or ""),
        "properties": [*measured["properties"], interpretable],
    }


def _properties(card: Row) -> list[Row]:
    """Three of the four properties, each with what it rests on; the fourth hangs on the name."""
    often = f"one token in {1 / card['density']:,.0f}" if card["density"] else "never fires"
    top = f"{share(card['top_token_share'])} on {visible(card['top_token'])!r}" if card["top_token"] else "no top token"
    return [
        _property("Sparse", share(card["density"]), "density", often,
                  f"{number(card['n_fires'])} of {number(card['n_tokens'])} tokens; "
                  f"{share(card['sequence_density'])} of sequences"),
        _property("Reconstructive", share(card["reconstructive"]), "of the variance",
                  f"ΔCE {number(card['delta_ce'] if card['delta_ce'] is not None else card['delta_ce_linear'])}",
                  "what the reconstruction loses without it; ΔCE: "
                  + ("by ablation" if card["delta_ce"] is not None else "to first order") + ", nats per token"),
        _property("Monosemantic", number(card["token_entropy"]), "nats", top,
                  f"entropy over {number(card['n_distinct_tokens'])} different tokens; "
                  f"spread of its examples {number(card['example_spread'])}"),
    ]  # fmt: skip


def _property(name: str, value: str, unit: str, note: str, meaning: str) -> Row:
    return {"name": name, "value": value, "unit": unit, "note": note, "meaning": meaning}


def _histogram(found: list[Row]) -> Row | None:
    if not found or not found[0]["counts"]:
        return None
    edges, counts = found[0]["edges"], found[0]["counts"]
    return {"counts": counts, "low": number(edges[0]), "high": number(edges[-1]),
            "titles": [f"{number(low)} to {number(high)}: {count:,}"
                       for low, high, count in zip(edges, edges[1:], counts, strict=False)]}  # fmt: skip


def _lists(tokens: list[Row], logits: list[Row]) -> list[Row]:
    found = [
        ("Promotes", [(row["token"], row["logit"], number(row["logit"])) for row in logits if row["sign"] == 1]),
        ("Suppresses", [(row["token"], row["logit"], number(row["logit"])) for row in logits if row["sign"] == -1]),
    ]
    for title, role in (("Fires on", "at"), ("After", "previous"), ("Before", "next")):
        own = [(row["token"], row["p_token_given_fire"], share(row["p_token_given_fire"]))
               for row in tokens if row["role"] == role]  # fmt: skip
        found.append((title, own))
    return [{"title": title, "rows": [_bar(own, *row) for row in own]} for title, own in found]


def _bar(all_rows: list[tuple[str, float, str]], token: str | None, value: float | None, shown: str) -> Row:
    largest = max((abs(row[1] or 0.0) for row in all_rows), default=0.0)
    return {"token": visible(token or ""), "shown": shown, "part": abs(value or 0.0) / largest if largest else 0.0}


def _buckets(examples: list[Row], act_max: float) -> list[Row]:
    found = []
    for bucket, group in groupby(examples, key=lambda example: example["bucket"]):
        own = list(group)
        low, high = own[0]["bucket_low"], own[0]["bucket_high"]
        bounds = "" if low is None or high is None else f"{number(low)} to {number(high)}"
        found.append({"bucket": bucket, "title": BUCKETS.get(bucket, bucket), "bounds": bounds,
                      "rows": [_example(example, act_max) for example in own]})  # fmt: skip
    return found


def _example(example: Row, act_max: float) -> Row:
    where = visible(example["uri"] or "")
    held_out = "held out" if example["held_out"] else ""
    return {
        "act": number(example["act"]) if example["act"] else "0",
        "segments": _segments(example, act_max),
        "where": " · ".join(part for part in (where, f"position {example['position']}", held_out) if part),
    }


def _segments(example: Row, act_max: float) -> list[list[Any]]:
    """The window as [text, level, activation]: level -1 where it does not fire, and neighbours of that kind as one."""
    acts: Mapping[int, float] = dict(zip(example["fire_positions"] or [], example["fire_acts"] or [], strict=False))
    found: list[list[Any]] = []
    for position, token in enumerate(example["tokens"] or [], start=example["window_start"] or 0):
        act, is_center = acts.get(position, 0.0), position == example["position"]
        text = visible(token or "")
        if act > 0 or is_center:
            level = round(min(act / act_max, 1.0) * LEVELS) if act_max and act > 0 else -1
            found.append([text, level, number(act) if act > 0 else "0", is_center])
        elif found and len(found[-1]) == 1:
            found[-1][0] += text
        else:
            found.append([text])
    return found


def _near(rows: list[Row]) -> list[Row]:
    return [
        {
            "title": KINDS.get(kind, kind),
            "rows": [
                {"sae": row["other_sae_id"], "feature": row["other_feature"], "score": number(row["score"])}
                for row in group
            ],
        }
        for kind, group in groupby(rows, key=lambda row: row["kind"])
    ]


def _neighbor(sae_id: str, near: Row, named: Names) -> Row:
    card = named.get((near["sae"], near["feature"]), {"name": None, "top_token": None})
    return {
        **near,
        "sae": "" if near["sae"] == sae_id else visible(near["sae"]),
        "name": visible(card["name"] or card["top_token"] or ""),
        "is_named": bool(card["name"]),
    }


def _event(row: Row) -> Row:
    return {
        "id": row["event_id"],
        "at": row["created_at"].strftime("%Y-%m-%d %H:%M"),
        "author": row["author"],
        "action": row["action"],
        "text": row["text"] or "",
        "shown": {name: visible(row[name] or "") for name in ("author", "text", "note")},
        "tags": row["tags"] or [],
        "confidence": row["confidence"],
        "safety": row["safety"],
        "note": row["note"] or "",
        "undone": row["is_undone"],
    }
