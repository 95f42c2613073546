"""Measures of the report: every score as sums over pieces of trajectories and a comparison of two such sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial

import numpy as np

from openmm_starmd.evaluation.metrics import dihedrals, markov, shapes
from openmm_starmd.evaluation.metrics.differences import (
    correlation,
    free_energy_difference,
    jensen_shannon,
    mean_absolute_difference,
)
from openmm_starmd.evaluation.metrics.kinetics import correlation_sums, covariance_sums, decorrelation, vamp2
from openmm_starmd.evaluation.metrics.slow_modes import grid_counts
from openmm_starmd.evaluation.scoring.projection import FILTERS, Projection
from openmm_starmd.evaluation.scoring.scores import Measure

DISTRIBUTIONS, KINETICS, VALIDITY = "distributions", "kinetics", "validity"
MIN_RESIDUES_RMSF = 5
PAIRS = 500  # of each piece at each lag, for RMSDs
MEMORY = ("frozen", "shuffled")  # null models that are wrong about kinetics
LEAST_CONNECTED = 0.9  # share of the transitions in states that reach each other, below which rates are unknown


def torsion_counts(projection: Projection, chosen: np.ndarray | slice = slice(None)):
    """Function of Frames: histogram (K, bins) of each of the chosen torsions over its period."""
    return lambda frames: dihedrals.torsion_counts(frames.own("angles")[:, chosen], projection.torsions.periods[chosen])


def transition_counts(projection: Projection):
    """Function of Frames: transitions (n, n) between the states within the common lag time."""
    n = projection.states.n_clusters
    return lambda frames: markov.pair_counts(*frames.pairs("states", frames.lag), n)[0]


class MarkovChain:
    """Markov state model of counts (n, n) at one lag, and what scores ask of it, made when the first score asks."""

    def __init__(self, counts: np.ndarray):
        self.counts = counts

    @classmethod
    def of(cls, counts: np.ndarray) -> MarkovChain:
        """Chain of counts (n, n), one object for equal counts: all scores see one reference and the same resamples."""
        return _markov_chain(np.asarray(counts, dtype=np.float64).tobytes())

    @cached_property
    def share(self) -> float:
        """Share of the transitions within the states that reach each other."""
        return markov.connected_share(self.counts)

    @cached_property
    def moves(self) -> bool:
        """True where several states, with almost all of the transitions, reach each other."""
        return self.share >= LEAST_CONNECTED and np.count_nonzero(self.counts.sum(0) + self.counts.sum(1)) > 1

    @cached_property
    def model(self) -> markov.MarkovStateModel:
        """On the states that reach each other."""
        return markov.fit_counts(self.counts)

    @cached_property
    def two_sets(self) -> np.ndarray:
        """Metastable set, 0 or 1, of each state (n,); -1 for none, which is all of them where there are no two sets."""
        try:
            return markov.metastable_sets(self.model, 2, len(self.counts))
        except ValueError:
            return np.full(len(self.counts), -1)

    @cached_property
    def own_passages(self) -> np.ndarray:
        """Mean first passage times (2, 2) between its own two sets."""
        return markov.first_passage_times(self.model, self.two_sets)


@lru_cache(maxsize=512)  # of 20 states: a few MB
def _markov_chain(counts: bytes) -> MarkovChain:
    square = np.frombuffer(counts)
    return MarkovChain(square.reshape(math.isqrt(square.size), -1))


def timescale_ratio(reference: np.ndarray, generated: np.ndarray) -> float:
    """Slowest implied timescales of two matrices of counts at one lag, generated over reference.

    0 where the generated side forgets its state within a lag; nan where the reference does, or where the states of one
    side do not reach each other.
    """
    chains = MarkovChain.of(reference), MarkovChain.of(generated)
    if not all(chain.moves for chain in chains):
        return float("nan")
    (known,), (found,) = (np.nan_to_num(markov.timescales(chain.model, 1)) for chain in chains)
    return float(found / known) if known else float("nan")


def passage_ratio(reference: np.ndarray, generated: np.ndarray) -> float:
    """Geometric mean of the mean first passage times between the reference's two metastable sets, there and back.

    Of two matrices of counts at one lag, generated over reference; nan where one side does not go there and back, or
    the reference has no two sets.
    """
    known, found = MarkovChain.of(reference), MarkovChain.of(generated)
    if not (known.moves and found.moves) or known.two_sets.max() < 1:
        return float("nan")
    there_and_back = known.own_passages, markov.first_passage_times(found.model, known.two_sets)
    one, two = (times[[0, 1], [1, 0]] for times in there_and_back)
    if not np.isfinite([one, two]).all():
        return float("nan")
    return float(np.exp(np.log(two / one).mean()))


def population_divergence(reference: np.ndarray, generated: np.ndarray) -> float:
    """Divergence, bits, of equilibrium populations by two matrices of counts; nan where states are not connected."""
    chains = MarkovChain.of(reference), MarkovChain.of(generated)
    if min(chain.share for chain in chains) < LEAST_CONNECTED:
        return float("nan")
    return jensen_shannon(*(markov.populations(chain.model, len(chain.counts)) for chain in chains))


def _difference_of(metric):
    """Comparison of two sums: mean absolute difference of what a metric makes of them."""
    return lambda reference, generated: mean_absolute_difference(metric(reference), metric(generated))


def _mean_torsion_jsd(reference, generated):
    return float(dihedrals.torsion_jsd(reference, generated).mean())


def _rmsf_correlation(reference, generated):
    return correlation(shapes.rmsf(reference), shapes.rmsf(generated))


def distributions(projection: Projection, edges: dict[int, list[np.ndarray]], temperature: float) -> list[Measure]:
    """Scores of single frames, in whatever order, on bins of tICA as of `slow_modes.tica_edges`."""

    def touching(frames):
        return np.append(frames.own("contacts").sum(0), frames.core).astype(np.float64)

    def on_tics(dimensions):
        return lambda frames: grid_counts(frames.own("tics"), edges[dimensions])

    def plane(frames):
        return projection.plane.counts(frames.own("plane"))

    def moments(frames):
        return shapes.moments(frames.own("shape"))

    def measure(name, *options):
        return Measure(name, DISTRIBUTIONS, *options)

    energy, backbone = partial(free_energy_difference, temperature=temperature), projection.torsions.backbone
    found = [
        measure(name, "bits", "lower", torsion_counts(projection, mask), _mean_torsion_jsd)
        for name, mask in (("backbone torsions", backbone), ("side-chain torsions", ~backbone))
        if mask.any()
    ]
    found += [
        measure("slowest mode (tICA-0)", "bits", "lower", on_tics(1), jensen_shannon),
        measure("two slowest modes (tICA-0,1)", "bits", "lower", on_tics(2), jensen_shannon),
        measure("free energy on tICA-0,1", "kJ/mol", "lower", on_tics(2), energy),
        measure("shape (PC1-PC2)", "bits", "lower", plane, jensen_shannon),
        measure("recall of shapes", "share", "higher", plane, shapes.recall),
    ]
    if len(projection.pairs):
        shares = _difference_of(lambda counts: counts[:-1] / counts[-1])
        found.append(measure("side chains in contact, difference", "share", "lower", touching, shares))
    if projection.by_alpha and len(projection.atoms) >= MIN_RESIDUES_RMSF:
        found.append(measure("RMSF of CA, correlation", "r", "higher", moments, _rmsf_correlation))
    return found


def kinetics(projection: Projection, multiples: Sequence[int]) -> list[Measure]:
    """Scores of pairs of frames that are multiples of the common lag time apart."""
    periods = projection.torsions.periods
    transitions = transition_counts(projection)

    def at_each_lag(frames, name, sums):
        return np.stack([sums(*frames.pairs(name, multiple * frames.lag)) for multiple in multiples])

    def torsion_sums(before, after):
        features = (dihedrals.torsion_features(a, periods.astype(np.float32)) for a in (before, after))
        return correlation_sums(*features)

    def memory(frames):
        if projection.by_torsions:
            return at_each_lag(frames, "angles", torsion_sums)
        return at_each_lag(frames, "tics", correlation_sums)

    def spread(frames):
        return at_each_lag(frames, "shape", lambda *pair: shapes.rmsd_sums(*pair, PAIRS))

    def products(frames):
        return covariance_sums(*frames.pairs("tics", frames.lag))

    def hops(frames):
        return dihedrals.hop_counts(*frames.pairs("angles", frames.lag), periods)

    def kinetic(name, unit, direction, summarize, compare, **options):
        return Measure(name, KINETICS, unit, direction, summarize, compare, MEMORY, per_frame=False, **options)

    found = [
        kinetic("slowest timescale, ratio to MD", "ratio", "one", transitions, timescale_ratio, most=np.log(2)),
        kinetic("first passage times, ratio to MD", "ratio", "one", transitions, passage_ratio, most=np.log(2)),
        kinetic("decorrelation, difference", "correlation", "lower", memory, _difference_of(decorrelation)),
        kinetic("RMSD against lag, difference", "nm", "lower", spread, _difference_of(shapes.mean_rmsd)),
        kinetic("VAMP-2, difference", "score", "lower", products, _difference_of(vamp2)),
    ]
    if len(periods):
        rates = _difference_of(lambda counts: counts[0] / counts[1])
        found.append(kinetic("torsions that hop in a lag, difference", "share", "lower", hops, rates))
    populations = transitions, population_divergence
    found.append(Measure("Markov populations", DISTRIBUTIONS, "bits", "lower", *populations, per_frame=False))
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
