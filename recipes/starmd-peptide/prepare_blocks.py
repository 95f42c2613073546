"""Build and minimise peptides for simulate_blocks.py, into one file that holds all it has to know; resumable.

    RESERVED=mdgen_test_split.txt python recipes/starmd-peptide/prepare_blocks.py peptides.npz [PROCESSES]

Some 1,550 sequences of 3 to 12 residues, in random order; the file holds those made so far, after every 100. Every
residue type comes to stand in every position, and 150 have two opposite charges two or three residues apart.
"""

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
from openmm_starmd.systems.peptide import file_name, minimized_peptide
from openmm_starmd.training.simulate import seed_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from terms import terms  # noqa: E402

TOGETHER = 100


def prepare(molecule: str, parts: Path) -> Path | None:
    """Write one molecule's file; None if it could not be built."""
    name = file_name(molecule)
    path = parts / f"{name}.npz"
    if path.exists():
        return path
    try:
        topology, positions = minimized_peptide(molecule, seed_of(name, 20261128))
    except StarMDError:
        return None
    tokens = ResidueTokens.from_topology(topology)
    start = (positions - positions.mean(0)).astype(np.float32)
    facts = {"name": name, "sequence": tokens.sequence, "positions": start}
    peptide_set.write(path, [facts | terms(peptide_system(topology)) | peptide_set.token_arrays(tokens)])
    return path


def main(output: Path, processes: int):
    """Make all molecules."""
    parts = output.with_suffix("")
    parts.mkdir(parents=True, exist_ok=True)
    names, done = all_lengths(), []
    with ProcessPoolExecutor(processes) as pool:
        for k, path in enumerate(pool.map(prepare, names, [parts] * len(names)), 1):
            done += [] if path is None else peptide_set.read(path)
            if k % TOGETHER == 0 or k == len(names):
                peptide_set.write(output, done)
                print(f"{len(done)} of {len(names)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count())
