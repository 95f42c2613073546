"""The recipes of the models can be trained as they stand, and hold out whole families."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from openmm_starmd.domain import half_capped
from openmm_starmd.model import embedded_cards, embedded_domains
from openmm_starmd.training import TrainingConfig, TrajectoryDataset, toml
from openmm_starmd.trajectories.sources import Packed, as_source

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PROTEINS = RECIPES / "starmd-protein"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/config.toml")), ids=lambda path: path.parent.name)
def test_the_data_of_a_recipe_are_there(path):
    config = TrainingConfig.from_toml(path)
    names = [file.name for source in config.data for file in as_source(source).find()]
    held_out = [*config.validation_names, *(f"*{sequence}_*" for sequence in config.validation_sequences)]
    assert held_out and names
    for pattern in held_out if path.parent != PROTEINS else held_out[:2]:  # MD of the other families is to come
        assert any(fnmatchcase(name, pattern) for name in names), pattern


def test_families_are_held_out_whole():
    table = toml.read(PROTEINS / "families.toml")
    for name, members in table["families"].items():
        names = [f"{member}{form}_101" for member in members for form in ("", "cap", "ph3")]
        held_out = [any(fnmatchcase(name, p) for p in table["validation"]) for name in names]
        assert len(set(held_out)) == 1, name


def test_every_packed_protein_has_one_family():
    families = toml.read(PROTEINS / "families.toml")["families"]
    members = [member for family in families.values() for member in family]
    assert len(members) == len(set(members))
    packed = TrajectoryDataset(Packed(PROTEINS / "proteins"))
    assert {t.name.rpartition("_")[0] for t in packed.trajectories} <= set(members)


@pytest.mark.parametrize("data", ["starmd-dipeptide/peptides", "starmd-protein/proteins", "starmd-peptide/starts"])
def test_packed_chains_are_capped_at_both_ends_or_at_none(data):
    """As the domains of the embedded models say."""
    packed = TrajectoryDataset(Packed(RECIPES / data))
    assert not any(half_capped(t.features) for t in packed.trajectories)
    assert not any(domain.half_capped for domain in embedded_domains().values())


def test_the_card_of_the_dipeptides_counts_its_data():
    names = toml.read(RECIPES / "starmd-dipeptide" / "config.toml")["validation_sequences"]
    trajectories = TrajectoryDataset(Packed(RECIPES / "starmd-dipeptide" / "peptides")).trajectories
    used = [t for t in trajectories if t.sequence not in names]
    counts = []
    for chosen in (trajectories, used):
        peptides = len({(t.sequence, t.features.n_end[0].item()) for t in chosen})
        counts.append((f"{sum(t.n_frames * t.interval for t in chosen) / 1000:g} ns", peptides))
    card = " ".join(embedded_cards()["starmd-dipeptide"].split())
    (whole, all_of_them), (trained, seen) = counts
    assert f"{whole} of MD of {all_of_them} peptides" in card and f"{trained} of {seen} were trained on" in card
    assert f"{whole} of {all_of_them} peptides" in (RECIPES / "README.md").read_text(encoding="utf-8")
