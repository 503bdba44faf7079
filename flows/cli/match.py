"""`almanac match`: which feature of one SAE is which of another."""

from typing import Annotated

import typer
from rich.table import Table

from catalog import connect
from catalog.guard import answering
from flows.cli.common import StoreOption, open_store, out, text
from flows.cli.progress import TerminalWatch

__all__ = ["match_command", "register"]

VERDICTS = {
    "same": "the same feature", "split": "became several", "merged": "became part of one", "gone": "without a partner",
    "new": "without an origin",
}  # fmt: skip

_SUMMARY = """
select verdict, count(distinct feature_a) as n_a, count(distinct feature_b) as n_b, median(decoder_cosine) as cosine,
       median(act_correlation) as correlation, median(top_jaccard) as jaccard, median(margin) as margin
from match where fingerprint = ? group by verdict
"""


def match_command(  # noqa: PLR0913 (one parameter per option)
    old: Annotated[str, typer.Argument(metavar="OLD", help="sae_id or family of the first SAE.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="sae_id or family of the second SAE.")],
    related_cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="Decoder cosine of features that belong together.")
    ] = 0.7,
    related_correlation: Annotated[
        float, typer.Option(min=-1, max=1, help="The same by activations, where widths differ.")
    ] = 0.5,
    margin: Annotated[float, typer.Option(min=0, help="Lead over every rival that makes a pair the same.")] = 0.1,
    store: StoreOption = None,
) -> None:
    """Say which feature of OLD became which of NEW: same, split, merged, gone or new; kept in the table `match`.

    Example:  almanac match batchtopk-4096@1 batchtopk-4096@2
    """
    from flows.place import Place
    from flows.steps.match import match
    from saelib.matching import MatchConfig

    opened, console = open_store(store), out()
    config = MatchConfig(related_cosine=related_cosine, related_correlation=related_correlation, margin=margin)
    made = match(Place(opened, TerminalWatch(console)), old, new, config)
    with answering(_SUMMARY):
        rows = {row[0]: row[1:] for row in connect(opened).execute(_SUMMARY, [made.fingerprint]).fetchall()}
    table = Table(
        "verdict", "", "of the old", "of the new", "cosine", "correlation", "Jaccard", "margin",
        box=None, pad_edge=False, header_style="bold",
    )  # fmt: skip
    for verdict, meaning in VERDICTS.items():
        n_a, n_b, *medians = rows.get(verdict, (0, 0, None, None, None, None))
        cells = [f"{n_a:,}", f"{n_b:,}", *("–" if median is None else f"{median:.3f}" for median in medians)]
        table.add_row(text(verdict, "bold"), text(meaning, "dim"), *map(text, cells))
    plan = made.manifest["plan"]
    console.print(
        text(f"{plan['sae_a'][0]} → {plan['sae_b'][0]} (medians; features that are gone or new: the nearest)")
    )
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("match")(match_command)
