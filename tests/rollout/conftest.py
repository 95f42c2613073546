"""Rollouts by the tiny model, and ways to spoil them."""

import mdtraj
import numpy as np
import pytest
import torch

from openmm_starmd import Propagator, rollout


@pytest.fixture
def run(peptide, tiny_model, tmp_path):
    """Function (name, n_steps, n_replicas, **options) -> positions (B, T, A, 3) of a rollout in folder ``name``."""

    def run(name, n_steps, n_replicas=1, **options):
        topology, positions, _ = peptide
        options = {"stride": 100, "seed": 9, "checkpoint_steps": 2, "resume": True, "device": "cpu"} | options
        start = options.pop("start", positions)
        output = tmp_path / name
        files = rollout(tiny_model, topology, start, n_steps=n_steps, n_replicas=n_replicas, output=output, **options)
        return np.stack([mdtraj.load(str(file), top=str(output / "topology.pdb")).xyz for file in files])

    return run


@pytest.fixture
def samples(monkeypatch):
    """Function (spoilt=()) -> sizes: keeps the sizes of batches that are sampled from then on.

    In the samples of these numbers it tears a residue off the last replica of the batch.
    """

    def samples(spoilt=()):
        sample, sizes = Propagator.step, []

        def step(self, history, generators):
            conformation = sample(self, history, generators)
            if len(sizes) in spoilt:
                with torch.inference_mode():
                    conformation.frames.translations[-1, 0] += 1.0
            sizes.append(len(generators))
            return conformation

        monkeypatch.setattr(Propagator, "step", step)
        return sizes

    return samples
