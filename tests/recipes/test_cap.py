"""Caps put on a protein that has none."""

import numpy as np
import torch
from cap import cap
from openmm import unit
from openmm.app import PDBFile

from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.residues import VARIANTS
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions


def test_a_capped_protein_has_both_caps_its_own_conformation_and_protonation(tmp_path, build_peptide):
    before, *after = (tmp_path / name for name in ("before.pdb", "after.pdb", "again.pdb"))
    topology, positions = build_peptide("DEWHK", variants={1: "GLH", 3: "HIP"})
    with open(before, "w") as file:
        PDBFile.writeFile(topology, positions * unit.nanometer, file)
    for path in after:
        cap(str(before), str(path))
    assert after[0].read_text() == after[1].read_text()
    free, capped = PDBFile(str(before)), PDBFile(str(after[0]))
    assert [residue.name for residue in capped.topology.residues()] == ["ACE", "ASP", "GLU", "TRP", "HIS", "LYS", "NME"]
    tokens = ResidueTokens.from_topology(capped.topology)
    ends = tokens.features.n_end[0], tokens.features.c_end[-1]
    assert [int(end) for end in ends] == [CAPPED, CAPPED]
    assert [VARIANTS[k] for k in tokens.features.variant] == ["", "GLH", "", "HIP", ""]
    x = capped.getPositions(asNumpy=True)._value
    assert check_positions(torch.as_tensor(x), tokens).failures(()) == []
    ca = [
        x[tokens.backbone[:, 1]],
        free.getPositions(asNumpy=True)._value[[a.index for a in free.topology.atoms() if a.name == "CA"]],
    ]
    apart = [np.linalg.norm(points[:, None] - points, axis=-1) for points in ca]
    assert np.abs(apart[0] - apart[1]).max() < 0.1
