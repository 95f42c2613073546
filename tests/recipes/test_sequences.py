"""No recipe simulates what models are judged by."""

import pytest
from sequences import JUDGED, VALIDATION, all_lengths, charged_tetrapeptides, many_starts, single_starts

from openmm_starmd.systems.peptide import split_caps
from openmm_starmd.training.simulate import within_one_residue


@pytest.mark.parametrize(
    ("peptides", "least", "kept"),
    [
        (single_starts, 200, JUDGED),
        (many_starts, 250, JUDGED),
        (charged_tetrapeptides, 80, JUDGED + VALIDATION),
        (all_lengths, 1400, JUDGED + VALIDATION),
    ],
)
def test_no_judged_peptide_is_simulated(peptides, least, kept):
    names = peptides()
    assert len(set(names)) == len(names) > least
    assert not [n for n in names if any(within_one_residue(split_caps(n)[0], other) for other in kept)]


def test_a_reserved_list_is_kept_out(tmp_path, monkeypatch):
    chosen = next(name for name in charged_tetrapeptides() if "-" not in name)
    (tmp_path / "list.txt").write_text(chosen)
    monkeypatch.setenv("RESERVED", str(tmp_path / "list.txt"))
    for peptides in (single_starts, many_starts, charged_tetrapeptides, all_lengths):
        assert not [n for n in peptides() if within_one_residue(split_caps(n)[0], chosen) and n not in known()]


def known():
    """Tetrapeptides of the first model, which were simulated before any list was kept."""
    from sequences import FIRST

    return FIRST
