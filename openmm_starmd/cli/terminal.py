"""Output of the commands: progress, tables and lights."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from openmm_starmd.progress import ProgressLines

LIGHTS = {"green": "[green]●[/]", "amber": "[yellow]◆[/]", "red": "[red]■[/]", "unclear": "○", "none": " "}
Report = Callable[[str, float], None]


@contextmanager
def progress(nanoseconds: float | None = None) -> Iterator[Report]:
    """Report progress on stderr: a bar with the time left in a terminal, a line now and then in a log file.

    The report takes a text and the share that is done, 0 where it is unknown. ``nanoseconds``, what everything is, give
    the speed.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(partial(print, file=sys.stderr, flush=True), nanoseconds)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done: bar.update(task, description=text, total=1.0 if done else None, completed=done)


@contextmanager
def logged() -> Iterator[None]:
    """Let the library's log, lines of progress among it, go to a log file that stands in place of the terminal."""
    logger, handler = logging.getLogger("openmm_starmd"), logging.StreamHandler(sys.stderr)
    if Console(stderr=True).is_terminal:
        yield
        return
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def plain_table(*headers: str) -> Table:
    """Table without lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=bool(headers))
    for header in headers:
        table.add_column(header)
    return table
