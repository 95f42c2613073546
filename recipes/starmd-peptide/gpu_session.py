"""All that is worth some minutes of a data-centre GPU, in one command; resumable.

    python recipes/starmd-peptide/gpu_session.py molecules.npz OUTPUT [--minutes 8] [--work WORK] [--cpu]

checks     gpu.py: is blocks.cu its C++ self, are recorded jumps and training steps those that are not?
domains    MD of the domains of molecules.npz (prepare_blocks.py), only where `checks` found blocks.cu as it should be
peptides   MD of its peptides, likewise
training   of the embedded model on both, and on what starts holds
speed      the GPU column of the speed table

Each stage has its share of the minutes; what an earlier one leaves falls to the later ones, and one that is at its end
gets SIGTERM and may write what it has. OUTPUT gets NAME.tar.0, NAME.tar.1... of each (`cat NAME.tar.? | tar x`), and
session.log: at most 8 files of at most 16 MiB, 64 MiB together. A stage whose files are there is skipped: on another
machine, copy them into OUTPUT first. --cpu rehearses all with little of everything; it has been run on a CPU only.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
CHUNK = 16 * 2**20  # bytes of a file
GRACE = 20.0  # seconds to write what there is
MEGABYTES = {"domains": 45, "peptides": 10}  # of numbers; with an index and what a tar adds in three files, and one
CONFIG = """data = {data}
output = "training"
start_from = "starmd-peptide"
batch_size = {batch}
frames = 4
total_steps = {steps}
checkpoint_seconds = 15.0
hidden_types = 0.15
accelerator = "{accelerator}"
"""
Commands = list[list]


@dataclass(frozen=True)
class Stage:
    """Commands that fill the folder ``name`` of the work folder; ``left_out`` are files of it that are not kept."""

    name: str
    share: float
    commands: Callable[[float], Commands]  # of the minutes there are
    files: int = 1
    needs_checks: bool = False
    left_out: tuple[str, ...] = ("checkpoint.pt", "checkpoint.tmp")


def stages(molecules: Path, work: Path, cpu: bool) -> list[Stage]:
    """In the order in which they are worth most."""
    python, small = sys.executable, ["--least", 0.01] if cpu else ["--least", 1]
    compact, starts = HERE / "compact.py", work / "starts"

    def checks(minutes):
        words = ["--data", starts, "--molecules", molecules, "--batches", 2 if cpu else 256, *small]
        gpu = [python, BENCHMARKS / "gpu.py", *words, "--output"]
        md, rest = work / "checks" / "md", work / "checks" / "rest"
        return [
            [*gpu, md, "--sections", "md"],
            [python, compact, "unpack", HERE / "starts", starts],
            [*gpu, rest, "--sections", "sampling", "training"],
        ]

    def md(kind, replicas):
        few = ["--cpu", "--first", 1, "--picoseconds", 40] if cpu else []
        words = ["--kind", kind, "--replicas", 1 if cpu else replicas, "--megabytes", MEGABYTES[kind], *few]
        program = [python, HERE / "simulate_blocks.py", molecules, work / kind]
        return lambda minutes: [[*program, *words, "--minutes", minutes - GRACE / 60]]

    def training(minutes):
        kinds = [kind for kind in MEGABYTES if (work / kind / "index.npz").exists()]
        unpack = [[python, compact, "unpack", work / kind, work / f"{kind}_encoded"] for kind in kinds]
        if not starts.exists():
            unpack.append([python, compact, "unpack", HERE / "starts", starts])
        config = work / "config.toml"
        data = json.dumps(["starts", *(f"{kind}_encoded" for kind in kinds)])
        kind, batch, steps = ("cpu", 2, 3) if cpu else ("cuda", 256, 20_000)
        config.write_text(CONFIG.format(data=data, batch=batch, steps=steps, accelerator=kind))
        train = "import sys; from openmm_starmd.cli import main; sys.exit(main(sys.argv[1:]))"
        return [*unpack, [python, "-c", train, "train", config]]

    def speed(minutes):
        few = ["--residues", 8, "--context", 2, "--steps", 4, 2] if cpu else []
        return [
            [python, BENCHMARKS / "speed.py", "--sections", "goals", *few, *small, "--output", work / "speed/speed"]
        ]

    return [
        Stage("checks", 0.2, checks),
        Stage("domains", 0.4, md("domains", 8), files=3, needs_checks=True),
        Stage("peptides", 0.12, md("peptides", 2), needs_checks=True),
        Stage("training", 0.18, training),
        Stage("speed", 0.1, speed),
    ]


def pack(folder: Path, output: Path, files: int, left_out: tuple[str, ...] = ()) -> list[Path]:
    """Files NAME.tar.0, NAME.tar.1... of a folder, none of them until all are whole; none of an empty folder.

    Raises
    ------
    ValueError
        If so many files do not hold it.
    """
    members = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out]
    if not members:
        return []
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in members:
            tar.add(path, path.relative_to(folder.parent))
    whole = stream.getvalue()
    pieces = [whole[first : first + CHUNK] for first in range(0, len(whole), CHUNK)]
    if len(pieces) > files:
        raise ValueError(f"{folder.name} takes {len(whole)} bytes, and {files} files hold {files * CHUNK}.")
    names = [output / f"{folder.name}.tar.{k}" for k in range(len(pieces))]
    for name, piece in reversed(list(zip(names, pieces, strict=True))):  # the one that tells that all are there at last
        partial = name.with_name("partial")
        partial.write_bytes(piece)
        partial.replace(name)
    return names


def unpack(name: str, output: Path, work: Path) -> bool:
    """Whether a stage's files are there; then their folder lies in the work folder, too."""
    if not (output / f"{name}.tar.0").exists():
        return False
    if not (work / name).exists():
        pieces = sorted(output.glob(f"{name}.tar.?"))
        with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as tar:
            tar.extractall(work, filter="data")
    return True


def run(commands: Commands, until: float, work: Path, log) -> str:
    """Run one after the other until a moment (`time.monotonic`); says how it ended."""
    ends = []
    for command in commands:
        left = until - time.monotonic()
        if left <= 0:
            return ", ".join([*ends, "no time left"])
        log.flush()
        process = subprocess.Popen([str(word) for word in command], cwd=work, stdout=log, stderr=subprocess.STDOUT)
        try:
            ends.append(str(process.wait(left)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return ", ".join([*ends, "at the end of its time"])
    return f"exit {', '.join(ends)}"


def md_is_sound(work: Path) -> bool:
    """Whether gpu.py has found forces and ensemble of blocks.cu as they should be."""
    table = work / "checks" / "md.json"
    results = json.loads(table.read_text())["results"] if table.exists() else {}
    rows = [row for check in ("forces", "ensemble") for row in results.get(check, {"missing": {}}).values()]
    return all(row.get("fine", "NO") == "yes" for row in rows)


def session(plan: list[Stage], output: Path, work: Path, minutes: float):
    """Go through the stages that are not done."""
    for folder in (output, work):
        folder.mkdir(parents=True, exist_ok=True)
    begun, passed = time.monotonic(), 0.0
    todo = [stage for stage in plan if not unpack(stage.name, output, work)]
    whole = sum(stage.share for stage in todo)
    with open(output / "session.log", "a") as log:

        def say(name, what):
            for file in (log, sys.stdout):
                print(f"{time.monotonic() - begun:.0f} s: {name}: {what}", file=file, flush=True)

        for stage in plan:
            if stage not in todo:
                say(stage.name, "there")
                continue
            passed += stage.share / whole
            if stage.needs_checks and not md_is_sound(work):
                say(stage.name, "left out, since blocks.cu is not as it should be")
                continue
            until = begun + 60 * minutes * passed
            (work / stage.name).mkdir(exist_ok=True)
            how = run(stage.commands((until - time.monotonic()) / 60), until - GRACE, work, log)
            try:
                files = pack(work / stage.name, output, stage.files, stage.left_out)
            except ValueError as error:
                how, files = f"{how}; {error}", []
            say(stage.name, f"{how}; {len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecules", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=Path("gpu_session"), help="folder for what is not to be kept")
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU")
    given = parser.parse_args()
    molecules, output, work = (path.resolve() for path in (given.molecules, given.output, given.work))
    session(stages(molecules, work, given.cpu), output, work, given.minutes)
