"""Training MD for starmd-peptide: 0.5 ns each of about 200 peptides of 3 to 12 residues; resumable.

    python recipes/starmd-peptide/simulate_peptides.py OUTPUT [PROCESSES]

Every residue type comes to stand in every position, with free and with capped ends. Sequences kept for judging are not
made, nor what is within one residue of them; MDGen's test split is a list of one's own, RESERVED, where it is at hand.
"""

import logging
import os
import sys

from sequences import single_starts

from openmm_starmd.training import simulate

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    output, processes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
    simulate(single_starts(), output, 0.5, frame_interval=5.0, checkpoint_interval=0.25, processes=processes, seed=2026)
