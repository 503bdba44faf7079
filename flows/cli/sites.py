"""The command that lists a language model's sites."""

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from flows.cli.answers import Format, show_answer

__all__ = ["register"]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub name such as gpt2, or demo_lm.")]


def register(app: typer.Typer) -> None:
    """Add `sites` to `app`."""
    app.command("sites")(sites)


def sites(
    model: Model,
    every: Annotated[bool, typer.Option("--all", help="Every module that a forward pass reaches, both sides.")] = False,
    revision: Annotated[str | None, typer.Option(help="Of a hub name.", show_default=False)] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="How to answer [default: table, or what --output ends in].", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the answer to this file.", show_default=False)
    ] = None,
) -> None:
    """List the sites of a language model, with widths: what a run file's `sites` may name.

    Either name works there, and `*` stands for every layer: "resid_post.*", "model.layers.*.mlp".

    Example:  almanac sites demo_lm
    """
    from saelib.lm import LMConfig, load_lm
    from saelib.sites import list_sites

    rows = list_sites(load_lm(LMConfig(model=model, revision=revision)), every)
    columns = {
        "short_name": pa.array([row.short_name for row in rows], pa.string()),
        "site": pa.array([str(row.site) for row in rows], pa.string()),
        "side": pa.array([row.site.side for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
    }
    show_answer(pa.table(columns), form, output)
