"""What is drawn is what was given: places, units and scales."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from openmm_starmd.evaluation.metrics.differences import free_energy
from openmm_starmd.evaluation.metrics.markov import ChapmanKolmogorov, ImpliedTimescales
from openmm_starmd.evaluation.report import plots


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


def line(ax, label):
    return next(x for x in ax.lines if x.get_label() == label)


def test_free_energy_puts_the_first_feature_on_x_and_keeps_one_scale(ax):
    counts = np.array([[10, 0], [0, 0], [0, 1]])
    plots.plot_free_energy(free_energy(counts, 300.0), (np.arange(4), np.arange(8, 11)), ax, "MD")
    mesh = ax.collections[0]
    drawn = mesh.get_array().reshape(2, 3)
    assert drawn[0, 0] == 0 and drawn[1, 2] == pytest.approx(2.494 * np.log(10), abs=0.01) and drawn.mask.sum() == 4
    assert mesh.get_clim() == (0, plots.MAX_ENERGY) and ax.get_xlim() == (0, 3) and ax.get_ylim() == (8, 10)


def test_fluctuations_stand_over_their_residues(ax):
    plots.plot_rmsf({"MD": np.array([0.1, 0.3]), "model": np.array([0.2, 0.1])}, ax)
    assert line(ax, "model").get_xydata().tolist() == [[1, 0.2], [2, 0.1]]
    assert ax.get_xticks().tolist() == [1, 2] and "nm" in ax.get_ylabel()


def test_timescales_are_in_the_time_of_each_ensemble(ax):
    values = np.array([[3.0, 2.0], [4.0, np.nan]])
    data = ImpliedTimescales(np.array([1, 2]), values, 0.5 * values, 2 * values)
    plots.plot_implied_timescales({"MD": data, "model": data}, {"MD": 10.0, "model": 100.0}, ax)
    assert line(ax, "MD").get_xydata() == pytest.approx(np.array([[0.01, 0.03], [0.02, 0.04]]))
    assert line(ax, "model").get_xydata() == pytest.approx(np.array([[0.1, 0.3], [0.2, 0.4]]))
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_timescales_of_a_frozen_trajectory_are_drawn_without_a_warning(ax):
    nothing = np.full((2, 3), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_implied_timescales({"MD": ImpliedTimescales(np.array([1, 2]), *[nothing] * 3)}, 10.0, ax)
        ax.figure.canvas.draw()


def test_prediction_and_estimate_of_each_set(ax):
    predicted, estimated = np.random.default_rng(0).random((2, 3, 2, 2))
    test = ChapmanKolmogorov(np.array([1, 2, 3]), predicted, estimated, estimated - 0.1, estimated + 0.1)
    plots.plot_chapman_kolmogorov(test, 500.0, ax)
    dashed = [x for x in ax.lines if x.get_linestyle() == "--" and len(x.get_xdata())]
    assert [x.get_ydata().tolist() for x in dashed] == [predicted[:, i, i].tolist() for i in (0, 1)]
    assert dashed[0].get_xdata().tolist() == [0.5, 1.0, 1.5]
    assert [c.lines[0].get_ydata().tolist() for c in ax.containers] == [estimated[:, i, i].tolist() for i in (0, 1)]


def test_validity_in_windows(ax):
    valid = np.repeat([True, True, False, True], 25)
    plots.plot_validity({"model": valid}, 100.0, ax, n_windows=4)
    assert ax.lines[0].get_xydata() == pytest.approx(np.array([[1.25, 100], [3.75, 100], [6.25, 0], [8.75, 100]]))
    assert ax.get_legend().get_texts()[0].get_text() == "model: 75.0 %"
    plots.plot_validity({"short": valid[:1]}, 100.0, ax)


def test_decorrelation_is_the_mean_over_torsions(ax):
    plots.plot_decorrelation({"MD": np.array([[0.5, 0.3], [0.2, 0.0]])}, np.array([10.0, 20.0]), ax)
    assert line(ax, "MD").get_xydata() == pytest.approx(np.array([[0.01, 0.4], [0.02, 0.1]]))


def test_bars_of_each_torsion_stand_side_by_side(ax):
    plots.plot_torsion_jsd({"MD halves": np.array([0.1, 0.2]), "model": np.array([0.3, 0.4])}, ["phi", "psi"], ax)
    halves, model = ([(b.get_x(), b.get_height()) for b in c] for c in ax.containers)
    assert halves == [(pytest.approx(-0.4), 0.1), (pytest.approx(0.6), 0.2)]
    assert model == [(pytest.approx(0.0), 0.3), (pytest.approx(1.0), 0.4)]
    assert ax.get_ylim()[1] > 0.4


def test_ramachandran_map_puts_phi_on_x(ax):
    plots.plot_ramachandran(np.radians([-60.0] * 9), np.radians([140.0] * 9), ax, title="beta")
    density = ax.collections[0].get_array().reshape(60, 60)
    row, column = np.argwhere(~np.ma.getmaskarray(density))[0]
    assert (row, column) == (53, 20)  # of psi and phi
