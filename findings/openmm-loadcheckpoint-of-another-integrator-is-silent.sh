#!/usr/bin/env bash
# OpenMM 8.6.1: Context.loadCheckpoint takes a checkpoint of another kind of integrator without a word.
#
# What happens: a checkpoint of a Context with a LangevinMiddleIntegrator is loaded into a Context of the same System with
# a CustomIntegrator that has a global variable, 3. No error is raised. Afterwards the variable is another number, of the
# order of 1e-304 to 1e-310, which differs from run to run: an integrator with a force constant, a temperature or a seed
# among its variables goes on with almost 0 in their place.
# Why: a checkpoint does not name the integrator, whose part is the end of the file. The variable is read beyond that end
# (so it gets what lay in memory), and the state of the stream is not looked at.
#
# Seen with OpenMM 8.6.1 (Python 3.11, Linux):
#   error: none
#   variable after loading: almost 0 (3.0 before)
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import openmm


def context_with(integrator):
    system = openmm.System()
    system.addParticle(1.0)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("CPU"), {"Threads": "1"})
    context.setPositions([openmm.Vec3(0, 0, 0)])
    return context


custom = openmm.CustomIntegrator(0.001)
custom.addGlobalVariable("a", 3)
custom.addComputePerDof("x", "x+dt*v")
checkpoint = context_with(openmm.LangevinMiddleIntegrator(300, 1, 0.002)).createCheckpoint()
context = context_with(custom)
before = custom.getGlobalVariableByName("a")
try:
    context.loadCheckpoint(checkpoint)
    error = "none"
except openmm.OpenMMException as raised:
    error = str(raised)
after = custom.getGlobalVariableByName("a")
print(f"error: {error}")
print(f"variable after loading: {'almost 0' if abs(after) < 1e-200 else after} ({before} before)")
assert error == "none", "a checkpoint of another integrator is refused now"
assert before == 3 and after != 3, "the variables stay as they were now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
