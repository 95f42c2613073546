"""Logs of a training run: CSV tables, TensorBoard, a progress bar."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from lightning_fabric.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openmm_starmd.files import replacing
from openmm_starmd.progress import ProgressLines

logger = logging.getLogger(__name__)


class Log:
    """A CSV file that can be cut back to the step that a run goes on from."""

    def __init__(self, path: Path, step: int):
        self._path = path
        self._rows: list[dict] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            self._rows = [row for row in rows if int(row["step"]) < step]
            if self._rows:
                with replacing(path) as self._path:
                    self.flush()
                self._path = path
            else:
                path.unlink()

    def append(self, **row) -> None:
        """Add a row, kept in memory until `flush`."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows that have been added."""
        if not self._rows:
            return
        fresh = not self._path.exists()
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self._rows[0].keys())
            if fresh:
                writer.writeheader()
            writer.writerows(self._rows)
        self._rows = []


def last_losses(path: Path, count: int = 100) -> float | None:
    """Mean of the last losses in a CSV file; None where there are none."""
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)][-count:]
    return sum(losses) / len(losses) if losses else None


class Logs:
    """Everything that one process of a run writes down; a ``silent`` one of the others writes nothing.

    The folder gets ``train.csv``, ``validation.csv`` and, where TensorBoard is installed, ``tensorboard/``. The run
    goes on from ``step`` and ends at ``total``.
    """

    def __init__(self, folder: Path, step: int, total: int, silent: bool = False):
        self._tables, self._board, self._shown, self._total = {}, None, "", total
        console = Console(stderr=True)
        self._line = None
        if not (silent or console.is_terminal):
            self._line = ProgressLines(logger.info, total, "{:,.0f} steps/day")
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, disable=silent or not console.is_terminal)
        self._task = self._bar.add_task("training", total=total, completed=step)
        if silent:
            return
        self._tables = {name: Log(folder / f"{name}.csv", step) for name in ("train", "validation")}
        try:
            self._board = TensorBoardLogger(folder, "tensorboard", "", purge_step=step)
        except ModuleNotFoundError:
            logger.info("No TensorBoard logs are written; they need: pip install tensorboard")

    def __enter__(self) -> Logs:
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()
        if self._board:
            self._board.finalize("success")

    def add(self, table: str, step: int, seconds: float, **row: float) -> None:
        """Add a row to the table ``train`` or ``validation``."""
        if not self._tables:
            return
        self._tables[table].append(step=step, **row, seconds=round(seconds, 1))
        if self._board:
            self._board.log_metrics({f"{table}/{name}": value for name, value in row.items()}, step)
        self._shown = f"training loss {row['loss']:.3f}" if table == "train" else self._shown
        self._bar.update(self._task, completed=step + 1, description=self._shown)
        if self._line and table == "train":
            self._line(f"step {step + 1:,} of {self._total:,}, {self._shown}", (step + 1) / self._total)

    def flush(self) -> None:
        """Write the tables."""
        for table in self._tables.values():
            table.flush()
