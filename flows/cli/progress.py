"""What a person sees while a run works: bars with rate and time left, and a line for each step done."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from flows.cli.common import text
from flows.place import Tick

__all__ = ["TerminalWatch"]


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s", style="dim")


class TerminalWatch:
    """Bars on a terminal; where the output is a file, one line when a piece of work ends."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def bar(self, step: str, total: int, unit: str) -> Iterator[Tick]:
        """A bar while the block is open."""
        columns = (
            TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            _Rate(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(step, total=total or None, unit=unit)
            yield lambda n: progress.advance(task, n)

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(text(line))
