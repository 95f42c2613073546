"""BoundIntegrator: how a compound integrator knows its Context, loads States into it and seeds its random numbers."""

from __future__ import annotations

import copy
import functools
import secrets
import weakref
from contextlib import contextmanager

from openmm import CompoundIntegrator, Integrator, State

from openmm_starmd.binding.context import checkIntegrator, unwatched
from openmm_starmd.binding.loading import Loader
from openmm_starmd.binding.particles import Particles
from openmm_starmd.binding.periodic import MoleculeImages
from openmm_starmd.binding.store import HistoryStore
from openmm_starmd.errors import JumpRejectedError, StarMDError, require
from openmm_starmd.seeds import derived
from openmm_starmd.units import wholeNumber

PHYSICS, CLOCK = range(2)  # children; a CompoundIntegrator asks the first for the velocities of a temperature


class BoundIntegrator(CompoundIntegrator):
    """A physical integrator and a HistoryStore in one, bound to the Context that they are used in.

    A subclass keeps the arguments of its constructor in ``_settings``, and calls `_adopt` there.
    """

    _settings: dict

    def _adopt(self, physics: Integrator, store: HistoryStore, molecules: MoleculeImages, randomSeed: int):
        """Take the children, and a random number seed; 0 lets one be chosen."""
        checkIntegrator(physics)
        self._settings["physicalIntegrator"] = None  # copies take what becomes of it
        self._store, self._loader, self._molecules = store, Loader(store), molecules
        self._seedsPhysics = hasattr(physics, "setRandomNumberSeed") and physics.getRandomNumberSeed() == 0
        self.addIntegrator(physics)
        self.addIntegrator(store)
        self._context = None
        self.setRandomNumberSeed(randomSeed)

    def bind(self, context):
        """Tell the integrator its Context; needed only where the Context was not made by ``openmm.Context(...)``."""
        if getattr(context, "_integrator", None) is not self:
            raise StarMDError("This StarMDIntegrator is not the integrator of the Context that it was to be bound to.")
        self._context = weakref.ref(context)
        self._particles = Particles(context.getSystem(), self._molecules)

    def issue(self, state):
        """Note a State that was made of the Context; ``context.getState(integratorParameters=True)`` calls it."""
        self._loader.issue(state)

    def load(self, context, read, source):
        """Load a State or checkpoint; ``context.setState`` and ``context.loadCheckpoint`` call it as ``read``.

        A HistoryError refuses one that was made under another integrator or model, or of another System. The Context is
        as it was before.
        """
        with self._undoneOnError(context):
            self._loader.load(context, read, source)
            if self._givenSeed not in (0, self._store.seed):
                self._store.seed = self._givenSeed
                if self._seedsPhysics and not isinstance(source, State):  # a checkpoint holds random numbers of its own
                    self._initializeAnew(context)

    def reset(self):
        """Forget the history of past conformations; the next step starts from the positions in the Context alone."""
        self._store.clear()

    def getRandomNumberSeed(self):
        """Get the random number seed; once a Context exists, the one in use, which checkpoints and States hold."""
        return self._store.seed

    def setRandomNumberSeed(self, seed):
        """Set the random number seed, between 0 and 2^31 - 1; 0 lets one be chosen. Loading a State changes no other.

        The physical integrator gets it too, unless it was given with a seed of its own. An integrator of OpenMM takes a
        seed when its Context is initialised, so a Context that exists is initialised anew, in its present State.
        """
        seed = wholeNumber("randomSeed", seed)
        require(seed < 2**31, f"randomSeed must be below 2^31; got {seed}")
        self._givenSeed = self._store.seed = seed
        if self._context is not None:
            context = self._boundContext()
            self._chooseSeed()
            self._initializeAnew(context)

    @staticmethod
    def _initializeAnew(context):
        """Initialise a Context in its present State, so that its integrators take their seeds."""
        state = context.getState(positions=True, velocities=True, parameters=True, integratorParameters=True)
        context.reinitialize()
        unwatched(context, "setState", state)

    def _chooseSeed(self):
        if self.getRandomNumberSeed() == 0:
            self._store.seed = secrets.randbelow(2**31 - 1) + 1
        physics = self.getIntegrator(PHYSICS)
        if self._seedsPhysics:
            physics.setRandomNumberSeed(self.getRandomNumberSeed())
        if hasattr(physics, "setRandomNumberSeed"):  # the Reference platform keeps one generator for all integrators
            self._store.setRandomNumberSeed(physics.getRandomNumberSeed())

    @contextmanager
    def _undoneOnError(self, context):
        """Put the Context back as it was, to the last bit, if the block does not come to its end."""
        saved, current = context.createCheckpoint(), self.getCurrentIntegrator()
        try:
            yield saved
        except BaseException as error:
            self.setCurrentIntegrator(current)
            unwatched(context, "loadCheckpoint", saved)
            if isinstance(error, JumpRejectedError):
                self._store.jump += 1  # for other random numbers, should the user try again
            raise

    def _boundContext(self):
        context = self._context() if self._context is not None else None
        if context is None or getattr(context, "_integrator", None) is not self:
            raise StarMDError("This StarMDIntegrator has no Context; create one with it, or call bind(context).")
        return context

    def _random(self, purpose: str, number: int) -> int:
        """Seed of a draw of this jump."""
        stream = [self._store.stream] if self._store.stream else []
        return derived(self.getRandomNumberSeed(), self._store.jump, number, purpose, *stream)

    def __deepcopy__(self, memo):
        return _create(*self.__reduce__()[1])

    __copy__ = functools.partialmethod(__deepcopy__, None)

    def __reduce__(self):
        physics = copy.deepcopy(self.getIntegrator(PHYSICS))
        if self._seedsPhysics:
            physics.setRandomNumberSeed(0)
        present = {"physicalIntegrator": physics, "randomSeed": self._givenSeed}
        return _create, (type(self), self._settings | present, self.getConstraintTolerance())


def _create(kind: type[BoundIntegrator], settings: dict, constraintTolerance: float) -> BoundIntegrator:
    """A new integrator with the settings of another one, the present ones of its physical integrator included."""
    integrator = kind(**settings)
    integrator.setConstraintTolerance(constraintTolerance)
    return integrator
