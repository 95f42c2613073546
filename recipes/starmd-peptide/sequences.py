"""Sequences that the scripts of this folder simulate, and those that no training may see."""

from __future__ import annotations

import os
import random
from itertools import combinations, product
from pathlib import Path

from openmm_starmd.protein.residues import ONE_LETTER
from openmm_starmd.systems.peptide import split_caps
from openmm_starmd.training.simulate import coverage_sequences, within_one_residue

JUDGED = "DWGR SPHV CNIR QFTK HQL ERSAQ SSGMVF FHGTDEEQ AGHWELKDTV TNSPEGWKYIDR AGVD".split()
"""Sequences kept for judging models."""
VALIDATION = "TMFP NQRE VWCW NEGP LDHP GMIR TTDTT MPRYE RMCF KRGYD TIAKVG ALN".split()
"""Sequences held out of training to choose among models."""
FIRST = (
    "CTVL EAKS GYNC HAPF KTNF KWRL LAKQ LLCC LRCW LYCT MRVV MVSL NCTQ NLMT RHAT SGMK SHQN THDF TNIF TQHM WANF WQDT WSWY"
).split()
"""Tetrapeptides that the first model was trained on."""


def reserved() -> list[str]:
    """MDGen's test split, from the file that the environment variable RESERVED names; empty without it."""
    path = os.environ.get("RESERVED")
    return Path(path).read_text().split() if path else []


def single_starts() -> list[str]:
    """Peptides of 3 to 12 residues of `simulate_peptides.py`, in random order, tetrapeptides rather earlier."""
    blocks_and_caps = {3: (1, 4), 4: (4, 3), 5: (2, 4), 6: (1, 4), 8: (1, 4), 10: (1, 4), 12: (1, 4)}
    exclude, ranked = JUDGED + reserved(), []
    for length, (blocks, caps) in blocks_and_caps.items():
        rng = random.Random(length)
        for name in _covering(length, blocks, 2026, exclude, caps):
            ranked.append((rng.random() + 0.15 * abs(length - 4), name))
    return [name for _, name in sorted(ranked)]


def many_starts() -> list[str]:
    """Peptides of 3 to 6 residues, in random order: tetrapeptides rather earlier, new sequences rather later."""
    known = [name for name in [*FIRST, *single_starts()] if len(split_caps(name)[0]) <= 6]
    known = [name for name in known if split_caps(name)[0] not in VALIDATION]
    exclude, new = JUDGED + reserved() + VALIDATION, []
    for length, (blocks, caps) in {4: (4, 3), 3: (1, 4), 5: (1, 4)}.items():
        new += _covering(length, blocks, 5050, exclude, caps)

    def rank(name):
        late = 0.3 * (len(split_caps(name)[0]) != 4) + 0.35 * (name in new)
        return random.Random(f"fast{name}").random() + late

    return sorted({*known, *new}, key=rank)


def charged_tetrapeptides() -> list[str]:
    """Tetrapeptides with two opposite charges, every pair of residues in every two places twice, in random order."""
    exclude, rng, names = JUDGED + reserved() + VALIDATION, random.Random(5), []
    pairs = [pair for a, b in product("DE", "KR") for pair in ((a, b), (b, a))]
    for (first, second), (i, j) in product(2 * pairs, combinations(range(4), 2)):
        sequence = rng.choices("ACFGHILMNPQSTVWY", k=4)
        sequence[i], sequence[j] = first, second
        name = "".join(sequence)
        if not any(within_one_residue(name, other) for other in exclude):
            names.append(f"ace-{name}-nme" if rng.random() < 0.25 else name)
    return rng.sample(names, len(names))


def all_lengths() -> list[str]:
    """Some 1,600 peptides in random order, of 3 to 12 residues; then capped ones of one and two."""
    exclude = JUDGED + reserved() + VALIDATION
    sequences = _charged(150, 71, exclude)
    for length, blocks in {3: 6, 4: 28, 5: 13, 6: 10, 8: 7, 10: 4, 12: 3}.items():
        sequences += coverage_sequences(length, blocks, seed=7070 + length, exclude=exclude)
    names = [f"ace-{s}-nme" if k % 7 == 0 else s for k, s in enumerate(dict.fromkeys(sequences))]
    random.Random(7070).shuffle(names)
    for length, blocks in {1: 1, 2: 2}.items():
        short = coverage_sequences(length, blocks, seed=7070 + length, exclude=exclude)
        names += [f"ace-{s}-nme" for s in dict.fromkeys(short)]
    return names


def _covering(length: int, blocks: int, seed: int, exclude: list[str], caps: int) -> list[str]:
    """`coverage_sequences` of a length, one in ``caps`` of them with capped ends."""
    found = coverage_sequences(length, blocks, seed=seed + length, exclude=exclude)
    return [f"ace-{sequence}-nme" if k % caps == caps - 1 else sequence for k, sequence in enumerate(found)]


def _charged(count: int, seed: int, exclude: list[str]) -> list[str]:
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
