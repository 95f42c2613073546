"""Training MD of very many molecules on one GPU (blocks.py), from a file of prepare_blocks.py into that of compact.py.

    python recipes/starmd-peptide/simulate_blocks.py molecules.npz OUTPUT --kind peptides --replicas 2 --minutes 5

Each replica of a peptide starts from 10 ps at 300 K, 40 ps at 600 K and 60 ps at 300 K, as in simulate_starts.py, each
of a domain from 40 ps at 300 K, which keep its fold; then frames every 10 ps. Replicas that come to what
`check_positions` finds unsound are left out. The machine needs no force field, since the file holds that of each
molecule.

Ctrl-C or SIGTERM ends it after the frames that are under way; what there is by then is written.
"""

import argparse
import signal
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import compact
import numpy as np
import peptide_set
import torch

from openmm_starmd.protein.validity import check_positions

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from blocks import Blocks  # noqa: E402

FRAME_STEPS, TIME_STEP = 2500, 0.004  # 10 ps
PREPARATION = {  # steps, K
    "peptides": ((2_500, 300), (10_000, 600), (15_000, 300)),
    "domains": ((10_000, 300),),
}
TOGETHER = 5  # frames between two looks at the clock


def sound(positions: list[np.ndarray], molecules: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Which of the replicas (R, A, 3) of each molecule are, (R,)."""
    return [
        check_positions(torch.from_numpy(x), peptide_set.tokens_of(molecule)).valid.numpy()
        for x, molecule in zip(positions, molecules, strict=True)
    ]


def of_kind(molecules: list[dict[str, np.ndarray]], kind: str) -> list[dict[str, np.ndarray]]:
    """The peptides, or the domains, of a set."""
    return [molecule for molecule in molecules if bool(molecule["folded"]) == (kind == "domains")]


def simulate(
    molecules: list[dict[str, np.ndarray]],
    kind: str,
    output: Path,
    replicas: int,
    picoseconds: float = np.inf,
    minutes: float = np.inf,
    device: bool = True,
    seed: int = 1,
    megabytes: float = np.inf,
):
    """Simulate until one of the two limits is reached, and write what there is by then, also after a failure.

    All molecules are of one kind. Of more than so many megabytes only every second, third... frame is kept.
    """
    begun, interval = time.monotonic(), FRAME_STEPS * TIME_STEP

    def say(what):
        print(f"{time.monotonic() - begun:.0f} s: {what}", flush=True)

    seeds = [zlib.crc32(f"{seed}:{molecule['name']}".encode()) for molecule in molecules]
    blocks = Blocks(molecules, [molecule["positions"] for molecule in molecules], replicas, seeds, device)
    blocks.draw_velocities(300)
    for steps, temperature in PREPARATION[kind]:
        blocks.step(steps, temperature, TIME_STEP)
    say("prepared")
    done, parts, lasted = 0, [], 0.0
    with ThreadPoolExecutor(1) as pool:  # works on what is there while the GPU goes on
        start = pool.submit(sound, blocks.positions, molecules)
        try:
            while done * interval < picoseconds:
                started = time.monotonic()
                if started - begun + lasted > 60 * minutes:
                    break
                count = int(min(TOGETHER, np.ceil(picoseconds / interval - done)))
                frames = blocks.frames(count, FRAME_STEPS, 300, TIME_STEP)
                parts.append(pool.submit(compact.encode, frames, molecules))
                done += count
                lasted = time.monotonic() - started
                rate = count * interval * replicas * len(molecules) / 1000 / lasted
                say(f"{done * interval:.0f} ps, {rate:.1f} ns/s")
        finally:
            if parts:
                encoded = [np.concatenate(own, 1) for own in zip(*(part.result() for part in parts), strict=True)]
                end = sound([x[:, -1] for x in frames], molecules)
                kept = [np.flatnonzero(a & b) for a, b in zip(start.result(), end, strict=True)]
                every = max(1, int(np.ceil(sum(x.nbytes for x in encoded) / (1e6 * megabytes))))
                encoded = [x[:, every - 1 :: every] for x in encoded]
                if encoded[0].shape[1]:
                    compact.write(output, molecules, encoded, kept, every * interval)
                whole = sum(map(len, kept))
                told = f"{whole * done * interval / 1000:.1f} ns, a frame every {every * interval:g} ps"
                say(f"{whole} sound replicas, {told}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecules", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kind", choices=PREPARATION, default="peptides")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--picoseconds", type=float, default=np.inf)
    parser.add_argument("--minutes", type=float, default=np.inf)
    parser.add_argument("--megabytes", type=float, default=np.inf, help="of what is written")
    parser.add_argument("--first", type=int, help="so many molecules only, the smallest")
    parser.add_argument("--cpu", action="store_true", help="without a GPU")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = of_kind(peptide_set.read(given.molecules), given.kind)
    if given.first is not None:
        chosen = sorted(chosen, key=lambda molecule: len(molecule["mass"]))[: given.first]
    if not chosen:
        parser.error(f"{given.molecules} holds no {given.kind}.")
    limits = given.picoseconds, given.minutes
    simulate(chosen, given.kind, given.output, given.replicas, *limits, not given.cpu, given.seed, given.megabytes)
