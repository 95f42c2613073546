"""Put ACE before and NME behind the one chain of a PDB file that `prepare` wrote; minimised in ff14SB and OBC2.

python recipes/starmd-protein/cap.py FILE.pdb CAPPED.pdb
"""

import math
import sys

import numpy as np
from openmm import Context, LocalEnergyMinimizer, Platform, VerletIntegrator, unit
from openmm.app import Modeller, PDBFile, Topology, element

from openmm_starmd.systems import peptide_system
from openmm_starmd.systems.build import global_random, place

PEPTIDE_BOND, STEPS = 0.1335, 100  # nm; of the minimisation


def cap(source: str, target: str) -> None:
    """Write a capped copy; ACE takes the direction of that hydrogen on N where it has most room, NME that of OXT.

    Hydrogens stay as they are, except those on the first N.
    """
    pdb = PDBFile(source)
    x = pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    residues = list(pdb.topology.residues())
    if pdb.topology.getNumChains() != 1:
        raise SystemExit(f"{source}: expected one chain, found {pdb.topology.getNumChains()}.")
    first, last = ({atom.name: x[atom.index] for atom in residue.atoms()} for residue in (residues[0], residues[-1]))
    (n,) = (atom for atom in residues[0].atoms() if atom.name == "N")
    (c,) = (atom for atom in residues[-1].atoms() if atom.name == "C")
    bonded = {atom for bond in pdb.topology.bonds() if n in bond for atom in bond}
    others = [x[a.index] for a in pdb.topology.atoms() if a.element is not element.hydrogen and a not in bonded]
    gone = {atom for atom in bonded if atom.element is element.hydrogen}
    choices = [_ace(first, x[atom.index]) for atom in gone]
    ace = max(choices, key=lambda atoms: np.linalg.norm(np.array(others) - atoms["CH3"], axis=1).min())
    nme = {"N": _towards(last["C"], last["OXT"])}
    nme["C"] = place(last["CA"], last["C"], nme["N"], 0.145, 121.9, math.pi)

    topology, positions, copies = Topology(), [], {}
    chain = topology.addChain(residues[0].chain.id)

    def residue_of(name: str, atoms: dict[str, np.ndarray]) -> dict:
        residue, made = topology.addResidue(name, chain), {}
        for atom, position in atoms.items():
            made[atom] = topology.addAtom(atom, element.get_by_symbol(atom[0]), residue)
            positions.append(position)
        return made

    before = residue_of("ACE", ace)
    for residue in residues:
        kept = [atom for atom in residue.atoms() if atom not in gone and atom.name != "OXT"]
        made = residue_of(residue.name, {atom.name: x[atom.index] for atom in kept})
        copies |= {atom: made[atom.name] for atom in kept}
    after = residue_of("NME", nme)
    bonds = [(copies[a], copies[b]) for a, b in pdb.topology.bonds() if a in copies and b in copies]
    bonds += [(before["CH3"], before["C"]), (before["C"], before["O"]), (before["C"], copies[n])]
    bonds += [(copies[c], after["N"]), (after["N"], after["C"])]
    for a, b in bonds:
        topology.addBond(a, b)

    modeller = Modeller(topology, np.array(positions) * unit.nanometer)
    platform = Platform.getPlatform("Reference")
    with global_random(1):
        modeller.addHydrogens(platform=platform)
    context = Context(peptide_system(modeller.topology), VerletIntegrator(0.001), platform)
    context.setPositions(modeller.positions)
    LocalEnergyMinimizer.minimize(context, maxIterations=STEPS)
    with open(target, "w") as file:
        PDBFile.writeFile(modeller.topology, context.getState(positions=True).getPositions(), file)


def _towards(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return start + PEPTIDE_BOND * (end - start) / np.linalg.norm(end - start)


def _ace(first: dict[str, np.ndarray], hydrogen: np.ndarray) -> dict[str, np.ndarray]:
    """Heavy atoms of ACE before the first residue, its carbonyl where a hydrogen on N was."""
    carbon = _towards(first["N"], hydrogen)
    methyl, oxygen = (
        place(first["CA"], first["N"], carbon, *shape) for shape in ((0.152, 116.6, math.pi), (0.1229, 122.9, 0.0))
    )
    return {"CH3": methyl, "C": carbon, "O": oxygen}


if __name__ == "__main__":
    cap(*sys.argv[1:])
