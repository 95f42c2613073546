"""Build and minimise peptides for simulate_blocks.py, into one file that holds all it has to know; resumable.

    RESERVED=mdgen_test_split.txt python recipes/starmd-peptide/prepare_blocks.py peptides.npz [PROCESSES]

Some 1,550 sequences of 3 to 12 residues, in random order; the file holds those made so far, after every 100. Every
residue type comes to stand in every position, and 150 have two opposite charges two or three residues apart.
"""

import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import peptide_set
from simulate_peptides import JUDGED, reserved
from simulate_starts import VALIDATION

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.residues import ONE_LETTER
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import peptide_system
from openmm_starmd.systems.peptide import file_name, minimized_peptide
from openmm_starmd.training.simulate import coverage_sequences, seed_of, within_one_residue

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from terms import terms  # noqa: E402

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
    return names


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
    names, done = peptides(), []
    with ProcessPoolExecutor(processes) as pool:
        for k, path in enumerate(pool.map(prepare, names, [parts] * len(names)), 1):
            done += [] if path is None else peptide_set.read(path)
            if k % TOGETHER == 0 or k == len(names):
                peptide_set.write(output, done)
                print(f"{len(done)} of {len(names)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count())
