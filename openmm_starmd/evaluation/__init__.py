"""Compare generated with reference trajectories.

``metrics``: torsions, divergences, tICA, filters; ``ensemble``: shapes, free energies; ``structure``: all atoms valid?
``kinetics`` and ``markov``: rates, timescales, Markov state models; ``nulls``: what a score is worth; ``plots``.
"""
