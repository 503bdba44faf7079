"""One feature on the terminal: its card, its statistics as text bars, its examples with the firing tokens marked."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import log1p
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.cli.common import safe, text

__all__ = ["FeatureFacts", "show_feature"]

FeatureFacts = Mapping[str, Sequence[Mapping[str, Any]]]
BARS = " ▁▂▃▄▅▆▇█"
SHADES = ("on #3d2a06", "on #6b4503", "on #9c6303", "on #d18404", "bold black on #ffb020")
BUCKET_TITLES = {
    "top": "strongest", "q5": "highest fifth", "q4": "fourth fifth", "q3": "middle fifth", "q2": "second fifth",
    "q1": "lowest fifth", "random": "random firings", "near_miss": "near misses", "negative": "negatives",
}  # fmt: skip


def show_feature(console: Console, facts: FeatureFacts) -> None:
    """`facts` holds the answers to the queries card, histogram, tokens_of, logits_of, examples and neighbors_of."""
    card = facts["card"][0]
    console.print(Panel(_head(card), title=text(f"{card['sae_id']} · feature {card['feature']}"), title_align="left"))
    console.print(_properties(card))
    console.print(_histogram(facts["histogram"], card))
    console.print(Columns(list(_lists(facts)), padding=(0, 4)))
    for bucket, examples in groupby(facts["examples"], key=lambda example: example["bucket"]):
        console.print(_examples(bucket, list(examples), card["act_max"] or 1.0))


def _head(card: Mapping[str, Any]) -> RenderableType:
    name = text(card["name"], "bold") if card["name"] else Text("no name yet", "dim italic")
    source = {"human": "a person's label", "machine": "a machine's explanation"}.get(card["name_source"], "")
    facts = [card["status"], source, card["agreement"], f"safety {card['safety']}" if card["safety"] else ""]
    return Group(name, text(" · ".join(str(fact) for fact in facts if fact), "dim"))


def _properties(card: Mapping[str, Any]) -> Table:
    """The four properties: what they rest on beside them."""
    table = Table.grid(padding=(0, 2))
    every = f"one token in {1 / card['density']:,.0f}" if card["density"] else "never"
    rows = (
        ("sparse", _number(card["density"]),
         f"fires on {every} ({_number(card['n_fires'])} of {_number(card['n_tokens'])})"),
        ("reconstructive", _number(card["reconstructive"]),
         f"ΔCE {_number(card['delta_ce'])} by ablation, {_number(card['delta_ce_linear'])} to first order"),
        ("monosemantic", _number(card["token_entropy"]),
         f"nats over {_number(card['n_distinct_tokens'])} tokens; {_number(card['top_token_share'])} of firings on "
         f"{card['top_token'] or '–'!r}; example spread {_number(card['example_spread'])}"),
        ("interpretable", _number(card["interpretable"]),
         f"detection score of its name; gap {_number(card['score_gap'])}"),
    )  # fmt: skip
    for name, value, rest in rows:
        table.add_row(Text(name, "bold"), text(value), text(rest, "dim"))
    return table


def _histogram(bins: Sequence[Mapping[str, Any]], card: Mapping[str, Any]) -> Text:
    if not bins:
        return Text("no histogram", "dim")
    highest = max(log1p(bin["n"]) for bin in bins) or 1.0
    bars = "".join(BARS[round(log1p(bin["n"]) / highest * (len(BARS) - 1))] for bin in bins)
    ends = f"{bins[0]['low']:.3g} ▕{bars}▏ {bins[-1]['high']:.3g}"
    return Text.assemble(
        ("activations ", "bold"), ends, ("  (log counts)", "dim"), "\n" if card["status"] != "dead" else ""
    )


def _lists(facts: FeatureFacts) -> Iterator[Table]:
    at = [(row["token"], row["p_token_given_fire"]) for row in facts["tokens_of"] if row["role"] == "at"]
    yield _list("fires on", at)
    for title, sign in (("promotes", 1), ("suppresses", -1)):
        yield _list(title, [(row["token"], row["logit"]) for row in facts["logits_of"] if row["sign"] == sign])
    near = [row for row in facts["neighbors_of"] if row["kind"] == "decoder_cosine"]
    yield _list("neighbours", [(f"{n['other_feature']} {n['name'] or n['top_token'] or ''}", n["score"]) for n in near])


def _list(title: str, rows: Sequence[tuple[object, float | None]]) -> Table:
    table = Table(
        title=title,
        title_style="bold",
        title_justify="left",
        box=None,
        show_header=False,
        min_width=len(title) + 1,
        padding=(0, 1, 0, 0),
    )
    table.add_column()
    table.add_column(justify="right", style="dim")
    for name, value in rows[:10]:
        table.add_row(text(name), _number(value))
    return table if rows else _list(title, [("–", None)])


def _examples(bucket: str, examples: Sequence[Mapping[str, Any]], act_max: float) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", min_width=7)
    table.add_column(overflow="fold")
    for example in examples:
        table.add_row(_number(example["act"]), window_text(example, act_max))
    low, high = examples[0]["bucket_low"], examples[0]["bucket_high"]
    bounds = "" if low is None or high is None else f"  {low:.3g} to {high:.3g}"
    return Group(Text.assemble((BUCKET_TITLES.get(bucket, bucket), "bold"), (bounds, "dim")), table)


def window_text(example: Mapping[str, Any], act_max: float) -> Text:
    """The window with each firing token shaded by its strength; where there is no colour, «guillemets» mark it."""
    acts = dict(zip(example["fire_positions"] or [], example["fire_acts"] or [], strict=True))
    line = Text()
    for position, token in enumerate(example["tokens"] or [], start=example["window_start"] or 0):
        act = acts.get(position, 0.0)
        is_center = position == example["position"]
        shade = SHADES[min(int(act / act_max * len(SHADES)), len(SHADES) - 1)] if act > 0 else ""
        shown = safe(token)
        line.append(f"«{shown}»" if is_center else shown, style=f"{shade} underline" if is_center else shade)
    return line


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
