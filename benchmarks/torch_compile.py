"""A denoising step operation by operation, recorded, and with the network's blocks compiled by torch.compile.

CPU time a step of one replica, in turns in one process on one thread; compilation needs a C++ compiler and minutes:

    python benchmarks/torch_compile.py 4 35
"""

import argparse
import statistics
import time

import torch
from speed import chain

from openmm_starmd import Propagator, StarMDModel, load_model
from openmm_starmd.diffusion.replay import Eager, Replayed

STEPS = 5  # a run


class Caught(Eager):
    """Runner that keeps the function and its arguments."""

    def run(self, given, state, times=1):
        self.arguments = given, state
        return super().run(given, state, times)


def denoising_step(model: StarMDModel, residues: int) -> tuple:
    """The function that a propagator repeats, with its arguments, for a chain of so many residues."""
    features, start = chain(residues, 1, "cpu")
    tokens = argparse.Namespace(features=features, n_residues=residues, gaps=[], residue_labels=residues * ["ALA"])
    propagator, caught = Propagator(model, tokens, 100.0, 300.0, strict=False), {}

    def runner(use, variant, function, *more):
        caught[use] = Caught(function)
        return caught[use]

    propagator._window.execution.runner = runner
    type(propagator).step.__wrapped__(propagator, propagator.start(start), torch.Generator().manual_seed(0))
    return caught["denoise"]._function, *caught["denoise"].arguments


def milliseconds(ways: dict, turns: int) -> dict[str, float]:
    """Median CPU time a step of each way."""
    found = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            found[name].append(1000 * (time.process_time() - begin) / STEPS)
    return {name: round(statistics.median(times), 2) for name, times in found.items()}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("residues", type=int, nargs="+")
    torch.set_num_threads(1)
    for residues in parser.parse_args().residues:
        function, given, state = denoising_step(load_model("starmd-peptide", "cpu"), residues)
        tape = Replayed(function, torch.device("cpu"))
        ways = {
            "eager": lambda f=function, a=(given, state): Eager(f).run(*a, STEPS),
            "recorded": lambda tape=tape, a=(given, state): tape.run(*a, STEPS),
        }
        for way in (*ways.values(), *ways.values()):  # the second run records
            way()
        print(f"{residues} residues, ms a step: {milliseconds(ways, 7)}", flush=True)
        model = load_model("starmd-peptide", "cpu")
        for k, block in enumerate(model.denoiser.blocks):
            model.denoiser.blocks[k] = torch.compile(block, dynamic=False)
        begin, spent = time.perf_counter(), time.process_time()
        compiled, *arguments = denoising_step(model, residues)
        wall, cpu = time.perf_counter() - begin, time.process_time() - spent
        print(f"first call compiled: {wall:.0f} s, of which {cpu:.0f} s CPU time of this process", flush=True)
        ways["compiled"] = lambda f=compiled, a=arguments: Eager(f).run(*a, STEPS)
        ways["compiled"]()
        print(f"{residues} residues, ms a step: {milliseconds(ways, 9)}", flush=True)


if __name__ == "__main__":
    main()
