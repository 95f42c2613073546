#!/usr/bin/env bash
# OpenMM 8.6.1: at low pH Modeller.addHydrogens gives the ends of a chain states that its own ff14SB has no template for.
#
# What happens: villin, shortened so that it begins with ASP, all hydrogens taken off. addHydrogens(forcefield, pH=7)
# works; addHydrogens(forcefield, pH=3), with the same force field, ends in "No template found", although ASH and GLH
# are states of ff14SB. The message speaks of a chain that is terminated in an unsupported way, and not of the pH.
# Why: Modeller chooses states by residue name and pH alone. Amber has ASH, GLH, LYN and CYM inside a chain only: there
# is no NASH and no CGLH (there are NHIP and CHIP). Proteins often end in GLU or LYS, so many fail at pH 3 or 11 as a whole.
# The way out is to give addHydrogens the variants, with "ASP" (or "GLU", "LYS") for the ends.
#
# Seen with OpenMM 8.6.1 (Python 3.11, Linux):
#   pH 7: 552 atoms; pH 3: ValueError, No template found for residue 0 (ASP); pH 3 with ASP at the end: 556 atoms, 3 ASH or GLH
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
from pathlib import Path

import openmm.app
from openmm.app import ForceField, Modeller, PDBFile

pdb = PDBFile(str(Path(openmm.app.__path__[0]) / "data" / "test.pdb"))
ff14sb = ForceField("amber14/protein.ff14SB.xml")


def shortened():
    """Villin from its first ASP on, without water, ions and hydrogens."""
    modeller = Modeller(pdb.topology, pdb.positions)
    protein = {atom.residue for atom in modeller.topology.atoms() if atom.name == "CA"}
    modeller.delete([residue for residue in modeller.topology.residues() if residue not in protein])
    residues = list(modeller.topology.residues())
    first = next(k for k, residue in enumerate(residues) if residue.name == "ASP")
    modeller.delete(residues[:first])
    modeller.delete([atom for atom in modeller.topology.atoms() if atom.element.symbol == "H"])
    return modeller


def acids(topology):
    return sum((a.residue.name, a.name) in (("ASP", "HD2"), ("GLU", "HE2")) for a in topology.atoms())


neutral = shortened()
neutral.addHydrogens(ff14sb, pH=7.0)
acidic = shortened()
try:
    acidic.addHydrogens(ff14sb, pH=3.0)
    raise SystemExit("pH 3 works now")
except ValueError as error:
    message = str(error)
given = shortened()
states = [None] * given.topology.getNumResidues()
states[0] = "ASP"
given.addHydrogens(ff14sb, pH=3.0, variants=states)
print(
    f"pH 7: {neutral.topology.getNumAtoms()} atoms; pH 3: ValueError, {message.split('.')[0]}; "
    f"pH 3 with ASP at the end: {given.topology.getNumAtoms()} atoms, {acids(given.topology)} ASH or GLH"
)
assert message.startswith("No template found for residue 0 (ASP)") and "pH" not in message
assert acids(given.topology) == 3
PYTHON
"$folder/env/bin/python" "$folder/show.py"
