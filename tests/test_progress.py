"""Lines about long work in a log file."""

import pytest

from openmm_starmd.progress import ProgressLines


@pytest.fixture
def lines():
    """Function (what is told: second, text, share; **settings) -> lines."""

    def write(told, **settings):
        written, now = [], [0.0]
        progress = ProgressLines(written.append, clock=lambda: now[0], **settings)
        for second, text, done in told:
            now[0] = second
            progress(text, done)
        return written

    return write


def test_a_line_tells_what_is_done_the_speed_and_the_time_left(lines):
    """A run of 100 ns that goes on at a quarter, and makes another quarter in an hour."""
    told = lines([(0, "25 of 100 frames", 0.25), (3600, "50 of 100 frames", 0.5)], amount=100)
    assert told == ["25 of 100 frames, 25.0%", "50 of 100 frames, 50.0%, 600 ns/day, 2.0 h left"]


def test_lines_grow_rare_and_the_last_is_never_left_out(lines):
    day = [(second, f"at {second}", second / 86400) for second in range(1, 86401)]
    told = lines(day)
    assert 100 < len(told) < 200
    assert [line.split(",")[0] for line in told[:4]] == ["at 1", "at 11", "at 31", "at 71"]
    assert told[-1] == "at 86400, 100.0%"


def test_a_stage_without_a_share_and_a_new_stage(lines):
    told = lines([(0, "reading", 0.0), (20, "scoring", 0.5), (60, "drawing", 0.0), (300, "drawing", 0.5)])
    assert told == ["reading", "scoring, 50.0%, 20 s left", "drawing", "drawing, 50.0%, 4 min left"]
    assert lines([(0, "reading", 0.0), (50, "reading", 0.0), (80, "scoring", 0.5)])[-1] == "scoring, 50.0%, 30 s left"
