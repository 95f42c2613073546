#!/usr/bin/env bash
# MDTraj 1.11.1: a DCD file of frames 100 ps apart becomes an XTC file whose frames are 1 ps apart.
#
# What happens: OpenMM writes a DCD file; its header holds the time between frames (100 ps). mdtraj.load reads the
# positions and numbers the frames 0, 1, 2, ...; save_xtc writes these numbers as times in ps.
# Why: MDTraj does not read the interval in the header of DCD files, and a Trajectory cannot say that it has no times: the
# numbers of its frames stand in their place, and every writer takes them for ps. Timescales of the XTC file are 100 times
# too short. Samples that have no time at all (of structure generators that save by MDTraj) look like 1 ps a frame.
#
# Seen with MDTraj 1.11.1.post2 and OpenMM 8.6.1 (Python 3.11, Linux):
#   header of the DCD file: 100 ps; times in the XTC file: [0.0, 1.0, 2.0, 3.0] ps
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mdtraj==1.11.1.post2 openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import struct

import mdtraj
import numpy as np
from openmm import Vec3, unit
from openmm.app import DCDFile, Element, Topology

topology = Topology()
residue = topology.addResidue("AR", topology.addChain())
for i in range(4):
    topology.addAtom(f"A{i}", Element.getBySymbol("Ar"), residue)
with open("argon.dcd", "wb") as file:
    dcd = DCDFile(file, topology, dt=0.002 * unit.picoseconds, interval=50_000)
    for k in range(4):
        dcd.writeModel([Vec3(i, 0.1 * k, 0) for i in range(4)] * unit.nanometers)
header = open("argon.dcd", "rb").read(48)
steps, step = struct.unpack("<i", header[16:20])[0], struct.unpack("<f", header[44:48])[0] * 0.04888821
mdtraj.load("argon.dcd", top=mdtraj.Topology.from_openmm(topology)).save_xtc("argon.xtc")
with mdtraj.open("argon.xtc") as file:
    times = file.read()[1].tolist()
print(f"header of the DCD file: {steps * step:.0f} ps; times in the XTC file: {times} ps")
assert round(steps * step) == 100 and times == [0, 1, 2, 3], "the times are others now"
PYTHON
cd "$folder" && "$folder/env/bin/python" "$folder/show.py"
