"""What the scores mean, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openmm_starmd.evaluation.measures import DISTRIBUTIONS, KINETICS, VALIDITY
from openmm_starmd.evaluation.scores import AMBER, GREEN, NONE, RED, UNCLEAR, Score

NOTICEABLE = 1.2  # factor between timescales that the verdict tells even where MD's own error is larger
ENOUGH_SAMPLES = 50  # independent samples of the reference's slowest mode, below which the verdict tells their number


def group_light(scores: Sequence[Score], group: str) -> str:
    """Light of a group: the worst of those scores that the reference can judge; unclear where it can judge none."""
    lights = [s.light for s in scores if s.group == group]
    return next((lamp for lamp in (RED, AMBER, GREEN, UNCLEAR) if lamp in lights), NONE)


def _named(scores: Sequence[Score], name: str) -> Score | None:
    return next((s for s in scores if s.name.startswith(name)), None)


def _with(scores: Sequence[Score], group: str, lamp: str) -> str:
    names = [s.name.split(", ")[0] for s in scores if s.group == group and s.light == lamp]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _distributions(scores: Sequence[Score]) -> str:
    lamp = group_light(scores, DISTRIBUTIONS)
    if lamp == GREEN:
        return "Distributions: within MD's own error."
    if lamp == AMBER:
        return f"Distributions: near MD's, but outside its own error ({_with(scores, DISTRIBUTIONS, AMBER)})."
    if lamp == RED:
        return f"Distributions: not those of MD ({_with(scores, DISTRIBUTIONS, RED)})."
    return ""


def factor(ratio: float) -> float:
    """How many times two values differ, from their ratio; 1 where it is unknown."""
    return max(ratio, 1 / ratio) if ratio > 0 else 1.0


def speed(ratio: float) -> str:
    """A ratio of timescales in words: below one is too fast."""
    if ratio <= 0:
        return "no memory from frame to frame"
    times = f"{factor(ratio):.1f}x" if factor(ratio) < 100 else "more than 100x"
    return f"{times} too {'fast' if ratio < 1 else 'slow'}"


def _kinetics(scores: Sequence[Score]) -> str:
    slowest, lamp = _named(scores, "slowest timescale"), group_light(scores, KINETICS)
    if slowest is None or math.isnan(slowest.value):
        return "Kinetics: the reference shows no process slower than the lag time."
    own, ratio = factor(slowest.oracle), factor(slowest.value)
    word = "faster" if slowest.value < 1 else "slower"
    if slowest.light == UNCLEAR:
        return f"Kinetics: {ratio:.1f}x {word} than this MD, which differs {own:.1f}x from itself."
    if slowest.light == GREEN:
        rest = "" if lamp == GREEN else f", but not the {_with(scores, KINETICS, lamp)}"
        by = f" ({ratio:.1f}x {word})" if ratio > NOTICEABLE else ""
        return f"Kinetics: slowest timescale{by} within MD's own error{rest}."
    return f"Kinetics: {speed(slowest.value)}{f' (MD differs {own:.1f}x from itself)' if own > 1.5 else ''}."


def _validity(scores: Sequence[Score]) -> str:
    sound = _named(scores, "sound frames")
    drifting = [s.name.removeprefix("drift of ") for s in scores if s.name.startswith("drift") and s.light == RED]
    drift = f" Drifting along the trajectory: {' and '.join(drifting)}." if drifting else ""
    broken, usual = 100 * (1 - sound.value), 100 * (1 - sound.oracle)
    if broken <= 0:
        return f"No frame is broken.{drift}"
    return f"{broken:.2g} % of frames broken{f' (MD: {usual:.2g} %)' if usual > 0 else ''}.{drift}"


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


def verdict(scores: Sequence[Score]) -> str:
    """A few sentences on distributions, kinetics and validity, and on what the reference cannot tell."""
    parts = (_distributions(scores), _kinetics(scores), _validity(scores), _too_short(scores))
    return " ".join(part for part in parts if part)


def caption(group: str) -> str:
    """What a group of scores is about."""
    return {
        DISTRIBUTIONS: "Which conformations are visited, and how often",
        KINETICS: "How fast they turn into one another",
        VALIDITY: "Whether single frames are sound, and stay so",
    }[group]
