"""Frozen, self-validating settings of the network, the diffusion process and the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from openmm_starmd.errors import require

SAMPLERS = "ancestral", "multistep", "euler-maruyama"
TORSIONS, PARAMETERIZATIONS = ("diffusion", "regression"), ("previous", "plain")
# settings that model files may name, and the value of each that is left
RETIRED = {"sink_frames": 0, "precision": "32-true"}


@dataclass(frozen=True)
class NetworkConfig:
    """Size and switches of the denoiser.

    Parameters
    ----------
    blocks, attention_layers : int
        Diffusion blocks, and joint space-time attention layers in each.
    width, pair_width, heads : int
        Channels of residue and of pair features; attention heads.
    query_points, value_points : int
        Points a head of invariant point attention.
    max_relative_position : int
        Sequence separations beyond this saturate.
    single_features, pair_features : int
        Channels of optional precomputed features (OpenFold: 384 and 128); 0 for none.
    reference_structure : bool
        Whether pair features include those of the starting conformation.
    reversion : bool
        Whether residues are told how far the previous frame is from the starting conformation, and may be drawn back
        there (`network.reversion`): with ``reference_structure``, around the previous frame, with diffused torsions.
    fluctuations : bool
        Whether residues and pairs are told how an elastic network of the starting conformation fluctuates
        (`network.fluctuations`): with ``reference_structure``.
    elastic_steps : bool
        Whether the residues of a step move together as an elastic network of the previous frame has them, see
        `network.elastic_steps`; else each by itself.
    burial : bool
        Whether the size of a step depends on how many residues are near in the previous frame, beside the stride:
        around the previous frame.
    neighbours : int
        Pair features are those of so many nearest residues of the previous frame, itself among them; 0 for all.
    joint_attention : bool
        Attend jointly over space and time; otherwise layers alternate between the two (ablation).
    torsions : {"diffusion", "regression"}
        Diffuse the torsions, or predict them from the denoised frames as the STAR-MD paper does.
    parameterization : {"previous", "plain"}
        Around the previous frame, preconditioned by the size of a step, or directly as in the paper.
    pulls : bool
        Whether residues pull each other (`network.pulls`): around the previous frame, with diffused torsions.
    """

    blocks: int = 4
    width: int = 128
    pair_width: int = 48
    heads: int = 8
    attention_layers: int = 1
    query_points: int = 4
    value_points: int = 4
    max_relative_position: int = 4
    single_features: int = 0
    pair_features: int = 0
    reference_structure: bool = False
    joint_attention: bool = True
    torsions: str = "diffusion"
    parameterization: str = "previous"
    pulls: bool = False
    reversion: bool = False
    fluctuations: bool = False
    burial: bool = False
    elastic_steps: bool = False
    neighbours: int = 0

    def __post_init__(self):
        for name in ("blocks", "width", "pair_width", "heads", "attention_layers", "query_points", "value_points"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}.")
        require(
            self.width % (4 * self.heads) == 0,
            f"width must be a multiple of 4 * heads = {4 * self.heads} (2-D rotary embedding), not {self.width}.",
        )
        for name, known in {"torsions": TORSIONS, "parameterization": PARAMETERIZATIONS}.items():
            require(getattr(self, name) in known, f"{name}: {' or '.join(known)}, not {getattr(self, name)!r}.")
        around_previous = self.parameterization == "previous" and self.torsions == "diffusion"
        require(
            around_previous or not self.pulls,
            "Pulls need the parameterization around the previous frame and diffused torsions.",
        )
        require(
            not self.reversion or (around_previous and self.reference_structure),
            "reversion needs reference_structure, the parameterization around the previous frame, diffused torsions.",
        )
        require(self.reference_structure or not self.fluctuations, "fluctuations need reference_structure.")
        require(self.neighbours >= 0, f"neighbours must be at least 0, not {self.neighbours}.")
        require(
            not (self.neighbours or self.burial or self.elastic_steps) or self.parameterization == "previous",
            "neighbours, burial and elastic_steps are of the previous frame: they need the parameterization around it.",
        )


@dataclass(frozen=True)
class ProcessConfig:
    """Forward noising.

    Parameters
    ----------
    schedule : {"geometric", "paper"}
        Variance exploding with geometric noise levels, or the STAR-MD paper's: variance preserving on translations
        (linear schedule, beta 0.1 to 20), logarithmic on rotations (0.1 to 1.5), t in [0.01, 1].
    translation, rotation, torsion, angle : (float, float)
        Least and greatest noise level (nm, rad, rad, rad); the paper schedule uses the last two only.
    context_noise : (float, float, float, float)
        Greatest noise of a context copy (nm, rad, rad, rad), geometric schedule.
    context_time : float
        Greatest diffusion time of a context copy, paper schedule.
    context_probability : float
        Probability that a context copy is noised at all.
    """

    schedule: str = "geometric"
    translation: tuple[float, float] = (0.008, 0.3)
    rotation: tuple[float, float] = (0.05, 1.5)
    torsion: tuple[float, float] = (0.10, 2.2)
    angle: tuple[float, float] = (0.012, 0.12)
    context_noise: tuple[float, float, float, float] = (0.005, 0.04, 0.08, 0.02)
    context_time: float = 0.1
    context_probability: float = 0.75

    def __post_init__(self):
        require(self.schedule in ("geometric", "paper"), f"schedule: geometric or paper, not {self.schedule!r}.")
        for name in ("translation", "rotation", "torsion", "angle"):
            low, high = getattr(self, name)
            require(0 < low < high, f"{name} noise must satisfy 0 < least < greatest, not ({low}, {high}).")
            object.__setattr__(self, name, (low, high))
        object.__setattr__(self, "context_noise", tuple(self.context_noise))
        require(len(self.context_noise) == 4, "context_noise needs four numbers.")
        require(0 <= self.context_probability <= 1, "context_probability must lie in [0, 1].")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that must be known to build and run a model.

    Parameters
    ----------
    network : NetworkConfig
    process : ProcessConfig
    context_frames : int
        Past frames that a step sees; training lowers it to what its windows show, ``frames`` - 1.
    denoising_steps : int
        Default number of denoising steps.
    sampler : {"ancestral", "multistep", "euler-maruyama"}
        Default sampler.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    context_frames: int = 3
    denoising_steps: int = 10
    sampler: str = "multistep"

    def __post_init__(self):
        require(self.context_frames >= 1, f"context_frames must be at least 1, not {self.context_frames}.")
        require(self.denoising_steps >= 1, f"denoising_steps must be at least 1, not {self.denoising_steps}.")
        require(self.sampler in SAMPLERS, f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}.")
        require(
            self.network.parameterization == "plain" or self.process.schedule == "geometric",
            "The parameterization around the previous frame needs the geometric schedule.",
        )

    def to_dict(self) -> dict:
        """Plain nested dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModelConfig:
        """Inverse of `to_dict`; settings that are `RETIRED` may be there with the value that all models have."""
        data = dict(data)
        for name, value in RETIRED.items():
            found = data.pop(name, value)
            require(found == value, f"{name} = {found!r} is not served any more, only {value!r}.")
        network = NetworkConfig(**data.pop("network"))
        process = ProcessConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.pop("process").items()})
        return cls(network, process, **data)


def peptide() -> ModelConfig:
    """Small model of short peptides on a CPU."""
    return ModelConfig()


def paper() -> ModelConfig:
    """The STAR-MD paper's model (arXiv:2602.02128, tables 7 to 9); torsions are diffused unless switched."""
    network = NetworkConfig(
        blocks=4,
        width=256,
        pair_width=128,
        heads=8,
        attention_layers=2,
        query_points=8,
        value_points=12,
        max_relative_position=32,
        single_features=384,
        pair_features=128,
        reference_structure=True,
        parameterization="plain",
    )
    process = ProcessConfig(schedule="paper", torsion=(0.05, 3.0), angle=(0.005, 0.2))
    return ModelConfig(network, process, context_frames=64, denoising_steps=200, sampler="euler-maruyama")
