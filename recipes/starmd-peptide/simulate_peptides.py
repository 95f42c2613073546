"""Training MD for starmd-peptide: 0.5 ns each of about 200 peptides of 3 to 12 residues; resumable.

    python recipes/starmd-peptide/simulate_peptides.py OUTPUT [PROCESSES]

Every residue type comes to stand in every position, with free and with capped ends. Sequences kept for judging are not
made, nor what is within one residue of them; MDGen's test split is a list of one's own, RESERVED, where it is at hand.
"""

import logging
import os
import random
import sys
from pathlib import Path

from openmm_starmd.training import simulate
from openmm_starmd.training.simulate import coverage_sequences

# length: blocks of 20 sequences, and one in how many of them has capped ends
BLOCKS_AND_CAPS = {3: (1, 4), 4: (4, 3), 5: (2, 4), 6: (1, 4), 8: (1, 4), 10: (1, 4), 12: (1, 4)}
JUDGED = "DWGR SPHV CNIR QFTK HQL ERSAQ SSGMVF FHGTDEEQ AGHWELKDTV TNSPEGWKYIDR AGVD".split()


def reserved() -> list[str]:
    """MDGen's test split, from the file that RESERVED names."""
    path = os.environ.get("RESERVED")
    return Path(path).read_text().split() if path else []


def sequences() -> list[str]:
    """In random order, tetrapeptides rather earlier than others."""
    exclude = JUDGED + reserved()
    ranked = []
    for length, (blocks, caps) in BLOCKS_AND_CAPS.items():
        rng = random.Random(length)
        for k, sequence in enumerate(coverage_sequences(length, blocks, seed=2026 + length, exclude=exclude)):
            name = f"ace-{sequence}-nme" if k % caps == caps - 1 else sequence
            ranked.append((rng.random() + 0.15 * abs(length - 4), name))
    return [name for _, name in sorted(ranked)]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    output, processes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
    simulate(sequences(), output, 0.5, frame_interval=5.0, checkpoint_interval=0.25, processes=processes, seed=2026)
