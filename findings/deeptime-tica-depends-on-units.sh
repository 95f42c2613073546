#!/usr/bin/env bash
# deeptime 0.5.0: TICA loses a slow process without a word where the same distances are given in nm, not in Angstrom.
#
# What happens: two distances, one that switches slowly between two values 0.016 Angstrom apart, and one of fast noise.
# In Angstrom TICA finds the slow process, with a timescale of 41 steps. In nm it finds the noise alone.
# Why: TICA does not depend on the units of its features, but deeptime drops directions whose variance is below the
# absolute number epsilon = 1e-6 (in square nm: fluctuations of 0.001 nm). Nothing is raised as long as one other feature
# varies more; only where all are small does fit raise ZeroRankError. Features scaled to unit variance are safe.
#
# Seen with deeptime 0.5.0 (Python 3.11, Linux):
#   Angstrom: timescale 41 steps, correlation of the first component with the slow state 1.00
#   nm:       timescale 0 steps, correlation of the first component with the slow state 0.00
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet deeptime==0.5.0 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
from deeptime.decomposition import TICA

random = np.random.default_rng(0)
n_frames, rate = 50_000, 0.01
state = np.cumsum(random.random(n_frames) < rate) % 2
angstrom = np.stack([1.33 + 0.016 * state + random.normal(0, 0.0005, n_frames), random.normal(3.8, 0.05, n_frames)], 1)
found = {}
for unit, distances in (("Angstrom", angstrom), ("nm", angstrom / 10)):
    model = TICA(lagtime=1).fit_fetch(distances)
    component = model.transform(distances)[:, 0]
    timescale = float(model.timescales(lagtime=1)[0]) if len(model.singular_values) else 0.0
    correlation = abs(float(np.corrcoef(component, state)[0, 1]))
    found[unit] = timescale, correlation
    print(f"{unit + ':':9} timescale {timescale:.0f} steps, correlation of the first component with the slow state {correlation:.2f}")
assert 35 < found["Angstrom"][0] < 50 and found["Angstrom"][1] > 0.95
assert not found["nm"][0] > 5 and found["nm"][1] < 0.1, "TICA finds the slow process in nm, too, now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
