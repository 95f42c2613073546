#!/usr/bin/env bash
# OpenMM 8.6.1: Context.setState raises for a State of another kind of integrator, but has loaded half of it by then.
#
# What happens: a State with the parameters of a LangevinMiddleIntegrator is set in a Context with a CustomIntegrator, as
# Simulation.loadState does. The call ends in "Unknown property 'version' in node 'IntegratorParameters'". Yet time and
# positions of the Context are those of the State afterwards; a script that catches the error goes on from the middle.
# Why: Context::setState sets time, box, positions, velocities and parameters one after another, and the parameters of
# the integrator last, where the error comes. Nothing is checked beforehand, and nothing is undone.
#
# Seen with OpenMM 8.6.1 (Python 3.11, Linux):
#   error: Unknown property 'version' in node 'IntegratorParameters'
#   time after the error: 5.0 ps (0 before); x of the atom: 1.0 nm (0.5 before)
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import openmm


def context_with(integrator, x):
    system = openmm.System()
    system.addParticle(1.0)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions([openmm.Vec3(x, 0, 0)])
    return context


def told(context):
    state = context.getState(positions=True)
    return state.getTime()._value, state.getPositions()[0][0]._value


custom = openmm.CustomIntegrator(0.001)
custom.addGlobalVariable("a", 3)
custom.addComputePerDof("x", "x+dt*v")
langevin = context_with(openmm.LangevinMiddleIntegrator(300, 1, 0.002), 1.0)
langevin.setTime(5)
saved = langevin.getState(positions=True, velocities=True, parameters=True, integratorParameters=True)
context = context_with(custom, 0.5)
before = told(context)
try:
    context.setState(saved)
    error = "none"
except openmm.OpenMMException as raised:
    error = str(raised)
after = told(context)
print(f"error: {error}")
print(f"time after the error: {after[0]} ps ({before[0]:g} before); x of the atom: {after[1]} nm ({before[1]} before)")
assert "Unknown property" in error, "setState takes the State, or says something else now"
assert (before, after) == ((0.0, 0.5), (5.0, 1.0)), "the Context stays as it was now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
