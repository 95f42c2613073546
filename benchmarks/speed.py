"""What a frame costs: network, sampler and backmapping, on whatever hardware there is.

    python benchmarks/speed.py --threads 2

Settings
--------
paper size       the network of the STAR-MD paper (`network.config.paper`) with random weights, behind a full window of
                 context frames: seconds a frame with the reference sampler of many steps and with a short one (that in
                 bfloat16, too), seconds a denoising step (all of a frame over its calls of the network), the process's
                 peak memory so far
tetrapeptide     the embedded model, one thread: milliseconds a call of the network for one and for many replicas, and
                 the share of a jump (sampling, context copy, backmapping) that is spent outside the network
cache            bytes of keys and values
plain MD         how many times as fast as plain MD of the same System (4 fs, native OBC2) on the same core, or GPU, by
                 `throughput.py`: a tetrapeptide alone and many at a time; villin with jumps of 1 ns by an untrained
                 network of the embedded model's size that makes small moves. "Fast" is `starmd-peptide-fast`
GPU              where there is one: a frame of the paper's proteins, half the context of a run and all of it behind it,
                 with denoising recorded as a CUDA graph and operator by operator; of the process, the greatest GPU
                 memory while it does

Goals and peers are those of the project; peers were timed by others or on other days and are context only. Cost against
residues, context frames and replicas: exponents are those of a power law through the larger half of the sizes.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from types import SimpleNamespace
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import circumstances, parser, table, write
from compare_md import molecule
from throughput import CORES, MODES, bind, measure
from torch.profiler import ProfilerActivity, profile

from openmm_starmd import Propagator, load_model
from openmm_starmd.diffusion.replay import Replayed
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.model import Domain, StarMDModel
from openmm_starmd.network.config import paper
from openmm_starmd.protein.conformation import Conformation, from_positions, to_positions
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.tokens import ResidueFeatures, ResidueTokens
from openmm_starmd.systems import build_peptide

STRIDE, TEMPERATURE = 100.0, 300.0  # ps, K
LARGE = Domain(max_length=10**6)
GPU_PROTEINS = {
    51: (0.2, 0.02, 9.6),
    724: (1.5, 0.15, 17.3),
}  # residues: goals of both samplers and the paper's time, s
GPU_CONTEXTS = 40, 80
EMBEDDED = {"starmd-peptide": "", "starmd-peptide-fast": ", fast"}
SECTIONS = "phases", "operators", "md", "goals", "scans"
TIMES_MD, TIMES_MD_TOGETHER = (100, 50), (1500, 200)  # not relaxed, relaxed
ONE_CORE = {name: mode for name, mode in MODES.items() if mode.workers == 1}
PARTS = ("denoise", "encode", "conditions")  # of the network


@dataclass(frozen=True)
class Goal:
    """A measured figure beside what it should be at most, and a peer's."""

    measured: float
    goal: float = math.nan
    peer: float = math.nan

    def row(self) -> dict[str, float]:
        ratio = self.measured / self.goal
        return {"measured": self.measured, "goal": self.goal, "measured / goal": ratio, "peer": self.peer}


def chain(n: int, batch: int, device) -> tuple[ResidueFeatures, Conformation]:
    """Features and a random conformation (B, N) of a chain; nothing but its size matters here."""
    generator = torch.Generator().manual_seed(n)
    zero = torch.zeros(n, dtype=torch.long)
    types, mask = torch.randint(20, (n,), generator=generator), torch.rand(n, 6, generator=generator) < 0.7
    period = torch.full((n, 6), 2 * math.pi, dtype=torch.float64)
    steps = 0.38 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    frames = Rigid(exponential(torch.randn(n, 3, generator=generator)), steps.cumsum(0))
    c = Conformation(frames, torch.randn(n, 6, generator=generator) * mask, torch.full((n,), 1.96))
    features = ResidueFeatures(types, torch.arange(n), zero, zero, zero, mask, period)
    return features.to(device), Conformation.stack([c] * batch).to(device)


def seconds(call: Callable, least: float, warm: int = 1) -> float:
    """Median wall time of a call, from as many as fit into ``least`` seconds, two at least."""
    for _ in range(warm):
        call()
    times, begin = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < least:
        now = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - now)
    return float(np.median(times))


def peak_memory() -> float:
    """Greatest resident memory of this process so far, MiB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


class Jump:
    """One step of a run that has ``context`` frames behind it: the newest is noised and encoded, too."""

    def __init__(self, model: StarMDModel, tokens, start: Conformation, context: int, **settings):
        self.generator = torch.Generator(model.device).manual_seed(1)
        self.propagator = Propagator(model, tokens, STRIDE, TEMPERATURE, **settings)
        self.before = self.propagator.start(start)
        for _ in range(context - 2):
            self.before = self.propagator.extend(self.before, self.before.last, self.generator)

    def __call__(self) -> Conformation:
        history = self.propagator.extend(self.before, self.before.last, self.generator)
        return self.propagator.step(history, self.generator)


def call_of_network(model: StarMDModel, n: int, context: int, batch: int = 1) -> Callable:
    """One call of the network on a chain, recorded, given the cache of the context frames."""
    denoiser, process = model.denoiser, model.process
    features, start = chain(n, batch, model.device)
    with torch.inference_mode():
        static = denoiser.static_inputs(features.expand(batch), start)
        cache = denoiser.cache(batch, n, context + 1)
        for part in (cache.keys, cache.values):
            part.normal_()
        cache = replace(cache, n_frames=context)
        frame, time_ = start.map(lambda x: x[:, None]), torch.full((1, 1), 0.5, device=model.device)
        levels = time_, process.alpha(time_), process.sigma(time_), torch.full_like(time_, STRIDE)
        index = torch.tensor([context], device=model.device)
        conditions = denoiser.conditions(static, frame, denoiser.time_conditioning(*levels), index)
        way = denoiser.denoise(conditions, frame, cache)
    recorded = Replayed(lambda given, state: denoiser.denoise(conditions, frame, cache), model.device)

    def call():
        with torch.inference_mode():
            recorded.run((), way)

    return call


def paper_frame(
    model: StarMDModel,
    n: int,
    context: int,
    sampler: str,
    steps: int,
    least: float,
    way: str = "recorded",
) -> tuple[float, float]:
    """Seconds a frame, and a denoising step, recorded or eager."""
    config = replace(model.config, sampler=sampler)
    chosen = StarMDModel(model.denoiser, config, model.domain)
    features, start = chain(n, 1, model.device)
    tokens = SimpleNamespace(features=features, n_residues=n, gaps=[], residue_labels=n * ["ALA"])
    jump = Jump(chosen, tokens, start, context, context_frames=context + 1, denoising_steps=steps)
    jump.propagator.forget(records=way == "recorded")
    with torch.inference_mode():
        jump.propagator._window.encode(jump.before)  # so that only the newest frame is left to be encoded
    frame = seconds(jump, least, warm=2)
    return frame, frame / len(jump.propagator.sampler.times())


def paper_goals(model: StarMDModel, options) -> dict[str, Goal]:
    """Frames of paper size on this device."""
    rows = {}
    if model.device.type == "cuda":
        return gpu_goals(model, options)
    known = {39: (0.045, 0.8, 0.042, 8.5), 58: (0.045 * 58 / 39, 1.5, math.nan, 14.0)}
    for n in options.residues:
        step_goal, short_goal, peer_step, peer_frame = known.get(n, 4 * (math.nan,))
        for k, (name, steps) in enumerate(options.samplers.items()):
            frame, step = paper_frame(model, n, options.context, name, steps, options.least)
            goal = Goal(frame, short_goal) if k else Goal(frame, math.nan, peer_frame)
            rows[f"paper size, {n} residues, {name} {steps}, s a frame"] = goal
            if not k:
                rows[f"paper size, {n} residues, s a denoising step"] = Goal(step, step_goal, peer_step)
        memory_of_peer = 785.0 if n == 39 else math.nan
        rows[f"paper size, {n} residues, peak memory, MiB"] = Goal(peak_memory(), 1024.0, memory_of_peer)
    return rows


def gpu_goals(model: StarMDModel, options) -> dict[str, Goal]:
    """Frames of the paper's proteins on a GPU; other ways than the recorded one by the short sampler only."""
    rows = {}
    short = list(options.samplers)[1]
    for n, goals in GPU_PROTEINS.items():
        torch.cuda.reset_peak_memory_stats()
        cases = [(*case, "recorded") for case in product(options.samplers.items(), GPU_CONTEXTS)]
        cases += [((short, options.samplers[short]), GPU_CONTEXTS[0], "eager")]
        for (name, steps), context, way in cases:
            frame, _ = paper_frame(model, n, context, name, steps, options.least, way)
            goal = Goal(frame, goals[1]) if name == short else Goal(frame, goals[0], goals[2])
            rows[f"{n} residues, {context} frames, {name} {steps}, {way}, s a frame"] = goal
        memory = torch.cuda.max_memory_allocated() / 2**30
        rows[f"{n} residues, GPU memory, GiB"] = Goal(memory)
    return rows


def against_md(options) -> dict[str, dict[str, float]]:
    """Ratios to plain MD of one replica and of many, relaxed and not, beside what they should be at least."""
    rows, platform = {}, "CUDA" if torch.cuda.is_available() else "CPU"
    settings = {"platform": platform, "threads": 1, "seed": options.seed}
    settings |= {"seconds": 2 * options.least, "frames": options.frames}
    for name, (model, note) in product(options.molecules, EMBEDDED.items()):
        large, chosen = name == "villin", settings | {"model": model}
        if large and note:  # villin has its own network
            continue
        modes = {k: mode for k, mode in ONE_CORE.items() if mode.relaxation} if large else ONE_CORE
        stride = 1000.0 if large else STRIDE
        what = molecule(name, SimpleNamespace(stride=stride, **chosen))
        for replicas in (1,) if large else (1, options.replicas):
            for way, cell in measure(what, replicas, modes, SimpleNamespace(**chosen)):
                goals = (math.nan, 1000) if large else TIMES_MD if replicas == 1 else TIMES_MD_TOGETHER
                goal = goals[modes[way].relaxation is not None]
                row = {"ns/day": cell["ns/day"], "x MD": cell["x MD"], "x MD, CPU time": cell["x MD, CPU time"]}
                row |= {"goal": goal, "x MD / goal": cell["x MD"] / goal}
                rows[f"{name}, stride {stride:g} ps, {replicas} replica(s), {way}{note}"] = row
    bind(len(CORES))
    return rows


def cache_goal(model: StarMDModel) -> dict[str, Goal]:
    """Memory of keys and values at 1000 residues and 800 frames."""
    measured = copy.deepcopy(model.denoiser).to("meta").cache(1, 1000, 800).nbytes
    return {"cache, 1000 residues, 800 frames, GB": Goal(measured / 1e9, 6.6, 10.0)}


class Phases:
    """Wall time by phase of a tetrapeptide's jumps.

    What is recorded is timed as a whole. Denoising contains the moves of the sampler; they are recorded and timed once
    more on their own, and are no part of the network.
    """

    def __init__(self, model: StarMDModel, sequence: str, replicas: int):
        topology, positions = build_peptide(sequence, seed=1)
        self.tokens = ResidueTokens.from_topology(topology)
        self.atoms = torch.tensor(np.array(positions._value))[None].expand(replicas, -1, -1)
        start = from_positions(self.atoms, self.tokens)
        self.jump = Jump(model, self.tokens, start, model.config.context_frames + 1)  # the window has begun to slide
        self.replicas, self.seconds, self.denoising = replicas, defaultdict(float), ()

    def timed(self, phase: str, function: Callable) -> Callable:
        def wrapped(*arguments):
            begin = time.perf_counter()
            result = function(*arguments)
            self.seconds[phase] += time.perf_counter() - begin
            return result

        return wrapped

    def clocked(self, original: Callable) -> Callable:
        """`Execution.runner` with clocks; the last denoising is kept."""

        def wrapped(use, *arguments):
            run = self.timed("denoise" if use == "denoise" else "encode", original(use, *arguments).run)

            def kept(*arguments):
                self.denoising = arguments if use == "denoise" else self.denoising
                return run(*arguments)

            return SimpleNamespace(run=kept)

        return wrapped

    def moves(self, least: float) -> float:
        """Seconds of all moves of a jump."""
        propagator, (given, state, times) = self.jump.propagator, self.denoising
        x = state.x.conformation()
        none = Displacement(0 * x.frames.translations, 0 * x.frames.translations, 0 * x.torsions, 0 * x.angles)
        with torch.inference_mode():
            recorded = Replayed(
                lambda given, state: propagator.sampler.step(given[1], state, none), propagator.model.device
            )
            return seconds(lambda: recorded.run(given, state, times), least / 10, warm=2)

    def run(self, least: float) -> dict[str, float]:
        """Milliseconds a jump of one replica by phase, of a call of the network, and the share outside of it."""
        for _ in range(3):
            self.jump()
        denoiser, propagator = self.jump.propagator.model.denoiser, self.jump.propagator
        execution = propagator._window.execution
        conditions = self.timed("conditions", denoiser.conditions)
        back, copy_ = self.timed("backmapping", to_positions), self.timed("context copy", propagator.extend)
        begin, jumps = time.perf_counter(), 0
        with (
            patch.object(denoiser, "conditions", conditions),
            patch.object(propagator, "extend", copy_),
            patch.object(execution, "runner", self.clocked(execution.runner)),
        ):
            while jumps < 2 or time.perf_counter() - begin < least:
                back(self.jump().to("cpu", torch.float64), self.atoms, self.tokens)
                jumps += 1
        whole = time.perf_counter() - begin
        self.seconds["moves"] = jumps * self.moves(least)
        self.seconds["denoise"] -= self.seconds["moves"]
        found = {name: self.seconds[name] for name in (*PARTS, "moves", "context copy", "backmapping")}
        found["the rest"] = whole - sum(found.values())
        scale = 1000 / jumps / self.replicas
        result = {f"{name} (ms)": value * scale for name, value in found.items()} | {"jump (ms)": whole * scale}
        result["call of the network (ms)"] = 1000 * self.seconds["denoise"] / jumps / self.denoising[2]
        return result | {"outside the network": 1 - sum(self.seconds[name] for name in PARTS) / whole}


def operators(call: Callable, count: int = 12, on: str = "cpu") -> dict[str, dict[str, float]]:
    """The operators of a call, or the kernels (``on`` is cuda), that take most time by themselves."""
    for _ in range(3):  # recorded in the second
        call()
    with profile(activities=[getattr(ProfilerActivity, on.upper())]) as profiled:
        call()
    own = attrgetter("self_cpu_time_total" if on == "cpu" else "self_device_time_total")
    rows = sorted(profiled.key_averages(), key=lambda row: -own(row))
    whole = sum(map(own, rows))
    shown = {row.key: {"ms": own(row) / 1000, "share": own(row) / whole, "calls": row.count} for row in rows[:count]}
    return shown | {"all": {"ms": whole / 1000, "share": 1.0, "calls": sum(row.count for row in rows)}}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Of a power law through the larger half of the sizes."""
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0]) if len(sizes) > 1 else math.nan


def scans(model: StarMDModel, peptide: StarMDModel, options) -> dict[str, dict[int, float]]:
    """Milliseconds a call of the network against residues, context frames and replicas."""
    ways = {
        f"residues (paper size, {options.context} context frames)": (
            options.scan_residues,
            lambda n: call_of_network(model, n, options.context),
        ),
        f"context frames (paper size, {options.residues[0]} residues)": (
            options.scan_frames,
            lambda frames: call_of_network(model, options.residues[0], frames),
        ),
        "replicas (embedded model, 4 residues)": (
            options.scan_replicas,
            lambda batch: call_of_network(peptide, 4, peptide.config.context_frames, batch),
        ),
    }
    return {
        name: {size: 1000 * seconds(make(size), options.least / 10, warm=2) for size in sizes}
        for name, (sizes, make) in ways.items()
    }


def draw(found: dict[str, dict[int, float]], path):
    """Cost against size, a panel each."""
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.4), layout="constrained")
    for ax, (name, times) in zip(np.atleast_1d(axes), found.items(), strict=True):
        ax.loglog(list(times), list(times.values()), "o-")
        slope = exponent(list(times), list(times.values()))
        ax.set(xlabel=name, ylabel="ms a call of the network", title=f"exponent {slope:.2f}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    made = parser(__doc__, "speed")
    made.set_defaults(threads=2)
    made.add_argument("--residues", type=int, nargs="+", default=[39, 58], help="of the proteins of paper size")
    made.add_argument("--context", type=int, default=8, help="context frames behind them, at least 2")
    made.add_argument("--steps", type=int, nargs=2, default=[200, 10], help="of the reference and of the short sampler")
    made.add_argument("--replicas", type=int, default=32, help="of the tetrapeptide")
    made.add_argument("--scan-residues", type=int, nargs="+", default=[10, 20, 39, 80, 150, 300])
    made.add_argument("--scan-frames", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    made.add_argument("--scan-replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    made.add_argument("--molecules", nargs="+", default=["DWGR", "villin"], help="that stand beside plain MD")
    made.add_argument("--frames", type=int, default=16, help="of each replica that are timed beside plain MD")
    made.add_argument("--least", type=float, default=5.0, help="seconds that a measurement takes at least")
    made.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="what to measure")
    options = made.parse_args()
    options.samplers = dict(zip(("euler-maruyama", "multistep"), options.steps, strict=True))
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, peptide = StarMDModel.create(paper(), LARGE, options.seed).on(device), load_model("starmd-peptide", device)
    models = peptide, load_model("starmd-peptide-fast", device)
    facts = circumstances(*models, device=device, context=f"{options.context} frames")
    sections, results = {}, {}

    def tell(name: str, text: str, **more):
        sections[name] = text
        results.update(more)
        write(options.output, "Speed", facts, sections, results)
        print(f"{name}\n\n{text}\n", flush=True)

    torch.set_num_threads(1)
    goals = {}
    if "phases" in options.sections:
        phases = {f"{b} replica(s)": Phases(peptide, "DWGR", b).run(options.least) for b in (1, options.replicas)}
        tell("A jump of a tetrapeptide, one thread, by phase and replica", table(phases, "batch"), phases=phases)
        one, many = phases.values()
        goals["tetrapeptide, one replica, ms a call of the network"] = Goal(one["call of the network (ms)"], 3.0)
        goals[f"tetrapeptide, {options.replicas} replicas, ms a call"] = Goal(many["call of the network (ms)"])
        goals["tetrapeptide, share outside the network"] = Goal(one["outside the network"], 0.1)
    if "operators" in options.sections:
        rows = operators(Phases(peptide, "DWGR", 1).jump)
        tell("Operators of a jump of one replica", table(rows, "operator"))
    if "md" in options.sections:
        beside = against_md(options)
        tell("Against plain MD, one thread", table(beside, "setting"), against_md=beside)
    torch.set_num_threads(options.threads)
    if "goals" in options.sections:
        rows = {name: goal.row() for name, goal in (paper_goals(model, options) | cache_goal(model) | goals).items()}
        tell("Goals", table(rows, "setting"), goals=rows)
    if "scans" in options.sections:
        found = scans(model, peptide, options)
        draw(found, options.output.with_suffix(".png"))
        tell("Milliseconds a call of the network", costs(found), scans=found)


def costs(found: dict[str, dict[int, float]]) -> str:
    """A table of each scan, and its exponent."""
    texts = []
    for name, times in found.items():
        slope = exponent(list(times), list(times.values()))
        texts.append(f"{name}: exponent {slope:.2f}\n\n{table({'ms': {str(k): ms for k, ms in times.items()}})}")
    return "\n\n".join(texts)


if __name__ == "__main__":
    main()
