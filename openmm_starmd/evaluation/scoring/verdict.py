"""Meaning of the scores, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openmm_starmd.errors import listed
from openmm_starmd.evaluation.scoring.measures import DISTRIBUTIONS, KINETICS, LEAST_CONNECTED, VALIDITY
from openmm_starmd.evaluation.scoring.scorer import CONNECTED
from openmm_starmd.evaluation.scoring.scores import AMBER, GREEN, NONE, RED, UNCLEAR, Score, percent, written

NOTICEABLE = 1.2  # factor between timescales that the verdict tells even where MD's own error is larger
CAPTIONS = {
    DISTRIBUTIONS: "Which conformations are visited, and how often",
    KINETICS: "How fast they turn into one another",
    VALIDITY: "Whether single frames are sound, and stay so",
}
ENOUGH_SAMPLES = 50  # independent samples of the reference's slowest mode, below which the verdict tells their number


def group_light(scores: Sequence[Score], group: str) -> str:
    """Light of a group: the worst of those scores that the reference can judge; unclear where it can judge none."""
    lights = [s.light for s in scores if s.group == group]
    return next((lamp for lamp in (RED, AMBER, GREEN, UNCLEAR) if lamp in lights), NONE)


def _named(scores: Sequence[Score], name: str) -> Score | None:
    return next((s for s in scores if s.name.startswith(name)), None)


def _with(scores: Sequence[Score], group: str, lamp: str) -> str:
    return listed([s.name.split(", ")[0] for s in scores if s.group == group and s.light == lamp])


def _distributions(scores: Sequence[Score]) -> str:
    lamp = group_light(scores, DISTRIBUTIONS)
    if lamp == GREEN:
        return "Distributions: within MD's own error."
    if lamp == AMBER:
        return f"Distributions: near MD's, but outside its own error ({_with(scores, DISTRIBUTIONS, AMBER)})."
    if lamp == RED:
        return f"Distributions: not those of MD ({_with(scores, DISTRIBUTIONS, RED)})."
    return ""


def times(ratio: float) -> str:
    """Factor by which two values differ, from their ratio, such as ``3.0x``."""
    factor = max(ratio, 1 / ratio)
    return f"{factor:.1f}x" if factor < 100 else "more than 100x"


def _unknown_kinetics(scores: Sequence[Score]) -> str:
    """Why the slowest timescale has no value."""
    connected = _named(scores, CONNECTED)
    shares = (("generated trajectories", connected.value), ("reference", connected.oracle))
    for side, share in shares:
        if share < LEAST_CONNECTED:
            return (
                f"Kinetics: cannot be judged: the states of the {side} do not reach each other ({percent(share)} of "
                "the transitions lie in the largest connected set); run longer."
            )
    return (
        "Kinetics: cannot be judged: the reference shows no process slower than the lag time, or one side stays in one "
        "state."
    )


def _kinetics(scores: Sequence[Score]) -> str:
    slowest, lamp = _named(scores, "slowest timescale"), group_light(scores, KINETICS)
    if slowest is None:
        return ""
    if math.isnan(slowest.value):
        return _unknown_kinetics(scores)
    if slowest.value <= 0:
        return "Kinetics: no memory from frame to frame."
    known = slowest.oracle > 0
    if slowest.light == UNCLEAR:
        word = "shorter" if slowest.value < 1 else "longer"
        own = f"differs {times(slowest.oracle)} from itself" if known else "does not tell its own error"
        return (
            f"Kinetics: cannot be judged: the slowest timescale is {times(slowest.value)} {word} than in this MD, "
            f"which {own}."
        )
    if slowest.light == GREEN:
        rest = "" if lamp == GREEN else f", but not the {_with(scores, KINETICS, lamp)}"
        noticed = max(slowest.value, 1 / slowest.value) > NOTICEABLE
        word = "faster" if slowest.value < 1 else "slower"
        by = f" ({times(slowest.value)} {word})" if noticed else ""
        return f"Kinetics: slowest timescale{by} within MD's own error{rest}."
    blurred = known and not 1 / 1.5 <= slowest.oracle <= 1.5
    note = f" (MD differs {times(slowest.oracle)} from itself)" if blurred else ""
    return f"Kinetics: {times(slowest.value)} too {'fast' if slowest.value < 1 else 'slow'}{note}."


def _validity(scores: Sequence[Score]) -> str:
    sound, found = _named(scores, "sound frames"), []
    if sound.value < 1:
        usual = f" (MD: {percent(1 - sound.oracle)})" if sound.oracle < 1 else ""
        found.append(f"{percent(1 - sound.value)} of frames broken{usual}.")
    far = [s for s in scores if s.group == VALIDITY and s.light == RED and s is not sound]
    drifting = [s.name.removeprefix("drift of ") for s in far if s.name.startswith("drift")]
    others = [
        f"{s.name} ({written(s.value, s.unit)}; MD: {written(s.oracle, s.unit)})"
        for s in far
        if not s.name.startswith("drift")
    ]
    if others:
        found.append(f"Frames are not like MD's: {listed(others)}.")
    if not found:
        found.append("No frame is broken.")
    if drifting:
        found.append(f"Drifting along the trajectory: {' and '.join(drifting)}.")
    return " ".join(found)


def _too_short(scores: Sequence[Score]) -> str:
    unclear = [s.name.split(", ")[0] for s in scores if s.light == UNCLEAR]
    if not unclear:
        return ""
    samples = _named(scores, "independent samples")
    few = samples is not None and samples.oracle < ENOUGH_SAMPLES
    reason = (
        f": the reference holds about {samples.oracle:.0f} independent samples of its slowest motion" if few else ""
    )
    judged = sum(s.light != NONE for s in scores)
    what = ", ".join(unclear) if len(unclear) <= 3 else f"{len(unclear)} of the {judged} scores"
    return f"Too little data to judge {what}{reason}."


def verdict(scores: Sequence[Score], causes: Sequence[str] = (), unscored: Sequence[str] = ()) -> str:
    """A few sentences: what is wrong with the files, distributions, kinetics, validity, and what cannot be told.

    The sentences on ``causes``, what is wrong with the files as a whole, come first; those on what is ``unscored``, and
    why, come last.
    """
    parts = (
        *causes, _distributions(scores), _kinetics(scores), _validity(scores), _too_short(scores), *unscored
    )  # fmt: skip
    return " ".join(part for part in parts if part)
