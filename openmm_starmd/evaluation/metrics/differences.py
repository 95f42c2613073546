"""Differences of distributions, profiles and curves.

Jensen-Shannon divergences are in bits (base 2: 0 for equal, 1 for disjoint distributions): the square of what SciPy's
``jensenshannon(p, q, base=2)`` returns, which itself is nan where rounding makes the divergence of equals negative.
"""

from __future__ import annotations

import numpy as np
from openmm.unit import MOLAR_GAS_CONSTANT_R, kelvin, kilojoules_per_mole
from scipy.special import rel_entr
from scipy.stats import pearsonr

GAS_CONSTANT = MOLAR_GAS_CONSTANT_R.value_in_unit(kilojoules_per_mole / kelvin)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence, in bits, of two histograms of one shape (counts or probabilities)."""
    totals = np.sum(p), np.sum(q)
    if not min(totals) > 0:
        raise ValueError(f"expected two histograms with something in them, found totals of {totals[0]} and {totals[1]}")
    p, q = (np.ravel(x) / total for x, total in zip((p, q), totals, strict=True))
    mean = (p + q) / 2
    return float(max(0.0, rel_entr(p, mean).sum() + rel_entr(q, mean).sum()) / (2 * np.log(2)))


def mean_absolute_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    """Mean of the absolute difference of two curves of one shape, where both are numbers; nan if nowhere."""
    both = np.abs(np.asarray(generated, dtype=float) - np.asarray(reference, dtype=float))
    both = both[np.isfinite(both)]
    return float(both.mean()) if both.size else float("nan")


def correlation(reference: np.ndarray, generated: np.ndarray) -> float:
    """Pearson r of two profiles (N,), such as RMSF; 0 where one of them is flat (to 1e-6) and so explains nothing."""
    if len(reference) < 2 or min(np.std(reference), np.std(generated)) < 1e-6:
        return 0.0
    return float(pearsonr(reference, generated).statistic)


def free_energy(counts: np.ndarray, temperature: float) -> np.ndarray:
    """-kT ln p of a histogram, kJ/mol above its fullest bin, of its shape; inf where no frame has been."""
    probability = counts / counts.sum()
    with np.errstate(divide="ignore"):
        return -GAS_CONSTANT * temperature * np.log(probability / probability.max())


def free_energy_difference(
    reference: np.ndarray, generated: np.ndarray, temperature: float, below: float = 4.0
) -> float:
    """Root mean square difference of -kT ln p, kJ/mol, over the bins of the reference below so many kT.

    Both histograms have the same bins. Probabilities sum to one over all frames, so no constant is free. A bin where
    the generated trajectory has not been counts as visited by half a frame.
    """
    thermal = GAS_CONSTANT * temperature
    low = free_energy(reference, temperature) < below * thermal
    p, q = (counts[low] / counts.sum() for counts in (reference, generated))
    difference = thermal * np.log(p / np.maximum(q, 0.5 / int(generated.sum())))
    return float(np.sqrt((difference**2).mean()))
