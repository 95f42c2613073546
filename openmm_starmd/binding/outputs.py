"""Files that OpenMM's reporters append to: the step of each frame or line, and where in the file it ends."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

from openmm.app import DCDReporter, Simulation, XTCReporter

from openmm_starmd.errors import StarMDError
from openmm_starmd.trajectories.xtc import LAST_STEP, frame_ends
from openmm_starmd.trajectories.xtc import MAGIC as XTC_MAGIC

CSV_MAGIC = b'#"'
DCD_MAGIC = struct.pack("<i", 84) + b"CORD"


class Output:
    """A file of a reporter: XTC or DCD, of all atoms or of some, or a log of a StateDataReporter or StarMDReporter.

    A StarMDError refuses another kind of file, and a damaged one.
    """

    def __init__(self, path: str):
        self._path = path
        with open(path, "rb") as file:
            start = file.read(8)
            file.seek(0)
            readers = {XTC_MAGIC: frame_ends, DCD_MAGIC: _dcdFrames, CSV_MAGIC: _logLines}
            kinds = [magic for magic in readers if start.startswith(magic) or magic.startswith(start)]
            if not kinds:
                raise StarMDError(f"{path} is no XTC, no DCD and no CSV file of a reporter; nothing was changed.")
            self._kind = kinds[0]
            try:
                self._atoms = _atomsOf(file, self._kind)
                self._frames = list(readers[self._kind](file))
            except (ValueError, IndexError) as error:
                raise StarMDError(f"{path} is damaged: {error}; nothing was changed.") from error

    @property
    def lastStep(self) -> int:
        """Step of the last whole frame or line; 0 where there is none."""
        return self._frames[-1][0] if self._frames else 0

    @property
    def interval(self) -> int:
        """Steps between frames; 0 where there is none."""
        return self._frames[0][0] if self._frames else 0

    def count(self, step: int, atoms: int) -> int:
        """Number of frames that belong to a run of ``atoms`` up to ``step``, checked to be a regular reporter's."""
        if self._atoms > atoms:
            raise StarMDError(
                f"{self._path} holds {self._atoms} atoms, but the Simulation {atoms}: it is of another run. Nothing "
                "was changed."
            )
        interval = max(1, self.interval)
        if self._kind != CSV_MAGIC and step + interval > LAST_STEP:
            raise StarMDError(
                f"{self._path} cannot go on: XTC and DCD count steps up to {LAST_STEP:,}, and the checkpoint is at "
                f"step {step:,}. Load the checkpoint, set simulation.currentStep = 0 and write new files."
            )
        steps = [number for number, _ in self._frames if number <= step]
        expected = step // interval if self._frames else 0
        if len(steps) != expected or any(number != interval * k for k, number in enumerate(steps, 1)):
            raise StarMDError(
                f"{self._path} does not hold a frame every {interval} steps up to the checkpoint at step {step}. Let "
                "reports start at step 0, keep their interval, and append the CheckpointReporter last."
            )
        return len(steps)

    def cut(self, count: int):
        """Keep the first ``count`` frames."""
        with open(self._path, "r+b") as file:
            file.truncate(self._frames[count - 1][1])
            if self._kind == DCD_MAGIC:  # whose header tells how many frames there are, and the last step
                file.seek(8)
                file.write(struct.pack("<i", count))
                file.seek(20)
                file.write(struct.pack("<i", self._frames[count - 1][0]))


def disagreements(simulation: Simulation) -> list[str]:
    """Faults of the files that the reporters of a Simulation are about to append to: a line each."""
    found = []
    for reporter in simulation.reporters:
        path = _appendedTo(reporter)
        if path is None or not os.path.getsize(path):
            continue
        try:
            output, step = Output(path), simulation.currentStep
        except StarMDError:  # a log without steps, which cannot disagree
            continue
        last = output.lastStep
        if not last <= step < last + max(1, output.interval):
            found.append(
                f"{path} ends at step {last}, but the Simulation is at step {step}: frames will be "
                f"{'doubled' if last > step else 'missing'}, and their steps and times in an XTC or DCD file wrong. "
                "Go on with openmm_starmd.resume(simulation, checkpoint, *files)."
            )
    return found


def _appendedTo(reporter) -> str | None:
    """Name of the file that a reporter of OpenMM or of this package goes on with."""
    if not getattr(reporter, "_append", False):
        return None
    if isinstance(reporter, XTCReporter):
        return reporter._fileName
    if isinstance(reporter, DCDReporter) or getattr(reporter, "_openedFile", False):
        name = getattr(reporter._out, "name", None)
        return name if isinstance(name, str) and not name.endswith((".gz", ".bz2")) else None
    return None


def _atomsOf(file, kind: bytes) -> int:
    """Atoms in a frame; 0 for a log, and where the file ends before it tells."""
    place, form = {XTC_MAGIC: (4, ">i"), DCD_MAGIC: (268, "<i"), CSV_MAGIC: (0, None)}[kind]
    file.seek(place)
    data = file.read(4) if form else b""
    file.seek(0)
    return struct.unpack(form, data)[0] if len(data) == 4 else 0


def _dcdFrames(file) -> Iterator[tuple[int, int]]:
    """Step and end of every whole frame, counted by the length of the file: its header may be ahead of its frames."""
    header = file.read(276)
    if len(header) == 276:
        first, interval = struct.unpack("<2i", header[12:20])
        hasBox, atoms = struct.unpack("<i", header[48:52])[0], struct.unpack("<i", header[268:272])[0]
        length = 56 * bool(hasBox) + 3 * (8 + 4 * atoms)
        for index in range((file.seek(0, os.SEEK_END) - 276) // length):
            yield first + index * interval, 276 + (index + 1) * length


def _logLines(file) -> Iterator[tuple[int, int]]:
    """Step and end of every whole line after the header, whose names stand in quotes around the separator."""
    header = file.readline()
    if not header.endswith(b"\n"):
        return
    names = re.findall(rb'"([^"]*)"', header)
    if b"Step" not in names:
        raise ValueError('its header has no column "Step"')
    column, separator = names.index(b"Step"), header[len(names[0]) + 3 :].split(b'"')[0] if len(names) > 1 else None
    for number, line in enumerate(iter(file.readline, b""), 2):
        if line.endswith(b"\n"):
            step = line.strip().split(separator)[column]
            if not step.isdigit():
                raise ValueError(f"line {number} tells no step")
            yield int(step), file.tell()
