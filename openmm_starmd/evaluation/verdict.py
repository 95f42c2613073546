"""What the scores mean, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openmm_starmd.evaluation.measures import DISTRIBUTIONS, KINETICS, VALIDITY
from openmm_starmd.evaluation.scores import AMBER, GREEN, NONE, RED, UNCLEAR, Score

MANY = 0.5  # share of a group's scores that the reference is too short for


def group_light(scores: Sequence[Score], group: str) -> str:
    """Light of a group: that of its worst score, or unclear where the reference cannot judge half of them."""
    lights = [s.light for s in scores if s.group == group and s.light != NONE]
    if lights and lights.count(UNCLEAR) >= MANY * len(lights):
        return UNCLEAR
    return next((lamp for lamp in (RED, AMBER, GREEN) if lamp in lights), NONE)


def _named(scores: Sequence[Score], name: str) -> Score | None:
    return next((s for s in scores if s.name.startswith(name)), None)


def _below(scores: Sequence[Score], group: str, lamp: str) -> str:
    return ", ".join(s.name.split(",")[0] for s in scores if s.group == group and s.light == lamp)


def _distributions(scores: Sequence[Score]) -> str:
    lamp = group_light(scores, DISTRIBUTIONS)
    if lamp == GREEN:
        return "Distributions: within MD's own error."
    if lamp == AMBER:
        return f"Distributions: near MD's, but outside its own error ({_below(scores, DISTRIBUTIONS, AMBER)})."
    if lamp == RED:
        return f"Distributions: not those of MD ({_below(scores, DISTRIBUTIONS, RED)})."
    return "Distributions: the reference is too short to judge them, its own halves differ too much."


def speed(ratio: float) -> str:
    """A ratio of timescales in words: below one is too fast."""
    if ratio <= 0:
        return "without any memory from frame to frame"
    factor, word = (1 / ratio, "fast") if ratio < 1 else (ratio, "slow")
    return f"{factor:.1f}x too {word}" if factor < 100 else f"more than 100x too {word}"


def _kinetics(scores: Sequence[Score]) -> str:
    slowest, lamp = _named(scores, "slowest timescale"), group_light(scores, KINETICS)
    if slowest is None or math.isnan(slowest.value):
        return "Kinetics: the reference shows no process slower than the lag time."
    if slowest.light == UNCLEAR or lamp == UNCLEAR:
        return "Kinetics: the reference is too short to judge them."
    if slowest.light == GREEN:
        rest = "" if lamp == GREEN else f", except {_below(scores, KINETICS, lamp)}"
        return f"Kinetics: slowest timescale within MD's own error{rest}."
    return f"Kinetics: {speed(slowest.value)}."


def _validity(scores: Sequence[Score]) -> str:
    sound = _named(scores, "sound frames")
    drifting = [s.name.removeprefix("drift of ") for s in scores if s.name.startswith("drift") and s.light == RED]
    drift = f" {' and '.join(drifting).capitalize()} drift along the trajectory." if drifting else ""
    if sound is None:
        return drift.strip()
    broken, usual = 1 - sound.value, 1 - sound.oracle
    if broken <= 0:
        return "No frame is broken." + drift
    beside = f" (MD: {100 * usual:.2g} %)" if usual > 0 else ""
    return f"{100 * broken:.2g} % of frames broken{beside}." + drift


def verdict(scores: Sequence[Score]) -> str:
    """Two or three sentences on distributions, kinetics and validity."""
    return " ".join(filter(None, (_distributions(scores), _kinetics(scores), _validity(scores))))


def caption(group: str) -> str:
    """What a group of scores is about."""
    return {
        DISTRIBUTIONS: "Which conformations are visited, and how often",
        KINETICS: "How fast they turn into one another",
        VALIDITY: "Whether single frames are sound, and stay so",
    }[group]
