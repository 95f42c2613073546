"""Sentences on what has no scores because the files do not hold it."""

from __future__ import annotations

from collections.abc import Sequence

import mdtraj

from openmm_starmd.evaluation.metrics.contacts import only_backbone
from openmm_starmd.evaluation.scoring.scores import Score

OF_SIDE_CHAINS = ("side-chain torsions", "side chains in contact, difference", "rotamer outliers")
OF_PEPTIDES = (
    "backbone torsions",
    "clashes per 1,000 atoms",
    "Ramachandran outliers",
    "bond outliers",
    "angle outliers",
    "inverted centres per frame",
    "cis peptide bonds per frame",
    "twisted peptide bonds per frame",
)  # scores that need more than CA
HOPS = "torsions that hop in a lag, difference"


def _needs_others(topology: mdtraj.Topology) -> tuple[str, tuple[str, ...]]:
    """Only atoms that both sides share, and scores that need others; empty where side chains are there."""
    side_chains = OF_SIDE_CHAINS if only_backbone(topology) else ()
    if not {atom.name for atom in topology.atoms} & {"N", "C"}:
        return "CA alone", (*OF_PEPTIDES, HOPS, *side_chains)
    return "the backbone and CB alone" if side_chains else "", side_chains


def unscored(scores: Sequence[Score], topology: mdtraj.Topology, no_kinetics: str) -> tuple[str, ...]:
    """Sentences on what has no scores, and why.

    The topology is that of the atoms that both sides share. ``no_kinetics`` says why there are no kinetics; it is empty
    where there are.
    """
    names = {score.name for score in scores}
    shared, needing = _needs_others(topology)
    absent = [name.split(", ")[0] for name in needing if name not in names and not (no_kinetics and name == HOPS)]
    found = [f"Kinetics are not scored: {no_kinetics}."] if no_kinetics else []
    if absent:
        found.append(f"Not scored, because the two sides share {shared}: {', '.join(absent)}.")
    if shared == "CA alone":
        found.append("Frames count as sound by their CA alone.")
    return tuple(found)
