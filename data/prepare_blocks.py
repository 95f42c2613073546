"""Build and minimise peptides and domains for simulate_blocks.py, into one file of all it has to know; resumable.

    RESERVED=mdgen_test_split.txt python data/prepare_blocks.py molecules.npz [--domains FOLDER...] [--without NAME...]

Some 1,600 sequences of 1 to 12 residues, in random order; the file holds those made so far, after every 100. Every
residue type comes to stand in every position, and 150 have two opposite charges two or three residues apart. Those of
one and two residues stand between caps. Domains are the structures (PDB) of folders, made ready by `prepare`; they
start as they are, minimised; --without leaves out those that are kept for judging.
"""

import argparse
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import peptide_set
from blocks import MOST_ATOMS
from simulate_peptides import JUDGED, reserved
from simulate_starts import VALIDATION
from terms import terms

from openmm_starmd.protein.errors import StarMDError
from openmm_starmd.protein.residues import ONE_LETTER
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import prepare as prepare_structure
from openmm_starmd.training.simulate import (
    coverage_sequences,
    file_name,
    minimized_peptide,
    peptide_system,
    seed_of,
    sound_minimum,
    within_one_residue,
)

CAPPED_BLOCKS = {1: 1, 2: 2}
BLOCKS = {3: 6, 4: 28, 5: 13, 6: 10, 8: 7, 10: 4, 12: 3}  # of 20 sequences
CHARGED = 150
CAPS = 7  # one in how many has them
TOGETHER = 100


def charged_sequences(count: int, seed: int, exclude: list[str]) -> list[str]:
    """Random sequences of 4 to 6 residues in which opposite charges stand two or three residues apart."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        sequence, apart = rng.choices(list(ONE_LETTER.values()), k=rng.choice((4, 4, 5, 6))), rng.choice((2, 3))
        first = rng.randrange(len(sequence) - apart)
        sequence[first], sequence[first + apart] = rng.sample((rng.choice("DE"), rng.choice("KR")), 2)
        sequence = "".join(sequence)
        if sequence not in found and not any(within_one_residue(sequence, other) for other in exclude):
            found.append(sequence)
    return found


def peptides() -> list[str]:
    """In random order."""
    exclude = JUDGED + reserved() + VALIDATION
    sequences = charged_sequences(CHARGED, 71, exclude)
    for length, blocks in BLOCKS.items():
        sequences += coverage_sequences(length, blocks, seed=7070 + length, exclude=exclude)
    names = [f"ace-{s}-nme" if k % CAPS == 0 else s for k, s in enumerate(dict.fromkeys(sequences))]
    random.Random(7070).shuffle(names)
    for length, blocks in CAPPED_BLOCKS.items():
        short = coverage_sequences(length, blocks, seed=7070 + length, exclude=exclude)
        names += [f"ace-{s}-nme" for s in dict.fromkeys(short)]
    return names


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
    chosen = domains(given.domains, given.without) + peptides()[: given.peptides]
    main(chosen, given.output, given.processes)
