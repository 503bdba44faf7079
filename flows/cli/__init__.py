"""The command `almanac`."""

import atexit
import os
import sys

import typer

from catalog import CatalogError, Damage, Store
from flows.artifact import verify_artifacts
from flows.cli import build, care, catalog, dashboard, exchange, gc, label, match, name, search, share, sites
from flows.cli.common import run_app
from flows.errors import FlowError

__all__ = ["app", "main"]

app = typer.Typer(
    name="almanac",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""An almanac of your language model's features: built by flows, kept in tables, read and labelled by people.

Start with `almanac build demo`, then `almanac features`, `almanac show SAE FEATURE`, `almanac sql "select …"`.
The store is --store, else ALMANAC_STORE, else ./almanac.""",
)


def _check_artifacts(store: Store) -> list[Damage]:
    damages: list[Damage] = []
    advice = "delete its folder and build again: what hangs on it is made anew, labels stay"
    verify_artifacts(store, lambda path, problem: damages.append(Damage(path, problem, advice)))
    return damages


build.register(app)
catalog.register(app, extra_checks=[_check_artifacts])
exchange.register(app)
label.register(app)
search.register(app)
share.register(app)
care.register(app)
dashboard.register(app)
sites.register(app)
gc.register(app)
name.register(app)
match.register(app)


def main() -> None:
    """Run the command line; errors that we name are one message each."""
    status = [0]
    atexit.register(_end, status)  # registered first, so it is called last
    try:
        run_app(app, (CatalogError, FlowError, _saelib_errors()))
    except SystemExit as end:
        status[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _end(status: list[int]) -> None:
    """Leave before the interpreter takes its modules apart: with threads of the orchestrator still there, duckdb's
    binding prints pages about leaks at that point."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status[0])


def _saelib_errors() -> type[Exception]:
    from saelib.errors import SAELibError

    return SAELibError
