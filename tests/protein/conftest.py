"""Proteins in all the forms in which an OpenMM Topology may hold them."""

from functools import cache
from pathlib import Path

import numpy as np
import openmm.app
import pytest
from openmm import unit
from openmm.app import Element, Modeller, PDBFile, Topology

CHARMM_ATOMS = {"H": "HN", "O": "OT1", "OXT": "OT2"}


def rebuilt(topology, positions, atom=None, residue=None, merge_caps=False):
    """Copy of a Topology under other names.

    ``atom(a)`` gives (name, element symbol), the name None to leave it out; ``residue(r)`` gives a name. With
    ``merge_caps`` the atoms of caps become part of the residue beside them, as in CHARMM's PSF files.
    """
    new, twin, kept, made = Topology(), {}, [], {}
    for old_chain in topology.chains():
        chain = new.addChain(old_chain.id)
        row = list(old_chain.residues())
        home = {"ACE": row[1], "NME": row[-2]} if merge_caps else {}
        for r in row:
            host = home.get(r.name, r)
            if host not in made:
                made[host] = new.addResidue(residue(host) if residue else host.name, chain, host.id)
            for a in r.atoms():
                name, symbol = atom(a) if atom else (a.name, a.element.symbol)
                if name is not None:
                    twin[a] = new.addAtom(name if host is r else "Y" + name, Element.getBySymbol(symbol), made[host])
                    kept.append(a.index)
    for a, b in topology.bonds():
        if a in twin and b in twin:
            new.addBond(twin[a], twin[b])
    return new, positions[kept]


def joined(*parts):
    """One Topology of several."""
    modeller = Modeller(Topology(), [] * unit.nanometer)
    for topology, positions in parts:
        modeller.add(topology, positions * unit.nanometer)
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def without(topology, positions, unwanted):
    """Topology without the atoms or residues that ``unwanted`` picks."""
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.delete([x for x in [*topology.atoms(), *topology.residues()] if unwanted(x)])
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def small_molecule(name, atoms, bonds=(), origin=(0.0, 0.0, 3.0)):
    """Residue in a chain of its own; ``atoms`` maps names to element symbols."""
    topology = Topology()
    residue = topology.addResidue(name, topology.addChain())
    made = [topology.addAtom(atom, Element.getBySymbol(symbol), residue) for atom, symbol in atoms.items()]
    for i, j in bonds:
        topology.addBond(made[i], made[j])
    return topology, np.array(origin) + 0.15 * np.arange(len(made))[:, None]


def in_company(peptide):
    """Protein between a ligand whose atoms are named like a residue's, an ion and water."""
    ligand = small_molecule("LIG", {"N": "N", "CA": "C", "C": "C", "O": "O"}, [(0, 1), (1, 2), (2, 3)])
    ion = small_molecule("NA", {"NA": "Na"}, origin=(0.0, 3.0, 0.0))
    water = small_molecule("HOH", {"O": "O", "H1": "H", "H2": "H"}, [(0, 1), (0, 2)], origin=(3.0, 0.0, 0.0))
    return joined(ligand, peptide, ion, water)


def bridged(first, second):
    """Two chains, a disulfide between them and another one inside the first (two CYS there, one here)."""
    apart = second[0], second[1] + np.array([0.0, 0.0, 1.0])
    topology, positions = without(*joined(first, apart), lambda x: x.name == "HG" and x.residue.name == "CYS")
    sulfur = [atom for atom in topology.atoms() if atom.name == "SG"]
    topology.addBond(sulfur[0], sulfur[1])
    topology.addBond(sulfur[2], sulfur[3])
    return topology, positions


def villin():
    """Solvated villin that OpenMM carries for its own tests."""
    pdb = PDBFile(str(Path(openmm.app.__file__).parent / "data" / "test.pdb"))
    return pdb.topology, np.array(pdb.positions.value_in_unit(unit.nanometer))


def in_charmm(topology, positions, **kwargs):
    """Names as CHARMM writes them."""

    def atom(a):
        name = CHARMM_ATOMS.get(a.name, a.name)
        return {("ILE", "CD1"): "CD"}.get((a.residue.name, a.name), name), a.element.symbol

    def residue(r):
        return {"HIS": "HSE"}.get(r.name, r.name)

    return rebuilt(topology, positions, atom, residue, **kwargs)


def as_amide(topology, positions):
    """NME turned into NH2."""

    def atom(a):
        if a.residue.name != "NME":
            return a.name, a.element.symbol
        name = {"N": "N", "H": "HN1", "C": "HN2"}.get(a.name)
        return name, "N" if name == "N" else "H"

    return rebuilt(topology, positions, atom, lambda r: "NH2" if r.name == "NME" else r.name)


SYSTEMS = {
    "first ten types, free ends": lambda build: build("ACDEFGHIKL"),
    "other ten types, capped": lambda build: build("MNPQRSTVWY", True, True),
    "PRO at both free ends": lambda build: build("PGP"),
    "PRO behind a cap": lambda build: build("PAP", True, False),
    "one residue between caps": lambda build: build("V", True, True),
    "variants": lambda build: build("HAHDKHEA", variants={0: "HID", 2: "HIE", 3: "ASH", 4: "LYN", 5: "HIP", 6: "GLH"}),
    "amide": lambda build: as_amide(*build("YGF", False, True)),
    "CHARMM names": lambda build: in_charmm(*build("EHIK")),
    "CHARMM caps inside residues": lambda build: in_charmm(*build("KIR", True, True), merge_caps=True),
    "no hydrogens": lambda build: without(*build("WKPD"), lambda x: hasattr(x, "element") and x.element.symbol == "H"),
    "chain break": lambda build: without(*build("ARGGKIL"), lambda x: hasattr(x, "atoms") and x.name == "GLY"),
    "two chains, disulfides": lambda build: bridged(build("CACMC"), build("GCT")),
    "ligand, ion and water beside": lambda build: in_company(build("NQR")),
    "villin in water": lambda build: villin(),
}


@pytest.fixture(scope="session")
def build_system(build_peptide):
    """Function: name in `SYSTEMS` -> (topology, positions (A, 3) in nm, float64), built once."""

    @cache
    def system(name):
        return SYSTEMS[name](build_peptide)

    return system


@pytest.fixture(params=SYSTEMS)
def system(request, build_system):
    """Every system in turn."""
    return build_system(request.param)
