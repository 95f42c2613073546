"""A model: weights, configuration, domain and card, in one safetensors file."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from openmm_starmd.diffusion.process import Process
from openmm_starmd.domain import REASONS, SETTINGS, Domain, Violation, enforced, essential, how_to_allow, refuse
from openmm_starmd.errors import ModelDomainError, StarMDError, first_line
from openmm_starmd.files import save_tensors
from openmm_starmd.network.config import ModelConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.protein.tokens import ResidueTokens

FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


def choose_device(device: str | torch.device) -> torch.device:
    """``"auto"``: the GPU where there is one, else the CPU; StarMDError if a GPU is asked for where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise StarMDError(
            f"The device {device!s} cannot be used ({first_line(error)}). Use device='auto' or 'cpu', or install a "
            "torch for it."
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
        """Device of the weights."""
        return next(self.denoiser.parameters()).device

    def on(self, device: str | torch.device) -> StarMDModel:
        """Return the model on a device, a copy if it is elsewhere; ``"auto"`` leaves it where it is."""
        if device == "auto" or choose_device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.denoiser = copy.deepcopy(self.denoiser).to(choose_device(device))
        return moved

    def identity(self, tokens: ResidueTokens) -> bytes:
        """Hash (16 bytes) of weights, settings and the sequence."""
        settings = json.dumps([self.config.to_dict(), tokens.sequence], sort_keys=True)
        digest = hashlib.blake2b(settings.encode(), digest_size=16)
        for name, weight in self.denoiser.state_dict().items():
            digest.update(name.encode() + weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()

    def check_domain(
        self, tokens: ResidueTokens, stride: float, temperature: float, strict=True, context_frames: int = 0
    ) -> None:
        """Raise ModelDomainError, or warn as far as ``strict`` says, where a system lies outside the domain.

        The stride is in ps, the temperature in K; ``strict`` is that of `domain.refuse`.
        """
        found, others = self.domain.check(tokens, stride, temperature, None, context_frames), []
        if any(violation.reason != "context" for violation in enforced(found, strict)):
            others = models_for(tokens, stride, temperature)
        refuse(self.name, found, strict, others)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: weights, and configuration, domain and card as its metadata."""
        metadata = {
            "format": "openmm-starmd",
            "version": str(FORMAT_VERSION),
            "name": self.name,
            "config": json.dumps(self.config.to_dict()),
            "domain": json.dumps(self.domain.to_dict()),
            "card": self.card,
        }
        weights = {k: v.contiguous().cpu() for k, v in self.denoiser.state_dict().items()}
        save_tensors(weights, path, metadata)


def _embedded() -> dict[str, Path]:
    folder = resources.files("openmm_starmd") / "models"
    return dict(sorted((path.stem, path) for path in Path(str(folder)).glob("*.safetensors")))


def _described() -> dict[str, dict[str, str]]:
    """Metadata of the embedded models, by name."""
    return {name: _read(path, weights=False)[0] for name, path in _embedded().items()}


def available_models() -> list[str]:
    """Names of the embedded models."""
    return list(_embedded())


def choose_model(
    topology, stride: float, temperature: float, *, device: str | torch.device = "auto", strict=True
) -> StarMDModel:
    """Load the embedded model whose domain holds the protein of a Topology, a stride and a temperature.

    Of several it is the one with the most denoising steps, of these the one of the narrowest range of lengths, and of
    these the first by name. The choice is logged.

    Parameters
    ----------
    topology : openmm.app.Topology or ResidueTokens
    stride : float
        ps.
    temperature : float
        K.
    device : str or torch.device
    strict : bool or dict
        As of `domain.refuse`. Where no domain holds all, the model that lacks the least, and of these the nearest in
        length, is taken as far as ``strict`` allows.

    Raises
    ------
    ModelDomainError
        If there is none; the message tells what each of the models lacks.
    UnsupportedTopologyError
        If the protein cannot be described by residue tokens.
    """
    tokens = topology if isinstance(topology, ResidueTokens) else ResidueTokens.from_topology(topology)
    lacks = lacking(tokens, stride, temperature)
    chosen = nearest_model(lacks, tokens, strict)
    if enforced(lacks[chosen], strict):
        advice = how_to_allow(lacks[chosen], _instead(lacks[chosen], tokens))
        raise ModelDomainError(f"No embedded model knows this system. {_told(lacks, chosen, tokens)} {advice}")
    logger.info("Model chosen for %d residues, %g ps, %g K: %s", tokens.n_residues, stride, temperature, chosen)
    return load_model(chosen, device)


def lacking(tokens: ResidueTokens, stride: float, temperature: float, positions=None) -> dict[str, list[Violation]]:
    """Violations of the domain of each embedded model, by name; see `Domain.check`."""
    return {name: domain.check(tokens, stride, temperature, positions) for name, domain in embedded_domains().items()}


def nearest_model(lacks: Mapping[str, Sequence[Violation]], tokens: ResidueTokens, strict=True) -> str:
    """Name of the embedded model that `choose_model` takes, or would take if it could, by what each one `lacks`."""
    described, domains = _described(), embedded_domains()

    def rank(name: str) -> tuple:
        steps, domain = ModelConfig.from_dict(json.loads(described[name]["config"])).denoising_steps, domains[name]
        weightiest = min((REASONS.index(violation.reason) for violation in lacks[name]), default=len(REASONS))
        away = max(domain.min_length - tokens.n_residues, tokens.n_residues - domain.max_length, 0)
        outside = len(enforced(lacks[name], strict)), len(lacks[name]), -weightiest, away
        return *outside, -steps, domain.max_length - domain.min_length, name

    return min(lacks, key=rank)


def _told(lacks: Mapping[str, Sequence[Violation]], nearest: str, tokens: ResidueTokens) -> str:
    """Sentences that tell each violation once, and the lengths alone of models of other lengths."""
    names_of: dict[tuple[Violation, ...], list[str]] = {}
    others = []
    for name, domain in embedded_domains().items():
        found = lacks[name] if name == nearest else essential(lacks[name])
        if [violation.reason for violation in found] == ["length"]:
            others.append(f"{name} ({domain.lengths})")
        else:
            names_of.setdefault(tuple(found), []).append(name)
    told = [f"{', '.join(names)}: {'; '.join(found)}." for found, names in names_of.items()]
    if others:
        told.append(f"This has {tokens.n_residues} residues; for other numbers there are {', '.join(others)}.")
    return " ".join(told)


def _instead(found: Sequence[Violation], tokens: ResidueTokens) -> str:
    """Advice where no embedded model knows a system: the beginning of the sentence that `how_to_allow` ends."""
    if {violation.reason for violation in found} <= SETTINGS:
        return "Take a temperature and a stride that a model knows, or"
    elastic = "take model='elastic' for motions about a folded structure, " if tokens.n_residues > 1 else ""
    return f"Train a model on MD of this molecule (starmd train), {elastic}or"


def models_for(tokens: ResidueTokens, stride: float, temperature: float) -> list[str]:
    """Names of the embedded models whose domain holds a protein, a stride (ps) and a temperature (K)."""
    return [name for name, found in lacking(tokens, stride, temperature).items() if not found]


def embedded_domains() -> dict[str, Domain]:
    """Domains of the embedded models, by name."""
    return {name: _domain_of(metadata) for name, metadata in _described().items()}


def embedded_cards() -> dict[str, str]:
    """Cards of the embedded models, by name."""
    return {name: metadata.get("card", "") for name, metadata in _described().items()}


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
    return Domain.from_dict(json.loads(metadata["domain"]))
