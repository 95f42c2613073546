"""The session on a GPU: shares of its minutes, what is skipped, and what it leaves; of small programs."""

import json
import sys
import tarfile
from io import BytesIO

import gpu_session
import pytest
from gpu_session import Stage, session

WAITS = """
import pathlib, signal, sys
def end(*_):
    pathlib.Path(sys.argv[1], "caught").write_text("what there was")
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "begun").write_text("")
signal.pause()
"""


def writes(work, name, text="x", checks=None, **settings):
    """A stage that writes a file, and the table of gpu.py."""
    folder = work / name
    program = f"open({str(folder / 'file')!r}, 'a').write({text!r})"
    if checks is not None:
        program += f"; open({str(folder / 'md.json')!r}, 'w').write({json.dumps({'results': checks})!r})"
    return Stage(name, 0.5, lambda minutes: [[sys.executable, "-c", program]], **settings)


def content(output, name):
    whole = b"".join(path.read_bytes() for path in sorted(output.glob(f"{name}.tar.?")))
    with tarfile.open(fileobj=BytesIO(whole)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def test_what_is_there_is_skipped_and_lies_ready_on_another_machine(tmp_path):
    output, works = tmp_path / "output", (tmp_path / "one", tmp_path / "two")
    for work in works:
        session([writes(work, "first"), writes(work, "second")], output, work, 10)
        assert (work / "first" / "file").read_text() == "x"
    assert content(output, "first") == {"first/file": b"x"}
    assert (output / "session.log").read_text().count("there") == 2


def test_a_stage_that_failed_without_files_is_done_again(tmp_path):
    output, work = tmp_path / "output", tmp_path / "work"
    fails = Stage("first", 1, lambda minutes: [[sys.executable, "-c", "raise SystemExit(3)"]])
    session([fails], output, work, 10)
    assert "first: exit 3; 0 files" in (output / "session.log").read_text()
    session([writes(work, "first")], output, work, 10)
    assert content(output, "first") == {"first/file": b"x"}


@pytest.mark.slow
def test_a_stage_ends_with_its_share_and_what_it_had_is_kept(tmp_path, monkeypatch):
    output, work = tmp_path / "output", tmp_path / "work"
    monkeypatch.setattr(gpu_session, "GRACE", 1.0)
    waits = Stage("first", 0.5, lambda minutes: [[sys.executable, "-c", WAITS, work / "first"]])
    session([waits, writes(work, "second")], output, work, 12 / 60)
    assert content(output, "first")["first/caught"] == b"what there was"
    assert "first: at the end of its time" in (output / "session.log").read_text()
    assert content(output, "second") == {"second/file": b"x"}


FINE, BAD = {"a": {"fine": "yes"}}, {"a": {"fine": "yes"}, "b": {"fine": "NO"}}


@pytest.mark.parametrize(
    ("checks", "goes_on"),
    [
        ({"forces": FINE, "ensemble": FINE, "jumps": BAD}, True),
        ({"forces": FINE, "ensemble": BAD}, False),
        ({"forces": FINE}, False),
        (None, False),
    ],
)
def test_no_md_is_made_where_its_checks_failed(tmp_path, checks, goes_on):
    output, work = tmp_path / "output", tmp_path / "work"
    plan = [writes(work, "checks", checks=checks), writes(work, "domains", needs_checks=True), writes(work, "training")]
    session(plan, output, work, 10)
    assert (output / "domains.tar.0").exists() == goes_on and (output / "training.tar.0").exists()


def test_files_are_of_the_size_that_comes_back(tmp_path, monkeypatch):
    output, work = tmp_path / "output", tmp_path / "work"
    monkeypatch.setattr(gpu_session, "CHUNK", 8192)
    plan = [writes(work, "first", 15_000 * "y", files=3), writes(work, "second", 15_000 * "z", files=1)]
    session(plan, output, work, 10)
    sizes = [path.stat().st_size for path in sorted(output.glob("first.tar.?"))]
    assert max(sizes) <= 8192 and len(sizes) == 3
    assert content(output, "first") == {"first/file": 15_000 * b"y"}
    assert not list(output.glob("second.tar.?")) and "1 files hold 8192" in (output / "session.log").read_text()


@pytest.mark.parametrize("cpu", [True, False])
def test_the_plan_fits_what_comes_back(tmp_path, cpu):
    plan = gpu_session.stages(tmp_path / "set.npz", tmp_path, cpu)
    assert sum(stage.share for stage in plan) == pytest.approx(1)
    assert sum(stage.files for stage in plan) + 1 <= 8
    for kind, megabytes in gpu_session.MEGABYTES.items():
        (files,) = (stage.files for stage in plan if stage.name == kind)
        assert megabytes * 1e6 < 0.95 * files * gpu_session.CHUNK
    assert sum(gpu_session.MEGABYTES.values()) + 8 < 64 * 1.048
