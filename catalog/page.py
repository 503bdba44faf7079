"""Features as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from math import log1p
from pathlib import Path
from typing import Any

import duckdb
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from catalog.errors import NotFound
from catalog.lookup import check_feature
from catalog.query import query

__all__ = ["page"]

FACTS = ("card", "histogram", "tokens_of", "logits_of", "examples", "neighbors_of")
BUCKETS = {
    "top": "strongest", "q5": "highest fifth", "q4": "fourth fifth", "q3": "middle fifth", "q2": "second fifth",
    "q1": "lowest fifth", "random": "random firings", "near_miss": "near misses: silent here",
    "negative": "elsewhere: silent here",
}  # fmt: skip
GLYPHS = {"\n": "↵", "\t": "→", "\r": "␍"}


def page(connection: duckdb.DuckDBPyConnection, features: Sequence[tuple[str, int]], title: str, note: str = "") -> str:
    """An HTML page of these features, each as (sae_id, feature). Raises NotFound."""
    for sae_id, feature in features:
        check_feature(connection, sae_id, feature)
    shown = [_facts(connection, sae_id, feature) for sae_id, feature in features]
    return _template().render(title=title, note=note, features=shown)


def _facts(connection: duckdb.DuckDBPyConnection, sae_id: str, feature: int) -> dict[str, Any]:
    asked = {name: query(connection, name, sae_id=sae_id, feature=feature).to_pylist() for name in FACTS}
    if not asked["card"]:
        raise NotFound(f"{sae_id} was published without the table `feature`; run describe and publish it again")
    card: dict[str, Any] = asked["card"][0]
    highest = float(card["act_max"] or 1.0)
    near = [n for n in asked["neighbors_of"] if n["kind"] == "decoder_cosine"]
    return {
        "card": card,
        "bars": _bars(asked["histogram"]),
        "at": [(row["token"], row["p_token_given_fire"]) for row in asked["tokens_of"] if row["role"] == "at"],
        "promoted": [(row["token"], row["logit"]) for row in asked["logits_of"] if row["sign"] == 1],
        "suppressed": [(row["token"], row["logit"]) for row in asked["logits_of"] if row["sign"] == -1],
        "near": [(f"{n['other_feature']} {n['name'] or n['top_token'] or ''}", n["score"]) for n in near],
        "buckets": [
            (BUCKETS.get(bucket, bucket), [_example(example, highest) for example in examples])
            for bucket, examples in groupby(asked["examples"], key=lambda row: row["bucket"])
        ],
    }


def _example(example: dict[str, Any], highest: float) -> dict[str, Any]:
    acts = dict(zip(example["fire_positions"] or [], example["fire_acts"] or [], strict=True))
    places = range(example["window_start"] or 0, example["window_end"] or 0)
    words = zip(places, example["tokens"] or [], strict=False)
    tokens = [
        {"text": text, "act": acts.get(at, 0.0), "shade": round(min(acts.get(at, 0.0) / highest, 1.0), 3),
         "is_center": at == example["position"]}
        for at, text in words
    ]  # fmt: skip
    return {"act": example["act"], "tokens": tokens, "uri": example["uri"]}


def _bars(bins: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Heights in percent of the highest bar, on a logarithmic scale."""
    highest = max((log1p(bar["n"]) for bar in bins), default=0.0) or 1.0
    return [{**bar, "height": round(100 * log1p(bar["n"]) / highest, 1)} for bar in bins]


def _visible(text: object) -> str:
    """Text from a corpus or a person: whatever would hide, or turn the line round, as a glyph or a number."""
    return "".join(GLYPHS.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in str(text))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent / "pages")
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(visible=_visible, number=_number)
    return environment.get_template("features.html")
