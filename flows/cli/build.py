"""`almanac plan` and `almanac build`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from catalog import Store, connect
from catalog.guard import answering
from flows.cli.common import DEFAULT_STORE, StoreOption, out, text
from flows.cli.progress import TerminalWatch

if TYPE_CHECKING:  # torch takes seconds to import: only the commands that need it pay
    from flows.config import RunConfig
    from flows.place import Place

__all__ = ["build_run", "register"]

RunArgument = Annotated[
    str, typer.Argument(help="A TOML file, or the name of a run that comes along: demo, gpt2_small …")
]


def plan(run: RunArgument = "demo", store: StoreOption = None) -> None:
    """Say what a build would reuse and what it would run, with bytes and time from the last measured rates.

    Example:  almanac plan demo
    """
    from flows.config import load_run
    from flows.planning import plan_run

    config = load_run(run)
    folder = store or DEFAULT_STORE
    opened = Store.open(folder) if folder.exists() else None
    table = Table("step", "of", "what", "disk", "time", title=f"{config.name} in {folder}")
    for row in plan_run(config, opened):
        state = "done already" if row.is_done else "to do"
        table.add_row(text(row.step), text(row.of), text(state), text(row.size), text(row.duration))
    out().print(table)


def build(
    run: RunArgument = "demo",
    store: StoreOption = None,
    local: Annotated[bool, typer.Option("--local", help="Run without Prefect: the same path, the same bytes.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that share the shards [default: the run file's, else 1].", show_default=False
        ),
    ] = None,
) -> None:
    """Run the whole path: text to catalog. What is done already is reused; a killed run resumes where it stopped.

    Examples:  almanac build demo      almanac build my_run.toml --store /data/almanac --local --workers 2
    """
    from flows.config import load_run

    config = load_run(run)
    build_run(config if workers is None else config.model_copy(update={"workers": workers}), store, local)


def build_run(config: "RunConfig", store: Path | None, local: bool) -> None:
    """Run the path in the store of a folder, watched, and sum up what came of it."""
    from flows.path import path as local_path
    from flows.place import Place
    from flows.planning import plan_run

    opened = Store.create(store or DEFAULT_STORE)
    console = out()
    place = Place(opened, TerminalWatch(console))
    if local or all(row.is_done for row in plan_run(config, opened)):
        made = local_path(config, place)
    else:
        _prefect_environment(opened)
        from flows.deployments import run_build

        made = run_build(config, place)
    _summary(opened, config, place, [entry["sae_id"] for entry in made.facts["published"]])


def _prefect_environment(store: Store) -> None:
    """Settings for the embedded server, unless the user made them: no telemetry, patience, its files in the store."""
    defaults = {
        "PREFECT_HOME": str(store.root / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _rows(connection: Any, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
    with answering(sql):
        rows: list[tuple[Any, ...]] = connection.execute(sql, parameters).fetchall()
    return rows


_METRICS = {
    "l0": ("L0", "{:.1f} features a token"),
    "fvu": ("FVU", "{:.3f} of the variance unexplained"),
    "loss_recovered_mean": ("loss recovered", "{:.3f} against mean ablation"),
    "dead_share": ("dead share", "{:.1%} of the features never fire on held-out text"),
}

_FIVE = """
select feature, top_token, top_token_share, density, top_tokens[1:5], act_max from feature
where sae_id = ? and status in ('alive', 'rare')
order by density between 1e-4 and 1e-2 and length(trim(top_token)) > 2 desc, top_token_share * ln(n_fires) desc limit 5
"""


def _summary(store: Store, config: "RunConfig", place: "Place", sae_ids: list[str]) -> None:
    console, connection = out(), connect(store)
    for sae_id in sae_ids:
        console.print()
        console.print(text(sae_id, "bold"))
        metrics = dict(_rows(connection, "select metric, value from sae_metric where sae_id = ?", [sae_id]))
        for name, (title, form) in _METRICS.items():
            if metrics.get(name) is not None:
                console.print(text(f"  {title:<15}{form.format(metrics[name])}"))
        table = Table(
            "feature", "fires on", "share", "density", "writes", "max", title="Five features", title_justify="left"
        )
        for feature, token, share, density, promoted, maximum in _rows(connection, _FIVE, [sae_id]):
            writes = " ".join(repr(word)[1:-1] for word in promoted or [])
            table.add_row(
                text(feature),
                text(repr(token)),
                text(f"{share:.0%}"),
                text(f"{density:.3%}"),
                text(writes),
                text(f"{maximum:.2f}"),
            )
        console.print(table)
    seconds = sum(report.seconds for report in place.reports)
    peak = max(report.peak_memory_bytes for report in place.reports) / 1e9
    console.print(text(f"{config.name}: {seconds:.0f} s in all, peak memory {peak:.2f} GB. Store: {store.root}"))
    here = Path.cwd()
    given = f" --store {os.path.relpath(store.root, here)}" if store.root != (here / DEFAULT_STORE).resolve() else ""
    console.print(text("Next:"))
    console.print(text(f"  make dashboard        (or: almanac dashboard{given})"))
    console.print(text(f"  almanac show {sae_ids[0]} 17{given}"))
    console.print(
        text(f'  almanac sql "select feature, top_token, density from feature order by act_max desc limit 10"{given}')
    )
    console.print(text(f"  almanac features --search TEXT{given}"))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(plan)
    app.command()(build)
