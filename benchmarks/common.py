"""What the benchmarks share: the circumstances of a run, and the files that a run leaves."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from openmm_starmd.files import replacing
from openmm_starmd.model import StarMDModel, load_model
from openmm_starmd.plugins import available_propagators

RESULTS = Path(__file__).with_name("results")
LIBRARIES = ("openmm", "torch", "mdtraj", "numpy", "deeptime")


def processor() -> str:
    """Name of the CPU (Linux), else what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version(library: str) -> str:
    """Of an installed library, else a dash."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def command() -> str:
    """The command line that was given, of paths only the last part."""

    def short(word: str) -> str:
        key, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        return key + equals + (Path(value).name or value)

    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(short, sys.argv[1:])])


def weights_of(*models: StarMDModel) -> str:
    """Twelve digits of the SHA-256 hash of the weights of each model, in the order of their names."""
    found = []
    for model in models:
        digest = hashlib.sha256()
        for _, value in sorted(model.denoiser.state_dict().items()):
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found.append(digest.hexdigest()[:12])
    return ", ".join(found)


def models_named(*names: str) -> list[StarMDModel]:
    """Models of these names and paths; propagators such as `elastic` have no weights and are left out."""
    return [load_model(name) for name in names if name not in available_propagators()]


def circumstances(*models: StarMDModel, **more) -> dict[str, str]:
    """Date, command, versions, threads and hardware of this run; names and weights of the models that it uses."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    hardware = f"{processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        hardware += f"; {torch.cuda.get_device_name()}"
    facts = {
        "date": datetime.date.today().isoformat(),
        "command": command(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "threads": torch.get_num_threads(),
        "hardware": hardware,
    }
    if models:
        facts |= {"model": ", ".join(model.name for model in models), "weights": weights_of(*models)}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return facts | {"load of the machine": f"{load:.1f}"} | more


def plain(value):
    """A value that JSON can hold: paths by their names, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return value.name
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: dict[str, dict[str, float]], corner: str = "") -> str:
    """Markdown table, a line per row; cells may be numbers or words."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))

    def cell(value) -> str:
        if isinstance(value, str):
            return value
        return "" if value is None or math.isnan(value) else f"{value:.4g}"

    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {n} | {' | '.join(cell(r.get(c)) for c in columns)} |" for n, r in rows.items()])


def write(stem, title: str, facts: dict, sections: dict[str, str], results: dict) -> None:
    """STEM.md with the facts as a list and a section for each text, and STEM.json with facts and results."""
    lines = [f"# {title}\n", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += [f"\n## {name}\n\n{text}" if name else f"\n{text}" for name, text in sections.items()]
    Path(f"{stem}.md").write_text("\n".join(lines) + "\n")
    write_json(stem, facts, results)


def write_json(stem, facts: dict, results: dict) -> None:
    """STEM.json with facts and results, for programs and `results_so_far`."""
    Path(f"{stem}.json").write_text(json.dumps(plain({"settings": facts, "results": results}), indent=1) + "\n")


def results_so_far(stem: Path, facts: dict) -> dict:
    """Results that a stopped run of the same command and the same weights wrote in STEM.json.

    The results of another command or of other weights do not count, which is printed.
    """
    known = Path(f"{stem}.json")
    if not known.exists():
        return {}
    before = json.loads(known.read_text())
    for name in ("command", "weights"):
        then, now = before["settings"].get(name), facts.get(name)
        if then != now:
            print(f"{known.name} is of another run ({name}: {then}; now: {now}): all starts anew.", file=sys.stderr)
            return {}
    return before["results"]


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Array of a .npy file; where there is none it is made and written, and its CPU time is told."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        begin, value = time.process_time(), make()
        with replacing(path) as partial, open(partial, "wb") as file:
            np.save(file, value)
        print(f"{path.name}: {time.process_time() - begin:.0f} s of CPU", flush=True)
    return np.load(path)


def openmm_seed(seed: int) -> int:
    """A ``--seed``, of which 0 is one like any other, as a seed of OpenMM, where 0 stands for a random one."""
    return seed or 2**31 - 1


def parser(doc: str, stem: str) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring, with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=RESULTS / stem, help="stem of the .md and .json files")
    made.add_argument("--threads", type=int, default=1, help="of PyTorch and of OpenMM's CPU platform")
    made.add_argument("--seed", type=int, default=1, help="0 is a seed like any other")
    return made
