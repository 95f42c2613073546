"""The domain of a model: the molecules, strides and temperatures that it was trained and judged on."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from openmm_starmd.errors import ModelDomainError, listed
from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.residues import RESIDUE_TYPES, VARIANTS, variant_name
from openmm_starmd.protein.tokens import ResidueFeatures, ResidueTokens
from openmm_starmd.protein.validity import check_positions, flat_centres

REASONS = (
    "length",
    "chains",
    "gap",
    "residues",
    "variants",
    "caps",
    "temperature",
    "stride",
    "context",
    "chirality",
    "fold",
)
"""Names of the reasons for which a system can lie outside a domain, the weightiest first."""

SETTINGS = {"temperature", "stride", "context"}
"""Reasons that lie in what is asked for, not in the molecule."""

TAUTOMER = "HIE: name the residue HID in the file, and `starmd prepare` builds HID, which the model knows"
NOTES = {"CYX": "CYX: cysteine of a disulfide", "HIE": TAUTOMER}
LONGEST_BOND = 0.25  # nm; a peptide bond beyond it bridges a gap
SHOWN = 5  # residues that a message names
FOLDED_RADIUS, FOLDED_EXPONENT = 0.22, 0.38  # nm; of `relative_gyration`


class Violation(str):
    """One sentence that says what lies outside a domain; ``reason`` is its name among `REASONS`."""

    reason: str

    def __new__(cls, reason: str, text: str) -> Violation:
        """Violation of a reason, told by a text."""
        violation = super().__new__(cls, text)
        violation.reason = reason
        return violation

    def __getnewargs__(self):
        return self.reason, str(self)


@dataclass(frozen=True)
class Domain:
    """The molecules, strides and temperatures that a model was trained and judged on.

    Parameters
    ----------
    min_length, max_length : int
        Residues of the protein, caps not counted.
    min_stride : float
        ps.
    max_stride : float or dict
        ps; or from a length to the longest stride of proteins up to that length, ``{4: 1000.0, 8: 330.0}``.
    min_temperature, max_temperature : float
        K.
    max_chains : int
        Molecules, counted by bonds.
    caps : bool
        Whether chain ends may be capped by ACE and NME.
    residue_types : tuple of str
        Three-letter codes.
    force_field : str
    variants : tuple of str
        Names of `VARIANTS` besides the residue types at pH 7 (histidine: HID); CYX stands for disulfides.
    max_gyration : float
        Largest `relative_gyration` of a structure that a run starts from.
    temperature_tolerance : float
        K beyond ``min_temperature`` and ``max_temperature`` that count as inside.
    half_capped : bool
        Whether one end of a chain may be capped and the other free.
    max_context : int
        Past conformations that a step may see.
    """

    min_length: int = 1
    max_length: int = 10_000
    min_stride: float = 10.0
    max_stride: float | Mapping[int, float] = 10_000.0
    min_temperature: float = 300.0
    max_temperature: float = 300.0
    max_chains: int = 1
    caps: bool = True
    residue_types: tuple[str, ...] = RESIDUE_TYPES
    force_field: str = ""
    variants: tuple[str, ...] = VARIANTS[1:]
    max_gyration: float = 10_000.0
    temperature_tolerance: float = 3.0
    half_capped: bool = False
    max_context: int = 10_000

    @classmethod
    def from_dict(cls, values: Mapping) -> Domain:
        """Inverse of `to_dict`; what was written before there were variants is taken to know none."""
        values = {"variants": ()} | dict(values)
        for name in ("residue_types", "variants"):
            values[name] = tuple(values[name])
        if isinstance(values.get("max_stride"), Mapping):
            values["max_stride"] = {int(length): stride for length, stride in values["max_stride"].items()}
        return cls(**values)

    def to_dict(self) -> dict:
        """The fields, as JSON can hold them."""
        return asdict(self)

    def longest_stride(self, length: int) -> float:
        """Longest stride (ps) for proteins of a number of residues."""
        if not isinstance(self.max_stride, Mapping):
            return self.max_stride
        known = [limit for limit in sorted(self.max_stride) if limit >= length]
        return self.max_stride[known[0] if known else max(self.max_stride)]

    def check(
        self, tokens: ResidueTokens, stride: float, temperature: float, positions=None, context_frames: int = 0
    ) -> list[Violation]:
        """List everything about a system that lies outside, the most important first.

        Parameters
        ----------
        tokens : ResidueTokens
        stride : float
            ps.
        temperature : float
            K.
        positions : array, shape (A, 3), optional
            Of whole molecules, nm; with them chirality is checked, bonds over gaps, and whether all is as compact as a
            fold.
        context_frames : int
            Past conformations that a step is to see.

        Returns
        -------
        list of Violation
            Empty where all is inside.
        """
        found = [*self._of_molecule(tokens), *self._of_settings(tokens.n_residues, stride, temperature, context_frames)]
        if positions is not None:
            found += [*_of_positions(tokens, torch.as_tensor(positions)), *self._of_start(tokens, positions)]
        return sorted(found, key=lambda violation: REASONS.index(violation.reason))

    @property
    def lengths(self) -> str:
        """Numbers of residues, for messages."""
        return f"{self.min_length} to {self.max_length}" if self.min_length < self.max_length else f"{self.max_length}"

    def nearest_settings(self, length: int, stride: float, temperature: float) -> tuple[float, float]:
        """The stride (ps) and the temperature (K) inside that are the nearest, for proteins of a number of residues."""
        stride = min(max(stride, self.min_stride), self.longest_stride(length))
        nearest = min(max(temperature, self.min_temperature), self.max_temperature)
        return stride, temperature if abs(temperature - nearest) <= self.temperature_tolerance else nearest

    def _of_molecule(self, tokens: ResidueTokens):
        features, labels = tokens.features, tokens.residue_labels
        if not self.min_length <= tokens.n_residues <= self.max_length:
            text = f"the model knows proteins of {self.lengths} residues, this has {tokens.n_residues}"
            yield Violation("length", text)
        chains = len(features.chain_index.unique())
        if chains > self.max_chains:
            yield Violation("chains", f"the model knows up to {self.max_chains} molecule(s), this has {chains}")
        for i in tokens.gaps:
            yield Violation("gap", f"residues are missing between {labels[i - 1]} and {labels[i]}")
        types = [RESIDUE_TYPES[k] for k in features.residue_type.tolist()]
        if unknown := sorted(set(types) - set(self.residue_types)):
            yield Violation("residues", f"the model has not seen the residue types {', '.join(unknown)}")
        numbers = features.variant.tolist()
        strange = [i for i, k in enumerate(numbers) if k and VARIANTS[k] not in self.variants]
        if strange:
            named = [f"{variant_name(types[i], numbers[i])} at {labels[i]}" for i in strange]
            of_known_types = {VARIANTS[numbers[i]] for i in strange if types[i] in self.residue_types}
            notes = [note for name, note in NOTES.items() if name in of_known_types]
            told = f" ({'; '.join(notes)})" if notes else ""
            yield Violation("variants", f"the model has not seen {listed(named, SHOWN)}{told}")
        if not self.caps and any((end == CAPPED).any() for end in (features.n_end, features.c_end)):
            yield Violation("caps", "the model has not seen capped ends")
        elif not self.half_capped and (firsts := half_capped(features)):
            named = listed([f"the chain from {labels[i]}" for i in firsts], SHOWN)
            text = f"one end of {named} is capped and the other free, the model has seen both ends capped or both free"
            yield Violation("caps", text)

    def _of_settings(self, length: int, stride: float, temperature: float, context_frames: int = 0):
        low, high, spare = self.min_temperature, self.max_temperature, self.temperature_tolerance
        if not low - spare <= temperature <= high + spare:
            known = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            found = _written(temperature, low - spare, high + spare)
            yield Violation("temperature", f"the model knows {known} K +- {spare:g} K, not {found} K")
        nearest = min(max(length, self.min_length), self.max_length)
        longest = self.longest_stride(nearest)
        if not self.min_stride <= stride <= longest:
            of = f" for {nearest} residues" if isinstance(self.max_stride, Mapping) else ""
            known, found = f"{self.min_stride:g} to {longest:g} ps{of}", _written(stride, self.min_stride, longest)
            yield Violation("stride", f"the model knows strides of {known}, not {found} ps")
        if context_frames > self.max_context:
            text = f"the model has seen up to {self.max_context} past conformation(s) at a time, not {context_frames}"
            yield Violation("context", f"{text}; ask for no more, or leave the number out")

    def _of_start(self, tokens: ResidueTokens, positions):
        """Violation of a start (A, 3) that is not as compact as what the model was trained on."""
        spread = relative_gyration(torch.as_tensor(positions)[tokens.backbone[:, 1]])
        if spread > self.max_gyration:
            times = _written(spread, 0.0, self.max_gyration, digits=3)
            yield Violation(
                "fold",
                f"the start is not folded: its CA atoms are {times} times as far from their centre as those of a "
                f"folded protein of {tokens.n_residues} residues, the model knows up to {self.max_gyration:g} times; "
                "start from a folded structure",
            )


def _written(value: float, low: float, high: float, digits: int = 6) -> str:
    """A number that lies outside of two limits, with so many digits or as many more as show that it does."""
    texts = (f"{value:.{more}g}" for more in range(digits, 18))
    return next(text for text in texts if not low <= float(text) <= high)


def half_capped(features: ResidueFeatures) -> list[int]:
    """Tokens at the start of the chains that are capped at one end and not at the other."""
    chain = features.chain_index
    firsts = torch.nonzero(chain.diff(prepend=chain[:1] - 1))[:, 0]
    lasts = torch.nonzero(chain.diff(append=chain[-1:] + 1))[:, 0]
    return firsts[(features.n_end[firsts] == CAPPED) != (features.c_end[lasts] == CAPPED)].tolist()


def relative_gyration(carbons: torch.Tensor) -> float:
    """Radius of gyration of CA atoms (N, 3), nm, in multiples of 0.22 nm N^0.38, the one of folded proteins.

    The power law is that of J. Skolnick, A. Kolinski and A. R. Ortiz, J. Mol. Biol. 265, 217 (1997).
    """
    radius = (carbons - carbons.mean(0)).square().sum(-1).mean().sqrt()
    return float(radius) / (FOLDED_RADIUS * len(carbons) ** FOLDED_EXPONENT)


def _of_positions(tokens: ResidueTokens, positions: torch.Tensor):
    """Violations of positions (A, 3) that no model of natural proteins knows."""
    lengths = (positions[tokens.peptide_bonds[:, 0]] - positions[tokens.peptide_bonds[:, 1]]).norm(dim=-1)
    owner = dict(zip(tokens.protein_atoms.tolist(), tokens.owner.tolist(), strict=True))
    for bond in torch.nonzero(lengths > LONGEST_BOND)[:, 0].tolist():
        ends = [tokens.residue_labels[owner[atom]] for atom in tokens.peptide_bonds[bond].tolist()]
        yield Violation("gap", f"{ends[0]} and {ends[1]} are bonded over {lengths[bond]:.2f} nm")
    turned = [atom for (atom,) in check_positions(positions, tokens).culprits(()).get("inversions", [])]
    centres = tokens.chiral_centres.numpy()
    flat = centres[flat_centres(positions.numpy()[None], centres)[0], 0].tolist()
    for atom in [*flat, *turned][:1]:
        centre = "CA" if atom in tokens.backbone[:, 1] else "CB"
        has = "no configuration: its bonds lie in a plane" if atom in flat else "the D configuration"
        yield Violation("chirality", f"{centre} of {tokens.residue_labels[owner[atom]]} has {has}")


def warn_of_numbering(tokens: ResidueTokens) -> None:
    """Warn where residue numbers jump inside a chain without a break: a reader may have bonded over missing residues.

    Positions tell, but only as long as no minimisation has pulled the ends together.
    """
    if tokens.numbering_gaps:
        labels = tokens.residue_labels
        named = [f"from {labels[i - 1]} to {labels[i]}" for i in tokens.numbering_gaps]
        warnings.warn(
            f"Residue numbers jump {listed(named, SHOWN)}, but the Topology bonds these residues. If residues are "
            "missing there, a minimisation closes the gap: let `starmd prepare FILE` end or complete the chain.",
            stacklevel=3,
        )


def essential(found: Sequence[Violation]) -> list[Violation]:
    """The violation of the length alone where there is one, else all: enough for a model that is not the nearest."""
    return [violation for violation in found if violation.reason == "length"] or list(found)


def enforced(found: Sequence[Violation], strict: bool | Mapping[str, bool]) -> list[Violation]:
    """The violations that are errors under ``strict``: all, none, or those whose reason it does not switch off.

    A ValueError refuses a ``strict`` that names an unknown reason.
    """
    if not isinstance(strict, Mapping):
        return list(found) if strict else []
    if unknown := sorted(set(strict) - set(REASONS)):
        raise ValueError(f"strict names the unknown reason {unknown[0]!r}; expected some of {', '.join(REASONS)}")
    return [violation for violation in found if strict.get(violation.reason, True)]


def allowing(reasons: Collection[str]) -> dict[str, bool]:
    """The value of ``strict`` that turns only some reasons into warnings."""
    strict = dict.fromkeys(reasons, False)
    enforced([], strict)
    return strict


def refuse(name: str, found: Sequence[Violation], strict: bool | Mapping[str, bool] = True, others: Sequence[str] = ()):
    """Raise or warn where something lies outside the domain of the model of that name.

    ``strict`` as False turns every violation into a warning; ``{"length": False}`` does so for one reason alone. A
    ModelDomainError tells what remains, after the warnings, and names the ``others``, models whose domain holds the
    system. A ValueError refuses a ``strict`` that names an unknown reason.
    """
    errors = enforced(found, strict)
    ignored = [violation for violation in found if violation not in errors]
    if ignored:
        warnings.warn(f"Outside the domain of model {name!r}: {'; '.join(ignored)}.", stacklevel=3)
    if errors:
        told = "; ".join(f"{violation} [{violation.reason}]" for violation in errors)
        use = f"Use model {' or '.join(map(repr, others))}, which knows it, or" if others else ""
        raise ModelDomainError(f"Outside the domain of model {name!r}: {told}. {how_to_allow(errors, use)}")


def how_to_allow(errors: Sequence[Violation], instead: str = "") -> str:
    """Sentence that says how violations become warnings, after what to do ``instead``."""
    reasons = list(dict.fromkeys(violation.reason for violation in errors))
    switches = ", ".join(f"{reason!r}: False" for reason in reasons)
    options = [f"--allow {reason}" for reason in reasons if reason != "context"]  # no command asks for past frames
    command = f" (command line: {' '.join(options)})" if options else ""
    return (
        f"{f'{instead} try' if instead else 'Try'} all the same with strict={{{switches}}}{command}; nothing is known "
        "of the result."
    )
