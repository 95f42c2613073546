"""Caps put on a protein that has none."""

import numpy as np
import torch
from cap import cap
from openmm.app import PDBFile

from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import build_peptide


def test_a_capped_protein_has_both_caps_and_its_own_conformation(tmp_path):
    topology, positions = build_peptide("DEWAK")
    before, after = tmp_path / "before.pdb", tmp_path / "after.pdb"
    with open(before, "w") as file:
        PDBFile.writeFile(topology, positions, file)
    cap(str(before), str(after))
    free, capped = PDBFile(str(before)), PDBFile(str(after))
    assert [residue.name for residue in capped.topology.residues()] == ["ACE", "ASP", "GLU", "TRP", "ALA", "LYS", "NME"]
    tokens = ResidueTokens.from_topology(capped.topology)
    ends = tokens.features.n_end[0], tokens.features.c_end[-1]
    assert [int(end) for end in ends] == [2, 2]
    x = capped.getPositions(asNumpy=True)._value
    assert check_positions(torch.as_tensor(x), tokens).failures(()) == []
    ca = [
        x[tokens.backbone[:, 1]],
        free.getPositions(asNumpy=True)._value[[a.index for a in free.topology.atoms() if a.name == "CA"]],
    ]
    apart = [np.linalg.norm(points[:, None] - points, axis=-1) for points in ca]
    assert np.abs(apart[0] - apart[1]).max() < 0.1
