"""`recipes/starmd-peptide/fit_pulls.py` gives a model pulls and leaves all else of it alone."""

from dataclasses import replace

import mdtraj
import numpy as np
import torch
from fit_pulls import fit, with_pulls

from openmm_starmd import Propagator
from openmm_starmd.protein.conformation import from_positions, to_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.training import TrajectoryDataset


def test_pulls_are_put_to_a_model_and_fitted_alone(tiny_model, build_peptide, tmp_path):
    topology, positions = build_peptide("DAR")
    tokens, atoms = ResidueTokens.from_topology(topology), torch.as_tensor(positions).double()
    start = from_positions(atoms[None], tokens)
    shaken = 0.1 * torch.randn(60, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torsions = start.torsions + shaken * tokens.features.torsion_mask
    frames = to_positions(replace(start.map(lambda x: x.expand(60, *x.shape[1:])), torsions=torsions), atoms, tokens)
    trajectory = mdtraj.Trajectory(frames.numpy(), mdtraj.Topology.from_openmm(topology), time=10.0 * np.arange(60))
    trajectory[0].save_pdb(tmp_path / "DAR.pdb")
    trajectory.save_xtc(tmp_path / "DAR.xtc")

    model, thrice = with_pulls(tiny_model), with_pulls(tiny_model)

    def jump(model):
        propagator = Propagator(model, tokens, 100.0, 300.0)
        return propagator.step(propagator.start(start), torch.Generator().manual_seed(0)).torsions

    torch.testing.assert_close(jump(model), jump(tiny_model))
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    fit(model, TrajectoryDataset([tmp_path], cache=tmp_path / "encoded"), steps=3, strength=1.0)
    changed = {name for name, value in model.denoiser.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("pulls.") for name in changed)
    assert (jump(model) - jump(tiny_model)).abs().max() > 0
    fit(thrice, TrajectoryDataset([tmp_path], cache=tmp_path / "encoded"), steps=3, strength=3.0)
    for name, value in thrice.denoiser.state_dict().items():
        expected = (3 if name.startswith("pulls.out.") else 1) * model.denoiser.state_dict()[name]
        torch.testing.assert_close(value, expected)
