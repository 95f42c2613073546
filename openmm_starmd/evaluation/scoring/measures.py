"""What the report measures: every score as sums over pieces of trajectories and a comparison of two such sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openmm_starmd.evaluation.metrics import arrays as metrics
from openmm_starmd.evaluation.metrics import markov
from openmm_starmd.evaluation.metrics import shapes as ensemble
from openmm_starmd.evaluation.metrics.arrays import jensen_shannon
from openmm_starmd.evaluation.metrics.kinetics import HOP
from openmm_starmd.evaluation.scoring.projection import FILTERS, Frames, Projection
from openmm_starmd.evaluation.scoring.scores import Measure

DISTRIBUTIONS, KINETICS, VALIDITY = "distributions", "kinetics", "validity"
PAIRS = 500  # of each piece at each lag, for RMSDs
MIN_RESIDUES_RMSF = 5
MEMORY = ("frozen", "shuffled")  # null models that are wrong about kinetics


def surface(counts: np.ndarray, edges: Sequence[np.ndarray], temperature: float) -> ensemble.FreeEnergySurface:
    """Free energy surface of the counts of a histogram."""
    probability = counts / counts.sum()
    with np.errstate(divide="ignore"):
        energy = -ensemble.GAS_CONSTANT * temperature * np.log(probability / probability.max())
    return ensemble.FreeEnergySurface(energy, probability, tuple(edges), int(counts.sum()), temperature)


LEAST_CONNECTED = 0.9  # share of the transitions in states that reach each other, below which rates are unknown


def _reach_each_other(*counts: np.ndarray) -> bool:
    """Whether in each matrix of counts (n, n) several states, with almost all of the transitions, are connected."""
    return all(
        markov.connected_share(c) >= LEAST_CONNECTED and np.count_nonzero(c.sum(0) + c.sum(1)) > 1 for c in counts
    )


def timescale_ratio(reference: np.ndarray, generated: np.ndarray) -> float:
    """Slowest implied timescales of two matrices of counts at one lag, generated over reference.

    0 where the generated side forgets its state within a lag; nan where the reference does, or where the states of one
    side do not reach each other.
    """
    if not _reach_each_other(reference, generated):
        return float("nan")
    (known,), (found,) = (np.nan_to_num(markov.timescales_of_counts(c, 1, 1)) for c in (reference, generated))
    return float(found / known) if known else float("nan")


def passage_ratio(reference: np.ndarray, generated: np.ndarray) -> float:
    """Geometric mean of the mean first passage times between the reference's two metastable sets, there and back.

    Of two matrices of counts at one lag, generated over reference; nan where one side does not go there and back.
    """
    if not _reach_each_other(reference, generated):
        return float("nan")
    known = markov.fit_counts(reference)
    if known.n_states < 2:
        return float("nan")
    sets = markov.metastable_sets(known, 2, len(reference))
    found = markov.fit_counts(generated)
    there_and_back = (markov.first_passage_times(msm, sets) for msm in (known, found))
    one, two = (times[[0, 1], [1, 0]] for times in there_and_back)
    if not np.isfinite([one, two]).all():
        return float("nan")
    return float(np.exp(np.log(two / one).mean()))


def _vamp2(sums: np.ndarray) -> float:
    """Sum of squared singular values of whitened, mean-free covariances from sums of products of (1, x, y)."""
    n, d = sums[0, 0], (len(sums) - 1) // 2
    covariance = sums / n - np.outer(sums[0], sums[0]) / n**2
    xx, xy, yy = covariance[1 : d + 1, 1 : d + 1], covariance[1 : d + 1, d + 1 :], covariance[d + 1 :, d + 1 :]
    return float(np.trace(np.linalg.pinv(xx, 1e-6) @ xy @ np.linalg.pinv(yy, 1e-6) @ xy.T))


def torsion_counts(projection: Projection, chosen: np.ndarray | slice = slice(None)):
    """Function of Frames: histogram (K, bins) of each of the chosen torsions over its period."""
    periods, bins = projection.torsions.periods[chosen], metrics.TORSION_BINS

    def summarize(frames: Frames) -> np.ndarray:
        place = ((frames.own("angles")[:, chosen] / periods + 0.5) % 1.0 * bins).astype(int) % bins
        place += bins * np.arange(len(periods))
        return np.bincount(place.ravel(), minlength=bins * len(periods)).reshape(-1, bins)

    return summarize


def torsion_divergences(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Divergence of each torsion from its counts (K, bins), bits."""
    return np.array([jensen_shannon(p, q) for p, q in zip(reference, generated, strict=True)])


def _mean_divergence(reference, generated):
    return float(torsion_divergences(reference, generated).mean())


def _rmsf(sums: np.ndarray) -> np.ndarray:
    """Fluctuation of each atom from sums (N, 5) of x, y, z, square and number."""
    mean = sums[:, :4] / sums[:, 4:]
    return np.sqrt(np.maximum(mean[:, 3] - (mean[:, :3] ** 2).sum(1), 0))


def _moments(frames: Frames) -> np.ndarray:
    positions = frames.own("shape").astype(np.float64)
    square = (positions**2).sum((0, 2))
    return np.column_stack([positions.sum(0), square, np.full(len(square), len(positions))])


def _correlations(sums: np.ndarray) -> np.ndarray:
    """Autocorrelation (L, F) from sums (L, 6, F): x, y, x y, x^2, y^2 and number of pairs."""
    n = np.maximum(sums[:, 5], 1)
    x, y, xy, xx, yy = (sums[:, i] / n for i in range(5))
    spread = np.sqrt(np.maximum((xx - x**2) * (yy - y**2), 0))
    return np.where(spread > 1e-8, (xy - x * y) / np.maximum(spread, 1e-8), 0.0)


def _hop_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    return ensemble.mean_absolute_difference(reference[0] / reference[1], generated[0] / generated[1])


def _memory_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    return ensemble.mean_absolute_difference(_correlations(reference), _correlations(generated))


def _spread_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    curves = (s[:, 0] / np.where(s[:, 1] > 0, s[:, 1], np.nan) for s in (reference, generated))
    return ensemble.mean_absolute_difference(*curves)


def _contact_counts(frames: Frames) -> np.ndarray:
    touching = frames.own("contacts")
    return np.append(touching.sum(0), len(touching)).astype(np.float64)


def _contact_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    return ensemble.mean_absolute_difference(*(counts[:-1] / counts[-1] for counts in (reference, generated)))


def _vamp_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    return abs(_vamp2(generated) - _vamp2(reference))


def _population_divergence(reference: np.ndarray, generated: np.ndarray) -> float:
    if min(map(markov.connected_share, (reference, generated))) < LEAST_CONNECTED:
        return float("nan")
    return jensen_shannon(*map(markov.populations_of_counts, (reference, generated)))


def distributions(projection: Projection, limits: Sequence[tuple[float, float]], temperature: float) -> list[Measure]:
    """Scores of single frames, in whatever order. ``limits``: range of the first two tICs on both sides together."""
    edges = [np.linspace(low, high, metrics.TICA_BINS_2D + 1) for low, high in limits]
    edges_1d = np.linspace(*limits[0], metrics.TICA_BINS + 1)

    def line(frames):
        return np.histogram(frames.own("tics")[:, 0], edges_1d)[0]

    def grid(frames):
        return np.histogramdd(frames.own("tics")[:, :2], edges)[0]

    def energy_difference(reference, generated):
        return ensemble.free_energy_difference(*(surface(c, edges, temperature) for c in (reference, generated)))

    def plane(frames):
        return projection.plane.counts(frames.own("plane"))

    def visited(reference, generated):
        return float((generated[:-1][reference[:-1] > 0] > 0).mean())

    backbone = projection.torsions.backbone
    kinds = (("backbone torsions", backbone), ("side-chain torsions", ~backbone))
    found = [
        Measure(name, DISTRIBUTIONS, "bits", "lower", torsion_counts(projection, mask), _mean_divergence)
        for name, mask in kinds
        if mask.any()
    ]
    found += [
        Measure("slowest mode (tICA-0)", DISTRIBUTIONS, "bits", "lower", line, jensen_shannon),
        Measure("two slowest modes (tICA-0,1)", DISTRIBUTIONS, "bits", "lower", grid, jensen_shannon),
        Measure("free energy on tICA-0,1", DISTRIBUTIONS, "kJ/mol", "lower", grid, energy_difference),
        Measure("shape (PC1-PC2)", DISTRIBUTIONS, "bits", "lower", plane, jensen_shannon),
        Measure("recall of shapes", DISTRIBUTIONS, "share", "higher", plane, visited),
    ]
    if len(projection.pairs):
        contacts = "side chains in contact, difference"
        found.append(Measure(contacts, DISTRIBUTIONS, "share", "lower", _contact_counts, _contact_difference))
    if projection.by_alpha and len(projection.atoms) >= MIN_RESIDUES_RMSF:

        def profiles(reference, generated):
            return ensemble.correlation(_rmsf(reference), _rmsf(generated))

        found.append(Measure("RMSF of CA, correlation", DISTRIBUTIONS, "r", "higher", _moments, profiles))
    return found


def transition_counts(projection: Projection):
    """Function of Frames: transitions (n, n) between the states within the common lag time."""
    n_states = projection.states.n_clusters

    def summarize(frames: Frames) -> np.ndarray:
        before, after = frames.pairs("states", frames.lag)
        return np.bincount(before * n_states + after, minlength=n_states**2).reshape(n_states, n_states)

    return summarize


def kinetics(projection: Projection, multiples: Sequence[int]) -> list[Measure]:
    """Scores of pairs of frames that are multiples of the common lag time apart."""
    periods = projection.torsions.periods

    transitions = transition_counts(projection)

    def hops(frames):
        before, after = frames.pairs("angles", frames.lag)
        moved = np.abs(metrics.wrap(after - before, periods)) > HOP
        return np.stack([moved.sum(0), np.full(len(periods), len(moved))])

    def products(frames):
        before, after = (x.astype(np.float64) for x in frames.pairs("tics", frames.lag))
        rows = np.concatenate([np.ones((len(before), 1)), before, after], 1)
        return rows.T @ rows

    def memory(frames):
        sums = []
        for multiple in multiples:
            before, after = frames.pairs("angles", multiple * frames.lag)
            if projection.by_torsions:
                x, y = (metrics.torsion_features(a, periods.astype(np.float32)) for a in (before, after))
            else:
                x, y = frames.pairs("tics", multiple * frames.lag)
            parts = [part.sum(0, dtype=np.float64) for part in (x, y, x * y, x * x, y * y)]
            sums.append(np.stack([*parts, np.full(x.shape[1], len(x))]))
        return np.stack(sums)

    def spread(frames):
        sums = []
        for multiple in multiples:
            before, after = frames.pairs("shape", multiple * frames.lag)
            rows = metrics.subsample(np.arange(len(before)), PAIRS)
            found = ensemble.paired_rmsd(before[rows], after[rows]) if len(rows) else np.zeros(0)
            weight = len(before) / max(1, len(found))
            sums.append([weight * found.sum(), len(before)])
        return np.array(sums)

    def kinetic(name, unit, direction, summarize, compare, **options):
        return Measure(name, KINETICS, unit, direction, summarize, compare, MEMORY, per_frame=False, **options)

    found = [
        kinetic("slowest timescale, ratio to MD", "ratio", "one", transitions, timescale_ratio, most=np.log(2)),
        kinetic("first passage times, ratio to MD", "ratio", "one", transitions, passage_ratio, most=np.log(2)),
        kinetic("decorrelation, difference", "correlation", "lower", memory, _memory_difference),
        kinetic("RMSD against lag, difference", "nm", "lower", spread, _spread_difference),
        kinetic("VAMP-2, difference", "score", "lower", products, _vamp_difference),
    ]
    if len(periods):
        found.append(kinetic("torsions that hop in a lag, difference", "share", "lower", hops, _hop_difference))
    found.append(
        Measure(
            "Markov populations", DISTRIBUTIONS, "bits", "lower", transitions, _population_divergence, per_frame=False
        )
    )
    return found


# of `Projection.checks`: name of the score, unit, how much worse than MD is amber, largest error of MD itself
CHECKS = {
    "BioEmu's filter": ("sound frames (BioEmu's filter)", "share", 0.05),
    "ConfDiff's filter of CA": ("sound CA (ConfDiff's filter)", "share", 0.05),
    "all atoms like MD": ("frames like MD's (99th percentiles)", "share", 0.1, 0.07),
    "clash score": ("clashes per 1,000 atoms", "", 2.0),
    "Ramachandran outliers": ("Ramachandran outliers", "share", 0.05, 0.05),
    "rotamer outliers": ("rotamer outliers", "share", 0.05, 0.05),
    "bond outliers": ("bond outliers", "share", 0.01),
    "angle outliers": ("angle outliers", "share", 0.01),
    "inverted centres": ("inverted centres per frame", "", 0.0),
    "cis peptides": ("cis peptide bonds per frame", "", 0.02),
    "twisted peptides": ("twisted peptide bonds per frame", "", 0.05),
}


def validity(projection: Projection) -> list[Measure]:
    """Means of the checks of single frames. Every null model is made of frames of MD: none of them is a floor."""

    def column(i):
        return lambda frames: np.array([frames.own("checks")[:, i].sum(dtype=np.float64), frames.core])

    def mean(reference, generated):
        return float(generated[0] / generated[1])

    found = []
    for i, check in enumerate(projection.checks):
        name, unit, slack, *most = CHECKS[check]
        direction = "higher" if i < len(FILTERS) else "lower"
        found.append(Measure(name, VALIDITY, unit, direction, column(i), mean, (), True, slack, *most))
    return found
