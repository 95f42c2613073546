"""Propagators by name: the embedded models, `elastic`, and propagators of other packages."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from numbers import Real
from pathlib import Path

import torch

from openmm_starmd.domain import Violation, enforced, refuse
from openmm_starmd.errors import StarMDError
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.model import StarMDModel, available_models, choose_device, choose_model, load_model, models_for
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.units import wholeNumber

GROUP = "openmm_starmd.propagators"
CLASS = "a class that inherits from JumpPropagator and has a name and a step of its own"
ATTRIBUTES = {
    "identity": bytes,
    "tokens": ResidueTokens,
    "stride": Real,
    "temperature": Real,
    "device": torch.device,
    "context_frames": int,
}  # of a propagator
LONGEST_IDENTITY = hashlib.blake2b.MAX_KEY_SIZE
BUILT_IN = (EntryPoint("elastic", "openmm_starmd.elastic:ElasticNetwork", GROUP),)


def available_propagators() -> list[str]:
    """Names of `elastic` and of the propagators that other packages bring, see `JumpPropagator`."""
    return sorted({point.name for point in (*BUILT_IN, *entry_points(group=GROUP))})


def load_propagator(name: str) -> type[JumpPropagator]:
    """Class of the propagator of that name.

    Raises
    ------
    StarMDError
        If there is none, two packages bring one each, or its package cannot be imported or brings something else.
    """
    found = [point for point in (*BUILT_IN, *entry_points(group=GROUP)) if point.name == name]
    values = {point.value for point in found}
    if not values:
        raise StarMDError(f"No propagator {name!r}: expected one of {available_propagators()}.")
    if len(values) > 1:
        raise StarMDError(f"Several packages bring a propagator {name!r} ({', '.join(sorted(values))}); remove one.")
    try:
        propagator = found[0].load()
    except (ImportError, AttributeError) as error:
        raise StarMDError(f"The propagator {name!r} ({found[0].value}) cannot be imported: {error}") from error
    if not _is_propagator(propagator):
        raise StarMDError(f"The propagator {name!r} ({found[0].value}) must be {CLASS}; it is {propagator!r}.")
    return propagator


def _is_propagator(model) -> bool:
    """True for a class that samples jumps."""
    inherits = inspect.isclass(model) and JumpPropagator in model.__mro__
    return inherits and model.step is not JumpPropagator.step and isinstance(getattr(model, "name", None), str)


def _complete(propagator: JumpPropagator) -> JumpPropagator:
    """The propagator; a StarMDError names what it lacks of the interface."""
    kind = type(propagator).__name__
    for name, expected in ATTRIBUTES.items():
        if not isinstance(found := getattr(propagator, name, None), expected):
            raise StarMDError(f"{kind}.{name} must be of the type {expected.__name__}; it is {found!r}.")
    if not 1 <= (length := len(propagator.identity)) <= LONGEST_IDENTITY:
        raise StarMDError(f"{kind}.identity must hold 1 to {LONGEST_IDENTITY} bytes; it holds {length}.")
    return propagator


def load_source(
    name_or_path: str | os.PathLike, device: str | torch.device = "auto"
) -> StarMDModel | type[JumpPropagator]:
    """Model or class of propagators of a name, or the model of a file; a StarMDError says that there is none."""
    name, models, propagators = str(name_or_path), available_models(), available_propagators()
    if name in propagators and name not in models:
        return load_propagator(name)
    if name in models or Path(name).is_file():
        return load_model(name, device)
    raise StarMDError(
        f"No model {name!r}: expected one of {[*models, *propagators]}, the path of a .safetensors file or, where "
        "there is a molecule to choose for, 'auto'."
    )


@dataclass(frozen=True, eq=False)
class NewPropagator:
    """Makes propagators of one model; can be sent to another process."""

    source: StarMDModel | type[JumpPropagator]
    device: torch.device  # of propagators that are no `StarMDModel`; that is where it is
    strict: bool | Mapping[str, bool] = True  # whether leaving the domain is an error, see `domain.refuse`

    @classmethod
    def of(
        cls,
        model: str | os.PathLike | StarMDModel | type[JumpPropagator],
        tokens: ResidueTokens,
        stride: float,
        temperature: float,
        device: str | torch.device = "auto",
        strict: bool | Mapping[str, bool] = True,
    ) -> NewPropagator:
        """Find what a user means by a model.

        ``"auto"`` stands for `choose_model` by protein, stride (ps) and temperature (K); other strings for an embedded
        model, a propagator or a model file. A StarMDError says what a model may be, or that there is none of that name,
        a ModelDomainError that none is fit to be chosen.
        """
        if isinstance(model, StarMDModel):
            source = model.on(device)
        elif _is_propagator(model):
            source = model
        elif not isinstance(model, str | os.PathLike):
            raise StarMDError(
                "model must be 'auto', the name of an embedded model or of a propagator, the path of a model file, a "
                f"StarMDModel, or {CLASS}; got {model!r}."
            )
        elif model == "auto":
            source = choose_model(tokens, stride, temperature, device=device, strict=strict)
        else:
            source = load_source(model, device)
        return cls(source, source.device if isinstance(source, StarMDModel) else choose_device(device), strict)

    @property
    def name(self) -> str:
        """Name of the model in messages."""
        return self.source.name

    @property
    def force_field(self) -> str:
        """Force field that the model was trained with; empty where it does not say."""
        return self.source.domain.force_field if self.source.domain else ""

    def outside(self, tokens: ResidueTokens, stride: float, temperature: float, positions=None) -> list[Violation]:
        """Violations of the domain, see `Domain.check`; nothing where a propagator states none."""
        domain = self.source.domain
        return domain.check(tokens, stride, temperature, positions) if domain else []

    def refuse(self, found: Sequence[Violation], others: Sequence[str] = ()):
        """Raise or warn for violations, see `domain.refuse`."""
        refuse(self.name, found, self.strict, others)

    def require(self, tokens: ResidueTokens, stride: float, temperature: float):
        """Raise ModelDomainError where the domain is left, but do not warn yet: for a look before anything slow."""
        if found := enforced(self.outside(tokens, stride, temperature), self.strict):
            self.refuse(found, models_for(tokens, stride, temperature))

    def on(self, device: str | torch.device) -> NewPropagator:
        """Equal maker of propagators on another device."""
        device = choose_device(device)
        source = self.source.on(device) if isinstance(self.source, StarMDModel) else self.source
        return replace(self, source=source, device=device)

    def __call__(self, tokens: ResidueTokens, stride: float, temperature: float, **settings) -> JumpPropagator:
        """A propagator of one system; ``settings`` that are None are left to it.

        A ModelDomainError says that the system lies outside of its domain, a ValueError that it does not know a
        setting, or that one is no whole number of at least 1, a StarMDError what the propagator lacks.
        """
        given = {name: wholeNumber(name, value, 1) for name, value in settings.items() if value is not None}
        if isinstance(self.source, StarMDModel):
            return Propagator(self.source, tokens, stride, temperature, strict=self.strict, **given)
        create: Callable[..., JumpPropagator] = self.source
        self.refuse(self.outside(tokens, stride, temperature))
        for name in given.keys() - inspect.signature(create).parameters:
            raise ValueError(f"The propagator {create.__name__} knows no {name}; leave it out.")
        return _complete(create(tokens, stride, temperature, device=self.device, **given))
