"""What the commands print: progress, tables and lights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LIGHTS = {"green": "[green]●[/]", "amber": "[yellow]◆[/]", "red": "[red]■[/]", "unclear": "○", "none": " "}
LOG_SECONDS = 30.0  # between two lines of progress in a log file
Report = Callable[[str, float], None]


@contextmanager
def progress() -> Iterator[Report]:
    """Report progress on stderr: a bar with the time left in a terminal, plain lines in a log file.

    Yields
    ------
    callable
        Takes a text and the share that is done, 0 where it is unknown.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done: bar.update(task, description=text, total=1.0 if done else None, completed=done)


def _plain_lines(console: Console) -> Report:
    """A line every `LOG_SECONDS`; the time left follows from the share done since the first report of a share."""
    last, first = time.monotonic(), None

    def report(text: str, done: float) -> None:
        nonlocal last, first
        now = time.monotonic()
        if first is None and done:
            first = now, done
        if now - last < LOG_SECONDS:
            return
        last = now
        if first and done > first[1]:
            left = (now - first[0]) * (1 - done) / (done - first[1])
            text += f", {100 * done:.0f} %, {duration(left)} left"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return report


def duration(seconds: float) -> str:
    """A time as people say it: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``."""
    for size, name in ((86_400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def plain_table(*headers: str) -> Table:
    """Table without lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=bool(headers))
    for header in headers:
        table.add_column(header)
    return table
