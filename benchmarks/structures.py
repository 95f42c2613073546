"""Do real protein structures run? Every file through preparation, tokens, jumps and relaxation.

    python benchmarks/structures.py ../shared/data/structures

The folder holds `clean`, `fast_folders` and `monomers`, where each file has to end in a valid run, and `awkward`, where
each file has to end in a valid run or in one clear error that names the cause. Finished files are kept as JSON lines
beside the table (STRUCTURES.json), so that an interrupted run goes on where it was; delete them to measure anew.

What happens to a file
----------------------
prepared     by `openmm_starmd.systems.prepare`
as it comes  (only `awkward`) what OpenMM's reader makes of the file, unchanged

Then `model='auto'` is asked at 300 K and the stride of STRIDE. The model that it chooses takes two jumps. Where it
refuses, its reasons are told as the model gives them that lacks the least, and the mechanics alone are tried: a model
with random weights, which knows every protein, takes small steps about the last conformation.

All of it on one thread of the CPU platform: ForceField (ff14SB and OBC2; Amber 14 without solvent where there is more
than protein), a short minimisation, jumps with the default relaxation. Mechanics of more than LARGE atoms run without
solvent, with a cutoff of 1 nm and for one jump: a `*` in the table.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections import Counter
from functools import cache
from pathlib import Path

os.environ.setdefault("OPENMM_CPU_THREADS", "1")

import numpy as np
import torch
from common import circumstances, results_so_far, write_json
from openmm import GBSAOBCForce, NonbondedForce, Platform, System, unit
from openmm.app import CutoffNonPeriodic, ForceField, HBonds, PDBFile, PDBxFile, Simulation, Topology

from openmm_starmd import StarMDIntegrator, StarMDModel
from openmm_starmd.errors import ModelDomainError, StarMDError
from openmm_starmd.model import Domain, available_models, choose_model, embedded_domains, load_model
from openmm_starmd.network.config import ModelConfig, NetworkConfig
from openmm_starmd.protein.conformation import from_positions, to_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import peptide_system, prepare
from openmm_starmd.systems.chains import is_protein

FOLDERS = ("clean", "fast_folders", "monomers", "awkward", "faults")
PREPARED, AS_IT_COMES, ONLY_PREPARED = "prepared", "as it comes", "only prepared"
LARGE = 300  # atoms
CUTOFF = 1.0  # nm
JUMPS = 2
TEMPERATURE, STRIDE = 300.0, 100.0  # K, ps
MINIMIZATION = 60, 1000  # iterations; the second where the structure then fails the checks
ABSURD = 10.0  # kJ/mol and atom above the minimised structure; 300 K give less than 4
LOOSE = 1e-4  # relative error of a constrained distance; ten times OpenMM's tolerance
BUGS = (LookupError, AttributeError, TypeError, AssertionError, ArithmeticError, RuntimeError)  # no message for a user


def energy_of(context) -> float:
    """Potential energy, kJ/mol."""
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoules_per_mole)


@cache
def small_step_model() -> StarMDModel:
    """An untrained model that knows every protein and makes small steps about the last conformation."""
    network = NetworkConfig(blocks=1, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
    domain = Domain(max_length=2000, min_stride=10.0, max_stride=1000.0, max_chains=100, half_capped=True)
    model = StarMDModel.create(ModelConfig(network, denoising_steps=4), domain, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # its heads start at zero, and the past would have no influence
        for parameter in model.denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.denoiser.step_scales[:, 0] = 0.003  # nm
    model.denoiser.step_scales[:, 1:] = 0.03  # rad
    return model


def read(path: Path) -> tuple[Topology, unit.Quantity, list[str]]:
    """Topology and positions of the first model of a PDB or mmCIF file; nothing is changed."""
    file = PDBxFile(str(path)) if path.suffix == ".cif" else PDBFile(str(path))
    return file.topology, file.positions, []


def make_system(topology: Topology) -> System:
    """ff14SB + OBC2 for protein, Amber 14 in vacuum with a cutoff for anything beside it."""
    if all(is_protein(residue) for residue in topology.residues()):
        return peptide_system(topology)
    return all_of_amber().createSystem(
        topology, nonbondedMethod=CutoffNonPeriodic, nonbondedCutoff=CUTOFF, constraints=HBonds
    )


def make_cheap(system: System) -> None:
    """Take the solvent from a System, and set a cutoff."""
    for index in reversed(range(system.getNumForces())):
        force = system.getForce(index)
        if isinstance(force, GBSAOBCForce):
            system.removeForce(index)
        elif isinstance(force, NonbondedForce):
            force.setNonbondedMethod(NonbondedForce.CutoffNonPeriodic)
            force.setCutoffDistance(CUTOFF)


def chosen_model(topology: Topology, positions, row: dict) -> StarMDModel:
    """The model of ``model="auto"``, whose name goes into the row; else the untrained one, and why auto refuses.

    What is no fold is refused where a run starts; positions are in nm.
    """
    tokens = ResidueTokens.from_topology(topology)
    try:
        model = choose_model(tokens, STRIDE, TEMPERATURE, device="cpu")
        refusal = [told for told in model.domain.check(tokens, STRIDE, TEMPERATURE, positions) if told.reason == "fold"]
    except ModelDomainError:
        domains = sorted(embedded_domains().values(), key=lambda domain: -domain.max_length)
        refusal = min((domain.check(tokens, STRIDE, TEMPERATURE) for domain in domains), key=len)
    if refusal:
        row |= {"auto": "refused", "refusal": "; ".join(refusal)}
        return small_step_model()
    row["auto"] = model.name
    return model


@cache
def all_of_amber() -> ForceField:
    """Protein, nucleic acids, lipids, water and ions."""
    return ForceField("amber14-all.xml", "amber14/tip3p.xml")


def largest_constraint_error(system: System, positions: np.ndarray) -> float:
    """Largest relative deviation of a constrained distance."""
    if not system.getNumConstraints():
        return 0.0
    rows = [system.getConstraintParameters(i) for i in range(system.getNumConstraints())]
    pairs, target = np.array([row[:2] for row in rows]), np.array([row[2]._value for row in rows])
    distance = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=-1)
    return float(np.abs(distance / target - 1).max())


def run(topology: Topology, positions, row: dict):
    """Simulate a structure for a few jumps; what is found goes into the row of the table.

    Raises
    ------
    Exception
        What a user would see.
    """
    system = make_system(topology)
    nanometers = positions.value_in_unit(unit.nanometer) if unit.is_quantity(positions) else positions
    row["atoms"], model = topology.getNumAtoms(), chosen_model(topology, np.array(nanometers), row)
    row["short"] = row["auto"] == "refused" and row["atoms"] > LARGE
    if row["short"]:
        make_cheap(system)
    integrator = StarMDIntegrator(topology, TEMPERATURE, STRIDE, model, randomSeed=1, device="cpu")
    simulation = Simulation(topology, system, integrator, Platform.getPlatform("CPU"), {"Threads": "1"})
    context = simulation.context
    context.setPositions(positions)
    tokens = ResidueTokens.from_topology(topology)
    row["residues"] = tokens.n_residues
    for iterations in MINIMIZATION:
        simulation.minimizeEnergy(maxIterations=iterations)
        start = torch.from_numpy(_positions(context))
        row["failures at the start"] = check_positions(start[None], tokens).failures(0)
        if not check_positions(start[None], tokens, start).failures(0):  # D residues and cis bonds are as they are
            break
    same = to_positions(from_positions(start, tokens), start, tokens)
    row["identity"] = float((same - start).norm(dim=-1).max())
    row["energies"] = [energy_of(context)]
    simulation.step(1 if row["short"] else JUMPS)
    end = _positions(context)
    statistics = integrator.getStatistics()
    row["retries"] = statistics["resampled"]
    row["energies"] += [statistics["last"]["energyBefore"], statistics["last"]["energyAfter"]]
    row["moved"] = float(np.linalg.norm(end - start.numpy(), axis=-1).max())
    row["failures"] = check_positions(torch.from_numpy(end)[None], tokens, start).failures(0)
    excess = (row["energies"][-1] - row["energies"][0]) / row["atoms"]
    if not excess < ABSURD:
        row["failures"].append(f"energy ({excess:.0f} kJ/mol per atom too high)")
    row["constraints"] = largest_constraint_error(system, end)
    if row["constraints"] > LOOSE:
        row["failures"].append("constraints")


def _positions(context) -> np.ndarray:
    return np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)


def examine(path: Path, way: str) -> dict:
    """One row: the result of a run, or the error that it ended in; ``seconds`` are those of the CPU."""
    begin = time.process_time()
    row = {"file": f"{path.parent.name}/{path.name}", "way": way}
    try:
        topology, positions, row["changes"] = (read if way == AS_IT_COMES else prepare)(path)
        if way == AS_IT_COMES:
            row["tokens"] = tokens_or_error(topology)
        if way == ONLY_PREPARED:
            row |= {"residues": topology.getNumResidues(), "atoms": topology.getNumAtoms(), "outcome": "prepared"}
        else:
            run(topology, positions, row)
            row["outcome"] = "INVALID" if row["failures"] else "valid"
    except Exception as error:  # whatever a user would see
        row["origin"] = _origin(error)
        row["outcome"] = "BUG" if isinstance(error, BUGS) and row["origin"] == "openmm_starmd" else "error"
        text = str(error).replace(str(path), path.name).split("For more information")[0]
        row["text"] = f"{type(error).__name__}: {' '.join(text.split())}"
    return row | {"seconds": time.process_time() - begin}


def tokens_or_error(topology: Topology) -> str:
    """What `ResidueTokens` say to a Topology."""
    try:
        return f"{ResidueTokens.from_topology(topology).n_residues} residues"
    except StarMDError as error:
        return f"{type(error).__name__}: {error}"


def _origin(error: Exception) -> str:
    """Who raised it: the last module of this package, of PDBFixer or of OpenMM on the way."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).with_suffix("").parts
        for package in ("openmm_starmd", "pdbfixer", "openmm"):
            if package in parts[:-1]:
                return parts[-1] if package != "openmm_starmd" else package
    return "structures"


def jobs(folder: Path, only_prepare: bool = False) -> list[tuple[Path, str]]:
    """Every file and the ways in which it is examined, small files first."""
    files = [p for name in FOLDERS for p in (folder / name).glob("*") if p.suffix in (".pdb", ".cif")]
    found = []
    for path in sorted(files, key=lambda p: (p.stat().st_size, p.name)):
        ways = (AS_IT_COMES, PREPARED) if path.parent.name == "awkward" else (PREPARED,)
        found += [(path, way) for way in ((ONLY_PREPARED,) if only_prepare else ways)]
    return found


def table(rows: list[dict], facts: dict) -> str:
    """The Markdown page."""
    prepared = all(row["way"] == ONLY_PREPARED for row in rows)
    lines = ["# Real structures under `prepare`" if prepared else "# Real structures under StarMDIntegrator", ""]
    lines += [*(_PREPARED_HEAD if prepared else _RUN_HEAD), "", *(f"- {name}: {fact}" for name, fact in facts.items())]
    head = ["folder", "files", "prepared" if prepared else "valid", "our errors", "OpenMM's errors", "not valid"]
    head += [] if prepared else ["taken by a model"]
    lines += ["", *_markdown([*head, "CPU minutes"], _summary(rows))]
    for folder in FOLDERS:
        found = sorted((r for r in rows if r["file"].startswith(f"{folder}/")), key=lambda r: (r["file"], r["way"]))
        ways = folder == "awkward" and not prepared
        head = ["file", *(["way"] if ways else []), "residues", "atoms"]
        head += [] if prepared else ["auto", "identity", "retries", "minimised", "jump", "relaxed"]
        head += ["result", "seconds", "remarks"]
        lines += ["", f"## {folder}", "", *_markdown(head, [_cells(row, ways, not prepared) for row in found])]
    return "\n".join(lines) + "\n"


_RUN_HEAD = [
    "The docstring of `benchmarks/structures.py` says what happens to a file. Auto: the model that `model='auto'`",
    "chooses at 300 K and 100 ps; the jumps are its. Where auto refuses, the remark says why, and the jumps are of an",
    "untrained model in small steps: they show the mechanics alone. `*`: one jump without solvent and with a cutoff of",
    "1 nm in place of two in OBC2. Identity: how far (nm) atoms move at most on their way through a conformation and",
    "back. Energies (kJ/mol): of the minimised structure, after the last jump, after its relaxation. Seconds are of",
    "one core. An error is one line that names the cause, ours; those of OpenMM come before this package sees a file.",
]
_PREPARED_HEAD = [
    "Made by `python benchmarks/structures.py --only-prepare`: no file was simulated. The remarks are what `prepare`",
    "says: the changes that it made, or the one error that names the cause. Seconds of one CPU core.",
]


def _summary(rows: list[dict]) -> list[list[str]]:
    cells = []
    for folder in FOLDERS:
        found = [row for row in rows if row["file"].startswith(f"{folder}/")]
        for way in sorted({row["way"] for row in found}):
            part = [row for row in found if row["way"] == way]
            outcomes = Counter(row["outcome"] for row in part)
            name = folder if folder != "awkward" else f"{folder}, {way}"
            ours = sum(row["outcome"] == "error" and row["origin"] == "openmm_starmd" for row in part)
            errors = ours, outcomes["error"] - ours
            numbers = (
                len(part),
                outcomes["valid"] + outcomes["prepared"],
                *errors,
                outcomes["INVALID"] + outcomes["BUG"],
            )
            if any(row["way"] != ONLY_PREPARED for row in rows):
                numbers = *numbers, sum(row.get("auto", "refused") != "refused" for row in part)
            cells.append([name, *map(str, numbers), f"{sum(row['seconds'] for row in part) / 60:.1f}"])
    return cells


def _cells(row: dict, with_way: bool, with_run: bool) -> list[str]:
    name = row["file"].split("/")[1] + ("*" if row.get("short") else "")
    cells = [name, *([row["way"]] if with_way else []), str(row.get("residues", "")), str(row.get("atoms", ""))]
    if with_run:
        cells += [row.get("auto", ""), f"{row['identity']:.0e}" if "identity" in row else ""]
        cells += [str(row.get("retries", ""))]
        energies = row.get("energies", [])
        cells += [f"{energy:.0f}" for energy in energies] + [""] * (3 - len(energies))
    remarks = [*([f"auto: {row['refusal']}"] if "refusal" in row else []), *row.get("changes", [])]
    if row.get("failures at the start"):
        remarks.append("at the start: " + ", ".join(row["failures at the start"]))
    if row.get("failures"):
        remarks.append("fails at the end: " + ", ".join(row["failures"]))
    if "text" in row:
        remarks.append(f"{row['origin']}: {row['text']}")
    if "tokens" in row:
        remarks.append(f"tokens: {row['tokens']}")
    return [*cells, row["outcome"], f"{row['seconds']:.1f}", "; ".join(remarks).replace("|", "/")]


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main():
    """Examine what is not yet examined, and write the table after each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[1] / "../shared/data/structures"
    parser.add_argument("folder", nargs="?", type=Path, default=shared)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "STRUCTURES.md")
    parser.add_argument("--only-prepare", action="store_true", help="what `prepare` says, without jumps: minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, stem = circumstances(*map(load_model, available_models())), options.output.with_suffix("")
    rows = results_so_far(stem, facts).get("rows", [])
    known = {(row["file"], row["way"]) for row in rows}
    for path, way in jobs(options.folder, options.only_prepare):
        if (f"{path.parent.name}/{path.name}", way) in known:
            continue
        row = examine(path, way)
        rows.append(row)
        write_json(stem, facts, {"rows": rows})
        print(f"{row['file']} {way}: {row['outcome']} {row.get('text', '')} ({row['seconds']:.1f} s)", flush=True)
        options.output.write_text(table(rows, facts), encoding="utf-8")
    options.output.write_text(table(rows, facts), encoding="utf-8")


if __name__ == "__main__":
    main()
