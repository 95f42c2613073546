"""The page, read as text and opened in a real browser (Chromium, where there is one)."""

import base64
import html
import json
import re
import shutil
import subprocess

import mdtraj
import numpy as np
import pytest

from openmm_starmd.evaluation import evaluate
from openmm_starmd.evaluation.report.viewer import STICKS_UP_TO, encode, viewer_data
from openmm_starmd.trajectories.sides import read_sides

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def evaluation(hopping):
    generated = hopping(0.1, 2, 400)
    generated.xyz[200:220] *= 1.6
    return evaluate(hopping(0.03, 1, 400), generated)


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    evaluation.to_html(path)
    return path


def browse(page, *options, size="1200,900"):
    """Open the page in the browser; returns stdout and what the browser logged about the page."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--window-size={size}", "--virtual-time-budget=20000", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
def test_page_loads_nothing_from_elsewhere(page):
    text = page.read_text()
    assert page.stat().st_size < 5e6
    assert re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:)""", text) == []
    assert re.findall(r"url\(|@import|fetch\(|XMLHttpRequest|https?://", text) == []
    assert "default-src 'none'" in text  # the browser would refuse to load anything


def test_page_holds_verdict_scores_and_figures(page, evaluation):
    text = html.unescape(page.read_text())
    for sentence in evaluation.verdict.split(". "):
        assert sentence.rstrip(".") in text
    for score in evaluation.scores:
        assert score.name in text
    for title in ("Ramachandran", "Free energy", "RMSF", "Implied timescales", "Chapman-Kolmogorov", "Validity along"):
        assert re.search(rf'<img src="data:image/svg\+xml;base64,[^"]{{1000,}}" alt="{title}', text), title
    assert "Not drawn" not in text


def test_names_of_files_cannot_break_the_page(hopping, tmp_path, without_pictures):
    trajectory = hopping(0.1, 2, 60)
    name = "</script><b>&x.xtc"
    trajectory.save(str(tmp_path / "a.xtc"))
    evaluation = evaluate(trajectory, tmp_path / "a.xtc", trajectory.topology)
    evaluation.settings["generated"] = name.replace("/", "")
    evaluation.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<script><b>" not in text and "&lt;script&gt;&lt;b&gt;&amp;x.xtc" in text


def test_viewer_data_holds_the_frames(evaluation):
    reference, generated = evaluation.comparison.sides
    broken = evaluation.comparison.generated[0].checks[:, 0] == 0
    data = viewer_data({"MD": (reference, broken), "generated": (generated, broken)})
    assert data["mode"] == "sticks" and len(data["elements"]) == reference.topology.n_atoms
    side = data["sides"][1]
    positions = np.frombuffer(base64.b64decode(side["positions"]), "<i2").reshape(200, -1, 3) * data["unit"]
    rows = np.unique(np.linspace(0, 399, 200).round().astype(int))
    truth = generated.trajectories[0].xyz[rows]
    for found, true in zip(positions, truth, strict=True):  # superposed, but of the same shape to a picometre
        a, b = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (found, true))
        assert np.abs(a - b).max() < 0.002
    assert side["times"][0] == 0.1 and side["times"][-1] == 40.0
    assert sum(side["broken"]) == sum((200 <= rows) & (rows < 220))


def test_coordinates_far_away_are_cut_and_not_wrapped():
    found = np.frombuffer(base64.b64decode(encode(np.array([[[100.0, -100.0, 0.1234]]]))), "<i2")
    assert found.tolist() == [32000, -32000, 123]


def test_large_proteins_are_a_trace_of_ca(build_peptide):
    topology, positions = build_peptide("ACDEFGHIKL")
    one = mdtraj.Trajectory(positions[None], mdtraj.Topology.from_openmm(topology))
    topology, xyz = one.topology, [one.xyz]
    for i in range(1, 5):
        topology = topology.join(one.topology)
        xyz.append(one.xyz + 3 * i)
    xyz = np.concatenate(xyz, 1) + np.random.default_rng(0).normal(0, 0.01, (30, 5 * one.n_atoms, 3))
    large = mdtraj.Trajectory(xyz, topology, 10 * np.arange(30.0))
    side, _ = read_sides(large, large)
    assert side.topology.n_atoms > STICKS_UP_TO
    data = viewer_data({"MD": (side, np.zeros(30, dtype=bool))})
    assert data["mode"] == "trace" and data["elements"] == ["C"] * 50
    assert data["chains"] == [list(range(10 * i, 10 * i + 10)) for i in range(5)]


@needs_browser
def test_browser_draws_the_atoms_and_complains_about_nothing(page, evaluation):
    text, complaints = browse(page, "--dump-dom")
    assert complaints == []
    canvases = re.findall(r"<canvas[^>]*>", text)
    assert len(canvases) == 2
    for canvas in canvases:
        assert int(re.search(r'data-atoms="(\d+)"', canvas).group(1)) == evaluation.comparison.sides[0].topology.n_atoms
        assert re.search(r'data-frames="200"', canvas)


@needs_browser
def test_browser_plays_turns_and_shows_broken_frames(page, tmp_path):
    """A script at the end of the page uses its controls and writes what it sees into the title."""
    script = """<script>
    const canvas = document.querySelectorAll("canvas")[1], slider = document.getElementById("viewer-slider");
    const picture = () => canvas.toDataURL(), seen = {};
    const touch = (type, x, y) => canvas.dispatchEvent(
      new PointerEvent(type, {pointerId: 1, clientX: x, clientY: y, bubbles: true}));
    canvas.setPointerCapture = () => {};
    const start = picture();
    touch("pointerdown", 100, 100); touch("pointermove", 160, 120); touch("pointerup", 160, 120);
    seen.turned = picture() !== start;
    canvas.dispatchEvent(new MouseEvent("dblclick"));
    seen.reset = picture() === start;
    canvas.focus();
    canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -300, cancelable: true}));
    seen.zoomed = picture() !== start;
    slider.value = 105; slider.dispatchEvent(new Event("input"));
    seen.frame = canvas.dataset.frame;
    seen.label = document.querySelectorAll("output")[1].textContent;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    seen.drawn = pixels.filter((v, i) => i % 4 === 3 && v > 0).length / (pixels.length / 4);
    seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
    window.requestAnimationFrame = (f) => setTimeout(() => f(performance.now()), 16); // headless may never paint
    document.getElementById("viewer-play").click();
    let tries = 0;
    const wait = () => {
      seen.played = canvas.dataset.frame;
      seen.pictures = [...document.images].every((image) => image.complete && image.naturalWidth > 300);
      if ((seen.pictures && seen.played !== "105") || ++tries > 300) document.title = JSON.stringify(seen);
      else setTimeout(wait, 50);
    };
    wait();
    </script></body>"""
    played = tmp_path / "played.html"
    played.write_text(page.read_text().replace("</body>", script))
    for size in ("1200,900", "500,900"):
        text, complaints = browse(played, "--dump-dom", size=size)
        assert complaints == []
        seen = json.loads(re.search(r"<title>(\{.*?\})</title>", text).group(1))
        assert seen["turned"] and seen["reset"] and seen["zoomed"] and seen["pictures"] and seen["wide"]
        assert seen["frame"] == "105" and seen["label"] == "21.2 ns · broken"
        assert 0.005 < seen["drawn"] < 0.6
        assert seen["played"] != "105"
