"""StarMDIntegrator: the learned step inside an OpenMM Context; the only module that writes the user's Context."""

from __future__ import annotations

import copy
import functools
import hashlib
import secrets
import time
import weakref
from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
from openmm import CompoundIntegrator, LangevinMiddleIntegrator, OpenMMException, unit

from openmm_starmd.binding.arguments import require, valueIn, wholeNumber
from openmm_starmd.binding.context import checkedPositions, checkSystem, refuseWater, watchContexts
from openmm_starmd.binding.store import HistoryStore, identityOf
from openmm_starmd.model import StarMDModel, choose_device, load_model
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.conformation import Conformation, from_positions, to_positions
from openmm_starmd.protein.errors import JumpRejectedError, StarMDError
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.relaxation import Relaxation

CLOCK, PHYSICS, RELAXATION = range(3)  # children of the CompoundIntegrator
EDITED = 1e-4  # nm; a backbone atom that moved farther since the last step was moved by somebody else
PHASES = ("network", "backmapping", "relaxation")


class StarMDIntegrator(CompoundIntegrator):
    """StarMDIntegrator advances a protein by the jumps of a learned model instead of femtosecond steps.

    Each step samples the conformation one stride (10 ps to 1 ns) later from a diffusion model that is conditioned on
    the past conformations, moves every atom of the protein accordingly and relaxes the result under the forces of the
    System. It replaces the integrator of an ordinary script in implicit solvent::

        integrator = StarMDIntegrator(pdb.topology, 300*kelvin, 100*picoseconds)
        simulation = Simulation(pdb.topology, system, integrator)
        simulation.context.setPositions(pdb.positions)
        simulation.step(1000)                                      # 100 ns

    Every reporter, checkpoint and State of OpenMM works; a run that is continued from a checkpoint or State is the
    same, bit for bit, as one that was never interrupted (Reference platform, or CPU with one thread). Positions that
    are set or minimised between steps start the history of past conformations anew. A copy or an unpickled
    StarMDIntegrator is a new one with the same settings; an XML round trip loses the model and ends in an error.

    For the model see Shoghi et al., "Scalable Spatio-Temporal SE(3) Diffusion for Long-Horizon Protein Dynamics"
    (https://arxiv.org/abs/2602.02128).
    """

    def __init__(
        self,
        topology,
        temperature,
        stepSize,
        model="starmd-peptide",
        *,
        relaxation=Relaxation(),
        contextFrames=None,
        denoisingSteps=None,
        randomSeed=0,
        device="auto",
        maxRetries=5,
        strict=True,
    ):
        """Create a StarMDIntegrator.

        Parameters
        ----------
        topology : Topology
            The Topology of the System that will be simulated.
        temperature : temperature
            The temperature, K.
        stepSize : time
            The stride: the time by which one step advances, ps.
        model : str or StarMDModel
            The name of an embedded model, the path of a model file, or a model.
        relaxation : Relaxation or None
            What happens to the atoms after each jump; None for nothing.
        contextFrames, denoisingSteps : int, optional
            Past conformations that a step is conditioned on, and denoising steps; the model's own by default.
        randomSeed : int
            Between 0 and 2^31 - 1. With 0, a seed is chosen when the Context is created.
        device : str
            Where the network runs: "auto", "cpu", "cuda", ...
        maxRetries : int
            How often a step is sampled again after a conformation that fails the checks.
        strict : bool
            Whether leaving the domain of the model is an error; otherwise it is a warning.
        """
        super().__init__()
        self._settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self._temperature, stepSize = valueIn(temperature, unit.kelvin), valueIn(stepSize, unit.picoseconds)
        require(self._temperature > 0, f"temperature must be > 0 K; got {self._temperature:g} K")
        require(stepSize > 0, f"stepSize must be > 0 ps; got {stepSize:g} ps")
        require(
            relaxation is None or isinstance(relaxation, Relaxation),
            f"relaxation must be a Relaxation or None; got {relaxation!r}",
        )
        refuseWater(topology)
        self._tokens = ResidueTokens.from_topology(topology)
        self._model = _modelOn(model, device)
        self._propagator = self._createPropagator(stepSize)
        self._relaxation = relaxation or Relaxation(mode="none")
        self._maxRetries = wholeNumber("maxRetries", maxRetries)
        self._store = HistoryStore(
            stepSize,
            topology.getNumAtoms(),
            self._tokens.n_residues,
            self._propagator.context_frames,
            identityOf(self._model, self._tokens),
        )
        self.addIntegrator(self._store)
        self.addIntegrator(LangevinMiddleIntegrator(self._temperature, 1.0, self._relaxation.timeStep))
        if self._relaxation.active:
            restrained = self._tokens.backbone.reshape(-1)
            self.addIntegrator(self._relaxation.createIntegrator(topology.getNumAtoms(), restrained))
        self._context = None
        self.setRandomNumberSeed(randomSeed)
        self._counts, self._failed, self._seconds = Counter(), Counter(), Counter()

    def step(self, steps):
        """Advance the simulation by ``steps`` strides.

        Raises
        ------
        JumpRejectedError
            If no acceptable conformation was sampled within ``maxRetries``; the Context is in its last good state.
        """
        context = self._boundContext()
        for _ in range(wholeNumber("steps", steps)):
            with self._timed("total"):
                self._jump(context)

    def _jump(self, context):
        """History of past conformations -> propagator -> conformation -> atom positions -> relaxation -> Context."""
        before = context.getState(positions=True, velocities=True)
        positions = checkedPositions(before)
        history = self._pastConformations(before, positions)
        for attempt in range(self._maxRetries + 1):
            generator = torch.Generator(self._model.device).manual_seed(self._random("jump", attempt))
            with self._timed("network"):
                conformation = self._propagator.step(history, generator)
                extended = self._propagator.extend(history, conformation, generator)
            with self._timed("backmapping"):
                moved, failures = self._toPositions(conformation, positions)
            if not failures:
                failures = self._toContext(context, before, moved, attempt)
            if not failures:
                self._store.write(extended, self._backboneOf(checkedPositions(context.getState(positions=True))))
                self._store.jump += 1
                self._counts["steps"] += 1
                return
            self._failed.update(failures)
            self._counts["resampled"] += 1
        self._store.jump += 1
        raise JumpRejectedError(
            f"None of {self._maxRetries + 1} sampled conformations passed the checks (the last failed: "
            f"{', '.join(failures)}). The Context is in its last good state; relax the structure, raise maxRetries or "
            "use another model."
        )

    def _pastConformations(self, state, positions) -> History:
        """The history that the present positions continue, or a new one that starts with them."""
        known = self._store.read(self._model.device)
        if known is not None:
            history, backbone = known
            if np.abs(self._backboneOf(positions) - backbone).max() <= EDITED:
                return history
        start = from_positions(torch.from_numpy(positions), self._tokens)
        return self._propagator.start(start[None], state.getTime().value_in_unit(unit.picoseconds))

    def _toPositions(self, conformation: Conformation, positions):
        """Atom positions (A, 3) of a conformation (1, N), and the names of the checks that they fail."""
        conformation = conformation[0].to("cpu", torch.float64)
        moved = to_positions(conformation, torch.from_numpy(positions), self._tokens)
        return moved.numpy(), check_positions(moved[None], self._tokens).failures(0)

    def _toContext(self, context, before, positions, attempt: int) -> list[str]:
        """Write and relax positions, draw velocities, set the clock; after a failure all is as before."""
        accepted = False
        try:
            context.setPositions(positions)
            context.computeVirtualSites()
            context.applyConstraints(self.getConstraintTolerance())
            context.computeVirtualSites()
            with self._timed("relaxation"):
                if self._relaxation.active:
                    seed = self._random("relaxation", attempt) % 2**30 + 1
                    self._relaxation.relax(context, RELAXATION, self._temperature, seed)
                relaxed = context.getState(positions=True, energy=True)
            numbers = relaxed.getPositions(asNumpy=True)._value, relaxed.getPotentialEnergy()._value
            if all(np.isfinite(x).all() for x in numbers):
                context.setVelocitiesToTemperature(self._temperature, self._random("velocities", attempt) % 2**30 + 1)
                context.setTime(before.getTime() + self.getStepSize())
                context.setStepCount(before.getStepCount() + 1)
                accepted = True
        except OpenMMException as error:
            if "NaN" not in str(error):
                raise
        finally:
            if not accepted:
                context.setPositions(before.getPositions(asNumpy=True))
                context.setVelocities(before.getVelocities(asNumpy=True))
                context.setTime(before.getTime())
                context.setStepCount(before.getStepCount())
        return [] if accepted else ["relaxation"]

    def stepPhysical(self, steps):
        """Take ordinary steps with the LangevinMiddleIntegrator ``getIntegrator(1)``; the history starts anew."""
        checkedPositions(self._boundContext().getState(positions=True))
        self.reset()
        self.setCurrentIntegrator(PHYSICS)
        try:
            super().step(wholeNumber("steps", steps))
        finally:
            self.setCurrentIntegrator(CLOCK)

    def bind(self, context):
        """Tell the integrator its Context; needed only where the Context was not made by ``openmm.Context(...)``."""
        if getattr(context, "_integrator", None) is not self:
            raise StarMDError("This StarMDIntegrator is not the integrator of the Context that it was to be bound to.")
        self._context = weakref.ref(context)

    def reset(self):
        """Forget the history of past conformations; the next step starts from the positions in the Context alone."""
        self._store.clear()

    def setStepSize(self, size):
        """Set the stride, ps. Reporters of trajectories assume that it does not change during a file."""
        size = valueIn(size, unit.picoseconds)
        require(size > 0, f"stepSize must be > 0 ps; got {size:g} ps")
        self._propagator = self._createPropagator(size)
        self._store.setStepSize(size)
        self._settings["stepSize"] = size

    def getTemperature(self):
        """Get the temperature, K."""
        return self._temperature * unit.kelvin

    def getRandomNumberSeed(self):
        """Get the random number seed; once a Context exists, the one in use, which checkpoints and States carry."""
        return self._store.seed

    def setRandomNumberSeed(self, seed):
        """Set the random number seed, between 0 and 2^31 - 1; 0 lets one be chosen."""
        seed = wholeNumber("randomSeed", seed)
        require(seed < 2**31, f"randomSeed must be below 2^31; got {seed}")
        self._settings["randomSeed"] = self._store.seed = seed
        if self._context is not None:
            self._chooseSeed()

    def getStatistics(self):
        """Get what happened since the integrator was created.

        Returns
        -------
        dict
            ``steps`` taken, conformations ``resampled``, ``failed`` checks by kind, wall ``seconds`` by phase.
        """
        counts = {name: self._counts[name] for name in ("steps", "resampled")}
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        seconds["other"] = self._seconds["total"] - sum(seconds.values())
        return counts | {"failed": dict(self._failed), "seconds": seconds}

    def inspect(self, system):
        """Check a System before a Context is made of it, and choose the random seed if there is none.

        Raises
        ------
        ValueError, UnsupportedTopologyError
            If it does not belong to the Topology, or holds what cannot be simulated.
        """
        checkSystem(system, self._settings["topology"].getNumAtoms(), self._tokens)
        self._chooseSeed()

    def _chooseSeed(self):
        if self.getRandomNumberSeed() == 0:
            self._store.seed = secrets.randbelow(2**31 - 1) + 1
        self.getIntegrator(PHYSICS).setRandomNumberSeed(self.getRandomNumberSeed())

    def _createPropagator(self, stride: float) -> Propagator:
        frames, denoising = self._settings["contextFrames"], self._settings["denoisingSteps"]
        return Propagator(
            self._model,
            self._tokens,
            stride,
            self._temperature,
            context_frames=frames,
            denoising_steps=denoising,
            strict=self._settings["strict"],
        )

    def _boundContext(self):
        context = self._context() if self._context is not None else None
        if context is None or getattr(context, "_integrator", None) is not self:
            raise StarMDError("This StarMDIntegrator has no Context; create one with it, or call bind(context).")
        return context

    def _backboneOf(self, positions) -> np.ndarray:
        return positions[self._tokens.backbone.numpy()].astype(np.float32)

    def _random(self, purpose: str, attempt: int) -> int:
        """Counter-based random numbers: a hash of the seed, the number of the jump, the attempt and the purpose."""
        key = (self.getRandomNumberSeed(), self._store.jump, attempt, purpose)
        return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1

    @contextmanager
    def _timed(self, phase: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def __deepcopy__(self, memo):
        return type(self)(**self._settings)

    __copy__ = functools.partialmethod(__deepcopy__, None)

    def __reduce__(self):
        return _create, (self._settings,)


def _create(settings) -> StarMDIntegrator:
    return StarMDIntegrator(**settings)


def _modelOn(model, device) -> StarMDModel:
    if not isinstance(model, StarMDModel):
        return load_model(model, device)
    if device == "auto" or choose_device(device) == model.device:
        return model
    denoiser = copy.deepcopy(model.denoiser).to(choose_device(device))
    return StarMDModel(denoiser, model.config, model.domain, model.card, model.name)


watchContexts()
