"""A model: weights, configuration, domain and card, in one safetensors file."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from openmm_starmd.diffusion.process import Process
from openmm_starmd.errors import ModelDomainError, StarMDError
from openmm_starmd.files import save_tensors
from openmm_starmd.network.config import ModelConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueTokens

FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domain:
    """Where a model was trained.

    Parameters
    ----------
    min_length, max_length : int
        Residues of the protein, caps not counted.
    min_stride, max_stride : float
        ps.
    min_temperature, max_temperature : float
        K.
    max_chains : int
    caps : bool
        Whether chain ends may be capped (ACE, NME).
    residue_types : tuple of str
        Three-letter codes.
    force_field : str
    """

    min_length: int = 1
    max_length: int = 10_000
    min_stride: float = 10.0
    max_stride: float = 10_000.0
    min_temperature: float = 300.0
    max_temperature: float = 300.0
    max_chains: int = 1
    caps: bool = True
    residue_types: tuple[str, ...] = RESIDUE_TYPES
    force_field: str = ""

    def violations(self, tokens: ResidueTokens, stride: float, temperature: float) -> list[str]:
        """What lies outside, a sentence each; empty where all is inside."""
        found = []
        if not self.min_length <= tokens.n_residues <= self.max_length:
            known = f"{self.min_length} to {self.max_length}" if self.min_length < self.max_length else self.max_length
            found.append(f"the model knows proteins of {known} residues, this has {tokens.n_residues}")
        if not self.min_stride <= stride <= self.max_stride:
            found.append(f"the model knows strides of {self.min_stride:g} to {self.max_stride:g} ps, not {stride:g} ps")
        if not self.min_temperature - 0.5 <= temperature <= self.max_temperature + 0.5:
            low, high = self.min_temperature, self.max_temperature
            known = f"{low:g} K" if low == high else f"{low:g} to {high:g} K"
            found.append(f"the model knows {known}, not {temperature:g} K")
        caps = any((end == CAPPED).any() for end in (tokens.features.n_end, tokens.features.c_end))
        if caps and not self.caps:
            found.append("the model has not seen capped ends")
        chains = len(set(tokens.features.chain_index.tolist()))
        if chains > self.max_chains:
            found.append(f"the model knows up to {self.max_chains} chain(s), this has {chains}")
        types = {RESIDUE_TYPES[i] for i in tokens.features.residue_type.tolist()} - set(self.residue_types)
        if types:
            found.append(f"the model has not seen the residue types {', '.join(sorted(types))}")
        return found


def refuse(name: str, found: list[str], strict: bool = True) -> None:
    """Raise ModelDomainError, or warn, if anything was found to lie outside the domain of the model of that name."""
    if not found:
        return
    message = f"Outside the domain of model {name!r}: {'; '.join(found)}."
    if strict:
        raise ModelDomainError(f"{message} Use another model, or strict=False to try all the same.")
    warnings.warn(message, stacklevel=3)


def choose_device(device: str | torch.device) -> torch.device:
    """``"auto"``: the GPU where there is one, else the CPU.

    Raises
    ------
    StarMDError
        If a GPU is asked for where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise StarMDError(
            f"The device {device!s} cannot be used ({reason}). Use device='auto' or 'cpu', or install a torch for it."
        ) from None
    return device


class StarMDModel:
    """A denoiser with all that is needed to use it.

    Parameters
    ----------
    denoiser : Denoiser
    config : ModelConfig
    domain : Domain
    card : str
        Model card, Markdown.
    name : str
    """

    def __init__(self, denoiser: Denoiser, config: ModelConfig, domain: Domain, card: str = "", name: str = "unnamed"):
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.config, self.domain, self.card, self.name = config, domain, card, name
        self.process = Process(config.process)

    @classmethod
    def create(cls, config: ModelConfig, domain: Domain | None = None, seed: int = 0) -> StarMDModel:
        """An untrained model with reproducible random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed)
            denoiser = Denoiser(config.network)
        return cls(denoiser, config, domain or Domain(), "Untrained.", "untrained")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def on(self, device: str | torch.device) -> StarMDModel:
        """This model on a device, a copy if it is elsewhere; ``"auto"`` leaves it where it is."""
        if device == "auto" or choose_device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.denoiser = copy.deepcopy(self.denoiser).to(choose_device(device))
        return moved

    def identity(self, tokens: ResidueTokens) -> bytes:
        """Hash (16 bytes) of weights, settings and the sequence."""
        newer = self.config.sink_frames, self.config.precision  # older checkpoints do not know of them
        settings = self.config, tokens.sequence, *(x for x in newer if x not in (0, "32-true"))
        if self.config.network.neighbours:
            settings += (f"neighbours={self.config.network.neighbours}",)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        for name, weight in self.denoiser.state_dict().items():
            digest.update(name.encode() + weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()

    def check_domain(self, tokens: ResidueTokens, stride: float, temperature: float, strict: bool = True) -> None:
        """Compare a system with the domain.

        Raises
        ------
        ModelDomainError
            If it lies outside; with ``strict=False`` a warning is given instead.
        """
        refuse(self.name, self.domain.violations(tokens, stride, temperature), strict)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: weights, and configuration, domain and card as its metadata."""
        metadata = {
            "format": "openmm-starmd",
            "version": str(FORMAT_VERSION),
            "name": self.name,
            "config": json.dumps(self.config.to_dict()),
            "domain": json.dumps(asdict(self.domain)),
            "card": self.card,
        }
        weights = {k: v.contiguous().cpu() for k, v in self.denoiser.state_dict().items()}
        save_tensors(weights, path, metadata)


def _embedded() -> dict[str, Path]:
    folder = resources.files("openmm_starmd") / "models"
    return dict(sorted((path.stem, path) for path in Path(str(folder)).glob("*.safetensors")))


def available_models() -> list[str]:
    """Names of the embedded models."""
    return list(_embedded())


def choose_model(
    topology, stride: float, temperature: float, *, device: str | torch.device = "auto", strict: bool = True
) -> StarMDModel:
    """Load the embedded model whose domain holds the protein of a Topology, a stride and a temperature.

    Of several it is the one of the narrowest range of lengths, and of these the first by name. The choice is logged.

    Parameters
    ----------
    topology : openmm.app.Topology or ResidueTokens
    stride : float
        ps.
    temperature : float
        K.
    device : str or torch.device
    strict : bool
        Whether it is an error that no domain holds them; otherwise the model that lacks the least is taken.

    Raises
    ------
    ModelDomainError
        If there is none; the message tells what each of the models lacks.
    UnsupportedTopologyError
        If the protein cannot be described by residue tokens.
    """
    tokens = topology if isinstance(topology, ResidueTokens) else ResidueTokens.from_topology(topology)
    domains = {name: _domain_of(_read(path, weights=False)[0]) for name, path in _embedded().items()}
    names = sorted(domains, key=lambda name: (domains[name].max_length - domains[name].min_length, name))
    lacks = {name: domains[name].violations(tokens, stride, temperature) for name in names}
    chosen = min(names, key=lambda name: len(lacks[name]))
    if strict and lacks[chosen]:
        reasons = " ".join(f"{name}: {'; '.join(found)}." for name, found in sorted(lacks.items()))
        raise ModelDomainError(
            f"No embedded model knows this system. {reasons} Name another model, or strict=False to try all the same."
        )
    logger.info("Model chosen for %d residues, %g ps, %g K: %s", tokens.n_residues, stride, temperature, chosen)
    return load_model(chosen, device)


def load_model(name_or_path: str | Path, device: str | torch.device = "auto") -> StarMDModel:
    """Load an embedded model by name, or one from a file.

    Parameters
    ----------
    name_or_path : str or Path
        A name from `available_models`, or the path of a ``.safetensors`` file.
    device : str or torch.device

    Raises
    ------
    StarMDError
        If there is no such model, or the file is truncated, of another version or not safetensors (pickles are never
        loaded: they can run code).
    """
    device = choose_device(device)
    path = _embedded().get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise StarMDError(
            f"No model {str(name_or_path)!r}: expected a path of a .safetensors file or one of {available_models()}."
        )
    metadata, weights = _read(path)
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        denoiser = Denoiser(config.network)
        denoiser.load_state_dict(weights)
        domain = _domain_of(metadata)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StarMDError(f"{path} does not hold the weights and settings of a model: {error}") from None
    return StarMDModel(denoiser.to(device), config, domain, metadata.get("card", ""), metadata.get("name", path.stem))


def _read(path: Path, weights: bool = True) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a model file, and its weights if they are asked for."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in (file.keys() if weights else ())}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StarMDError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated, or a pickle, which is never "
            "loaded. Save models with StarMDModel.save."
        ) from None
    if metadata.get("format") != "openmm-starmd" or metadata.get("version") != str(FORMAT_VERSION):
        raise StarMDError(
            f"{path} is not an openmm-starmd model of version {FORMAT_VERSION} (found format "
            f"{metadata.get('format')!r}, version {metadata.get('version')!r}); save it again with this version."
        )
    return metadata, tensors


def _domain_of(metadata: dict[str, str]) -> Domain:
    domain = json.loads(metadata["domain"])
    return Domain(**(domain | {"residue_types": tuple(domain["residue_types"])}))
