"""Saving, loading, the domain, and what bad files get."""

import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file

from openmm_starmd import available_models, load_model
from openmm_starmd.errors import ModelDomainError, StarMDError
from openmm_starmd.model import Domain, StarMDModel, choose_device
from openmm_starmd.network.config import ModelConfig, NetworkConfig
from openmm_starmd.protein.tokens import ResidueTokens

TINY = ModelConfig(NetworkConfig(blocks=1, width=32, pair_width=8, heads=2, query_points=2, value_points=2))


def test_saved_model_comes_back(tmp_path):
    domain = Domain(min_length=3, max_length=12, force_field="ff14SB")
    model = StarMDModel.create(TINY, domain, seed=3)
    model.card = "# A card"
    model.save(tmp_path / "m.safetensors")
    other = load_model(tmp_path / "m.safetensors", device="cpu")
    assert (other.config, other.domain, other.card, other.name) == (TINY, domain, "# A card", model.name)
    for key, value in model.denoiser.state_dict().items():
        assert torch.equal(value, other.denoiser.state_dict()[key])


def test_creation_is_reproducible_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    a, b, c = (StarMDModel.create(TINY, seed=s).denoiser.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["starmd-dipeptide", "starmd-peptide", "starmd-peptide-fast"])
def test_embedded_model(name):
    assert name in available_models()
    model = load_model(name, device="cpu")
    assert model.name == name and "ff14SB" in model.domain.force_field
    assert model.card.startswith(f"# {name}\n")


@pytest.mark.parametrize("value", [0, 1])
def test_a_setting_that_went_is_read_where_it_says_what_all_models_do(value):
    stored = TINY.to_dict() | {"sink_frames": value}
    if value == 0:
        assert ModelConfig.from_dict(stored) == TINY
    else:
        with pytest.raises(ValueError, match="sink_frames = 1 is not served any more, only 0"):
            ModelConfig.from_dict(stored)


def truncated(path):
    StarMDModel.create(TINY).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(path):
    path.write_bytes(pickle.dumps({"weights": [1.0]}))


def foreign(path):
    save_file({"x": torch.zeros(3)}, str(path))


def of_another_version(path):
    save_file({"x": torch.zeros(3)}, str(path), {"format": "openmm-starmd", "version": "999"})


def without_weights(path):
    StarMDModel.create(TINY).save(path)
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    save_file({"x": torch.zeros(3)}, str(path), metadata)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "No model"),
        (truncated, "truncated"),
        (pickled, "pickle"),
        (foreign, "not an openmm-starmd model"),
        (of_another_version, "version '999'"),
        (without_weights, "does not hold the weights"),
    ],
)
def test_bad_files_get_one_clear_error(tmp_path, spoil, message):
    path = tmp_path / "model.safetensors"
    spoil(path)
    with pytest.raises(StarMDError, match=message):
        load_model(path)


def test_device():
    assert choose_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(StarMDError, match="device"):
            choose_device("cuda")
    with pytest.raises(StarMDError, match="no-such-device"):
        choose_device("no-such-device")


@pytest.mark.parametrize(
    ("stride", "temperature", "domain", "word"),
    [
        (1e4, 300, Domain(max_stride=1000), "stride"),
        (100, 350, Domain(), "350 K"),
        (100, 300, Domain(max_length=3), "residues"),
        (100, 300, Domain(residue_types=("ALA", "GLY")), "LEU"),
    ],
)
def test_domain(build_peptide, stride, temperature, domain, word):
    tokens = ResidueTokens.from_topology(build_peptide("AGLA")[0])
    model = StarMDModel.create(TINY, domain)
    with pytest.raises(ModelDomainError, match=word):
        model.check_domain(tokens, stride, temperature)
    with pytest.warns(UserWarning, match=word):
        model.check_domain(tokens, stride, temperature, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StarMDModel.create(TINY).check_domain(tokens, 100.0, 300.0)
