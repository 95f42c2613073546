"""Build and minimise peptides and domains for simulate_blocks.py, into one file of all it has to know; resumable.

    RESERVED=mdgen_test_split.txt python recipes/starmd-peptide/prepare_blocks.py molecules.npz \
        [--domains FOLDER...] [--without NAME...]

Some 1,600 sequences of 1 to 12 residues, in random order; the file holds those made so far, after every 100. Every
residue type comes to stand in every position, and 150 have two opposite charges two or three residues apart. Those of
one and two residues stand between caps. Domains are the structures (PDB) of folders, made ready by `prepare`; they
start as they are, minimised; --without leaves out those that are kept for judging.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import peptide_set
from sequences import all_lengths

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import peptide_system
from openmm_starmd.systems import prepare as prepare_structure
from openmm_starmd.systems.peptide import file_name, minimized_peptide, sound_minimum
from openmm_starmd.training.simulate import seed_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from blocks import MOST_ATOMS  # noqa: E402
from terms import terms  # noqa: E402

TOGETHER = 100


def prepare(molecule: str | Path, parts: Path) -> Path | None:
    """Write the file of a peptide, or of the domain in a structure file; None, and a line why, if it cannot be made."""
    folded = isinstance(molecule, Path)
    name = molecule.stem if folded else file_name(molecule)
    path = parts / f"{name}.npz"
    if path.exists():
        return path
    try:
        if folded:
            topology, positions, _ = prepare_structure(molecule)
            if topology.getNumAtoms() > MOST_ATOMS:
                raise StarMDError(f"{topology.getNumAtoms()} atoms, and blocks.cu takes {MOST_ATOMS}")
            topology, positions = sound_minimum(name, [(topology, positions)])
        else:
            topology, positions = minimized_peptide(molecule, seed_of(name, 20261128))
        tokens, system = ResidueTokens.from_topology(topology), peptide_system(topology)
    except (StarMDError, ValueError) as error:  # of a file that no force field knows, too: the others go on
        print(f"{name} is left out: {error}", flush=True)
        return None
    start = (positions - positions.mean(0)).astype(np.float32)
    facts = {"name": name, "sequence": tokens.sequence, "positions": start, "folded": folded}
    peptide_set.write(path, [facts | terms(system) | peptide_set.token_arrays(tokens)])
    return path


def domains(folders: list[Path], without: list[str]) -> list[Path]:
    """Structures of folders; of several with one name, the first."""
    files = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.pdb"), reverse=True)}
    return [path for name, path in sorted(files.items()) if name not in without]


def main(names: list[str | Path], output: Path, processes: int):
    """Make all molecules."""
    parts, done = output.with_suffix(""), []
    parts.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        for k, path in enumerate(pool.map(prepare, names, [parts] * len(names)), 1):
            done += [] if path is None else peptide_set.read(path)
            if done and (k % TOGETHER == 0 or k == len(names)):
                peptide_set.write(output, done)
                print(f"{len(done)} of {len(names)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--domains", type=Path, nargs="+", default=[], help="folders of PDB files")
    parser.add_argument("--without", nargs="+", default=[], help="names of domains that are kept for judging")
    parser.add_argument("--peptides", type=int, help="so many peptides only")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    chosen = domains(given.domains, given.without) + all_lengths()[: given.peptides]
    main(chosen, given.output, given.processes)
