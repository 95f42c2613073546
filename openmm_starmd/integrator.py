"""StarMDIntegrator: the learned step inside an OpenMM Context; the only module that writes the user's Context."""

from __future__ import annotations

import math
import warnings

from openmm import LangevinMiddleIntegrator, unit
from openmm.app import Topology

from openmm_starmd.binding.bias import Bias
from openmm_starmd.binding.bound import CLOCK, PHYSICS, BoundIntegrator
from openmm_starmd.binding.context import (
    checkedPositions,
    checkSystem,
    drawVelocities,
    refuseOtherMolecules,
    unwatched,
    watchContexts,
)
from openmm_starmd.binding.forces import unknownForces
from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.binding.history_tracker import HistoryTracker
from openmm_starmd.binding.jump import JumpKernel
from openmm_starmd.binding.periodic import MoleculeImages
from openmm_starmd.binding.schedule import HybridSchedule
from openmm_starmd.binding.statistics import JumpStatistics
from openmm_starmd.binding.store import HistoryStore
from openmm_starmd.domain import Violation, warn_of_numbering
from openmm_starmd.errors import require
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.plugins import NewPropagator
from openmm_starmd.protein.tokens import ResidueTokens, refuse_missing_atoms
from openmm_starmd.relaxation import Relaxation
from openmm_starmd.trajectories.xtc import LAST_STEP
from openmm_starmd.units import positiveIn, wholeNumber


class StarMDIntegrator(BoundIntegrator):
    """StarMDIntegrator advances a protein by the jumps of a learned model instead of femtosecond steps.

    Each step samples the conformation one stride later (10 to 100 ps; tetrapeptides up to 1 ns) from a diffusion model
    that is conditioned on the past conformations, moves every atom accordingly and relaxes the result under the forces
    of the System. It replaces the integrator of an ordinary script in implicit solvent::

        integrator = StarMDIntegrator(pdb.topology, 300*kelvin, 100*picoseconds)
        simulation = Simulation(pdb.topology, system, integrator)
        simulation.context.setPositions(pdb.positions)
        simulation.step(1000)                                      # 100 ns

    Every reporter, checkpoint and State of OpenMM works; a run that is continued from a checkpoint or State is the
    same, bit for bit, as one that was never interrupted (Reference platform, or CPU with one thread). Many runs can
    start from one State or checkpoint: each ``randomSeed`` has noise of its own, and ``randomSeed=0`` goes on with the
    seed that the State holds. A State in memory that is set again (``context.setState``) draws new noise, as with
    OpenMM's own integrators, so the replicas of OpenMM's samplers are independent; ``loadState`` and
    ``loadCheckpoint`` repeat a run. Positions that are set or minimised between steps start the history of past
    conformations anew. A copy or an unpickled
    StarMDIntegrator is a new one with the same settings; an XML round trip loses the model and ends in an error.

    OpenMM's `Simulation.runForClockTime` looks at the clock every ten jumps and can last longer by as much. Restraints
    and biases act on the jumps where ``biasForceGroups`` names their force groups. All other forces that the model was
    not trained with act in the relaxation alone; a warning names them when the Context is created.

    For the model see Shoghi et al., "Scalable Spatio-Temporal SE(3) Diffusion for Long-Horizon Protein Dynamics"
    (https://arxiv.org/abs/2602.02128).
    """

    def __init__(
        self,
        topology,
        temperature,
        stepSize,
        model="auto",
        *,
        relaxation=Relaxation(),
        contextFrames=None,
        denoisingSteps=None,
        randomSeed=0,
        device="auto",
        maxRetries=5,
        strict=True,
        schedule=HybridSchedule(1, 0),
        physicalIntegrator=None,
        biasForceGroups=None,
        biasCandidates=1,
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
        model : str, path, StarMDModel or class of JumpPropagator
            "auto" for the embedded model whose domain holds the protein, the stride and the temperature
            (`choose_model`; the log tells which); the name of an embedded model, or of a propagator: "elastic" or one
            of another package (`available_propagators`); the path of a model file.
        relaxation : Relaxation or None
            What happens to the atoms after each jump; None for nothing.
        contextFrames, denoisingSteps : int, optional
            Past conformations that a step is conditioned on, and denoising steps; the model's own by default.
        randomSeed : int
            Between 0 and 2^31 - 1. With 0, a seed is chosen when the Context is created, and a State or checkpoint that
            is loaded brings its own; any other seed stays, whatever is loaded.
        device : str
            Where the network runs: "auto", "cpu", "cuda", ...
        maxRetries : int
            How often a step is sampled again after a conformation that fails the checks and cannot be repaired.
        strict : bool or dict
            Whether leaving the domain of the model is an error; otherwise it is a warning. ``{"length": False}`` makes
            a warning of one reason alone; the error names the reasons.
        schedule : HybridSchedule
            Physical segments between the jumps; none by default.
        physicalIntegrator : Integrator, optional
            What `stepPhysical` and the segments of the schedule run; any integrator of OpenMM without a Context.
            By default a LangevinMiddleIntegrator with 1/ps and the time step of the relaxation.
        biasForceGroups : set of int, optional
            Force groups of restraints and biases. A jump is accepted by their energy, so that the ensemble is the
            biased one as far as unbiased jumps are reversible. A rejected jump keeps its conformation; its time passes.
            The relaxation leaves them out, and physical steps feel them.
        biasCandidates : int
            Conformations of a jump among which the bias chooses (multiple-try Metropolis), for biases that accept few.
        """
        super().__init__()
        self._settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        require(
            isinstance(topology, Topology),
            "The Topology of the System comes first: StarMDIntegrator(topology, temperature, stepSize); "
            f"got {topology!r}",
        )
        self._temperature = positiveIn("temperature", temperature, unit.kelvin)
        stepSize = positiveIn("stepSize", stepSize, unit.picoseconds)
        require(
            relaxation is None or isinstance(relaxation, Relaxation),
            f"relaxation must be a Relaxation or None; got {relaxation!r}",
        )
        require(isinstance(schedule, HybridSchedule), f"schedule must be a HybridSchedule; got {schedule!r}")
        for name in ("contextFrames", "denoisingSteps"):
            if self._settings[name] is not None:
                self._settings[name] = wholeNumber(name, self._settings[name], 1)
        self._relaxation, self._schedule = relaxation or Relaxation(mode="none"), schedule
        refuse_missing_atoms(topology)
        self._tokens = ResidueTokens.from_topology(topology)
        self._newPropagator = NewPropagator.of(model, self._tokens, stepSize, self._temperature, device, strict)
        self._propagator = self._createPropagator(stepSize, self._temperature)
        if not self._relaxation.steers:
            refuseOtherMolecules(topology)
        self._bias = Bias.of(biasForceGroups, biasCandidates, self._relaxation.steers)
        self._maxRetries = wholeNumber("maxRetries", maxRetries)
        self._held = (self._tokens.heavy_atoms if self._relaxation.steers else self._tokens.backbone.flatten()).numpy()
        store = HistoryStore(
            stepSize,
            topology.getNumAtoms(),
            self._tokens.features,
            self._propagator.context_frames,
            self._propagator.identity,
            self._propagator.device,
            self._relaxation.scratch,
        )
        store.setIntegrationForceGroups(self._bias.others)
        if self._relaxation.active:
            self._relaxation.addProgram(store)
        self._gate, self._tracker = self._createGate(), HistoryTracker(store, self._tokens, self._random)
        molecules = MoleculeImages(topology, self._tokens.protein_atoms.tolist())
        if physicalIntegrator is None:
            physicalIntegrator = LangevinMiddleIntegrator(self._temperature, 1.0, self._relaxation.timeStep)
        self._adopt(physicalIntegrator, store, molecules, randomSeed)
        self.setCurrentIntegrator(CLOCK if schedule.learnedSteps else PHYSICS)
        self._statistics = JumpStatistics()

    def step(self, steps):
        """Advance the simulation by ``steps`` steps: strides, and between them physical steps if the schedule has any.

        Raises
        ------
        JumpRejectedError
            If no acceptable conformation was sampled within ``maxRetries``. After this and every other error the
            Context is in its last good state.
        """
        context = self._boundContext()
        remaining = wholeNumber("steps", steps)
        while remaining:
            phase = self._store.phase
            learned, left = self._schedule.segment(phase)
            count = 1 if learned else min(left, remaining)
            with self._undoneOnError(context) as saved:
                if learned:
                    with self._statistics.timed("total"):
                        self._jump(context, saved)
                else:
                    self._moveByPhysics(context, count)
                self._store.phase = (phase + count) % self._schedule.cycle
            remaining -= count

    def stepPhysical(self, steps):
        """Take ordinary steps with the physical integrator ``getIntegrator(0)``, in time and step count of its own.

        The conformation that the dynamics leads to takes part in the history of the next jump: it stands in place of
        the last one, and whenever the dynamics has lasted for a stride the conformation of that time is added.
        """
        context, steps = self._boundContext(), wholeNumber("steps", steps)
        with self._undoneOnError(context):
            self._moveByPhysics(context, steps)

    def _jump(self, context, saved: bytes):
        """History of past conformations -> propagator -> conformation -> atom positions -> relaxation -> Context."""
        self.setCurrentIntegrator(CLOCK)
        time, count, kernel, accepted = context.getTime(), context.getStepCount(), self._kernel(), True
        origin = kernel.origin(context, self._store.excess, self._checkPositions, saved)
        self._statistics.startJump()
        if self._bias.groups:
            proposal, accepted = self._bias.propose(kernel, context, origin, self._random)
        else:
            proposal = kernel.propose(context, origin, self._random)
        if accepted:
            self._tracker.add(self._propagator, origin.history, proposal.positions, proposal.shifts, proposal.generator)
            self._store.excess = self._gate.excess(proposal.energies[-1] - origin.base, self._particles.freedoms)
        else:
            unwatched(context, "loadCheckpoint", saved)
        drawVelocities(context, self._particles.masses, self._temperature, self._random("velocities", proposal.attempt))
        context.setTime(time + self._propagator.stride * unit.picoseconds)
        context.setStepCount(count + 1)
        self._store.jump += 1
        self._statistics.finishJump(proposal.attempt, proposal.repaired, proposal.energies, accepted)

    def _kernel(self) -> JumpKernel:
        own = self._propagator, self._gate, self._tracker, self._relaxation, self._held, CLOCK, self._particles
        return JumpKernel(*own, self._temperature, self._maxRetries, self._statistics, self._outside, self._bias.others)

    def _checkPositions(self, positions):
        """Compare positions that a history starts with, and that nobody has seen before, with the domain."""
        outside = self._outside()
        self._newPropagator.refuse([told for told in self._outside(positions) if told not in outside])

    def _outside(self, positions=None) -> list[Violation]:
        """Violations of the domain of the model."""
        return self._newPropagator.outside(self._tokens, self._propagator.stride, self._temperature, positions)

    def _moveByPhysics(self, context, steps: int):
        """Steps of the physical integrator; the history follows."""
        if self._tracker.known(checkedPositions(context.getState(positions=True))) is None:
            self.reset()
        physics, stride = self.getIntegrator(PHYSICS), self._propagator.stride
        self.setCurrentIntegrator(PHYSICS)  # and so it stays: it knows the kinetic energy of its velocities
        while steps:
            known = self._store.read() is not None
            toNextFrame = math.ceil((stride - self._store.elapsed) / (physics.getStepSize()._value or stride) - 1e-6)
            count = min(steps, max(1, toNextFrame)) if known else min(steps, LAST_STEP)
            start = context.getTime()
            super().step(count)
            steps -= count
            if known:
                positions = self._particles.wholeMolecules(context.getState(positions=True))
                time = (context.getTime() - start)._value
                self._tracker.follow(self._propagator, *positions, time, context.getStepCount())
                self._store.excess = self._gate.excess(0, self._particles.freedoms)

    def getIntegrationForceGroups(self):
        """Get the force groups of the physical integrator, as bits: reporters show their energy."""
        return self.getIntegrator(PHYSICS).getIntegrationForceGroups()

    def getStepSize(self):
        """Get the stride, ps; with physical segments the mean time of the steps of a cycle.

        So reporters of trajectories that write a frame a cycle write its true time.
        """
        physical = self.getIntegrator(PHYSICS).getStepSize()._value
        return self._schedule.meanStepSize(self._propagator.stride, physical) * unit.picoseconds

    def setStepSize(self, size):
        """Set the stride, ps. Reporters of trajectories assume that it does not change during a file."""
        size = positiveIn("stepSize", size, unit.picoseconds)
        self._propagator = self._createPropagator(size, self._temperature)
        self._store.setStepSize(size)
        self._settings["stepSize"] = size

    def getTemperature(self):
        """Get the temperature, K."""
        return self._temperature * unit.kelvin

    def setTemperature(self, temperature):
        """Set the temperature, K, of jumps, relaxation, velocities and of the physical integrator.

        Raises
        ------
        ModelDomainError
            If it lies outside the domain of the model; the temperature stays what it was.
        """
        temperature = positiveIn("temperature", temperature, unit.kelvin)
        self._propagator = self._createPropagator(self._propagator.stride, temperature)
        self._settings["temperature"] = self._temperature = temperature
        self._gate = self._createGate()
        physics = self.getIntegrator(PHYSICS)
        if hasattr(physics, "setTemperature"):
            physics.setTemperature(temperature)

    def getStatistics(self):
        """Get what happened since the integrator was created.

        Returns
        -------
        dict
            Jumps taken (``steps``), conformations that were given up and ``resampled``, jumps whose conformation was
            ``repaired`` (the residues that failed the checks were sampled again, the rest was held), and the
            ``acceptance``: the shares of the sampled conformations that passed the checks at ``firstTry`` and
            ``afterRepair`` (both kinds together). ``bias`` counts the jumps that the bias has ``accepted`` and
            ``rejected``, with the share as ``acceptance``. Shares are None before the first. ``failed`` checks by kind,
            before repairs; wall ``seconds`` by phase; and the ``last`` jump: its ``retries``, whether it was
            ``repaired``, ``failed`` checks, ``energyBefore`` and ``energyAfter`` relaxation (potential energy without
            the bias, kJ/mol) and wall ``seconds``; None before the first.
        """
        return self._statistics.asDict()

    def inspect(self, system):
        """Check a System before a Context is made of it, and choose the random seed if there is none.

        A ValueError or UnsupportedTopologyError says that it does not belong to the Topology, or holds what cannot be
        simulated.
        """
        topology = self._settings["topology"]
        checkSystem(system, topology.getNumAtoms(), self._tokens)
        warn_of_numbering(self._tokens)
        self._bias.check(system)
        if unknown := unknownForces(system, topology, self._tokens, self._newPropagator.force_field, self._bias.groups):
            warnings.warn(
                f"Model {self._propagator.name!r} was not trained with {'; '.join(unknown)}. This acts in the "
                "relaxation after each jump and in physical steps; the jumps know nothing of it. A restraint or bias "
                "acts on the jumps, too, where biasForceGroups names its force group.",
                stacklevel=5,
            )
        self._chooseSeed()

    def _createGate(self) -> ValidityGate:
        return ValidityGate(self._settings["topology"], self._tokens, self._temperature, self._relaxation.active)

    def _createPropagator(self, stride: float, temperature: float) -> JumpPropagator:
        given = {"context_frames": self._settings["contextFrames"], "denoising_steps": self._settings["denoisingSteps"]}
        return self._newPropagator(self._tokens, stride, temperature, **given)


watchContexts()
