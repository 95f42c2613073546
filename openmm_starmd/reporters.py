"""Reporters: what happened in the jumps of a run, and files that go on where a checkpoint stands."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter

from openmm import unit

from openmm_starmd.binding.outputs import Output, disagreements
from openmm_starmd.errors import HistoryError, StarMDError
from openmm_starmd.integrator import StarMDIntegrator
from openmm_starmd.units import wholeNumber

HEADERS = (
    "Step",
    "Time (ps)",
    "Retries",
    "Failed Checks",
    "Validity",
    "Energy Before Relaxation (kJ/mole)",
    "Energy After Relaxation (kJ/mole)",
    "Seconds per Jump",
    "Jumps",
    "Repaired",
)


class StarMDReporter:
    """StarMDReporter outputs what happened in the jumps of a StarMDIntegrator to a file, as comma-separated values.

    To use it, create a StarMDReporter, then add it to the Simulation's list of reporters. Each line tells the step, the
    time (ps), and of the jumps since the last line: how many conformations were sampled again, which checks they had
    failed (such as ``clashes:2 ca_breaks:1``), the share of the sampled conformations that were accepted, the mean
    wall time of a jump (s), how many jumps there were, and how many of them were accepted after a repair. The potential
    energies (kJ/mol) before and after relaxation are those of the last jump.
    Where there was no jump since the last line, in a physical segment of a HybridSchedule, their fields are empty.

    The file is read by ``pandas.read_csv`` as it is, and by ``openmm_starmd.evaluation.read_jumps``.
    """

    def __init__(self, file, reportInterval, append=False):
        """Create a StarMDReporter.

        Parameters
        ----------
        file : string or file
            The file to write to, specified as a file name or file object
        reportInterval : int
            The interval (in time steps) at which to write lines
        append : bool=False
            If true, append to an existing file.  The header line is not written, since there is assumed to already be
            one at the start of the file.
        """
        self._reportInterval = wholeNumber("reportInterval", reportInterval, 1)
        self._append, self._openedFile = append, isinstance(file, str)
        self._out = open(file, "a" if append else "w") if self._openedFile else file
        self._needsHeader = not append
        self._told = None

    def describeNextReport(self, simulation):
        """Get information about the next report this object will generate.

        Parameters
        ----------
        simulation : Simulation
            The Simulation to generate a report for

        Returns
        -------
        dict
            A dictionary describing the required information for the next report
        """
        self._begin(simulation)
        steps = self._reportInterval - simulation.currentStep % self._reportInterval
        return {"steps": steps, "periodic": None, "include": []}

    def report(self, simulation, state):
        """Generate a report.

        Parameters
        ----------
        simulation : Simulation
            The Simulation to generate a report for
        state : State
            The current state of the simulation
        """
        self._begin(simulation)
        now = simulation.integrator.getStatistics()
        time = state.getTime().value_in_unit(unit.picosecond)
        fields = simulation.currentStep, time, *_since(self._told, now)
        header = '#"' + '","'.join(HEADERS) + '"\n' if self._needsHeader else ""
        self._needsHeader, self._told = False, now  # even if the disk is full: the line is kept and written later
        self._out.write(header + ",".join(map(str, fields)) + "\n")
        self._out.flush()

    def _begin(self, simulation):
        """Count the jumps from here on, unless they are counted already."""
        if not isinstance(simulation.integrator, StarMDIntegrator):
            raise StarMDError(
                "A StarMDReporter tells of the jumps of a StarMDIntegrator; this Simulation has a "
                f"{type(simulation.integrator).__name__}. Remove the reporter."
            )
        if self._told is None:
            self._told = simulation.integrator.getStatistics()
            for message in disagreements(simulation):
                warnings.warn(message, stacklevel=3)

    def __del__(self):
        if getattr(self, "_out", None) is not None and self._openedFile:
            self._out.close()


def _since(before: dict, now: dict) -> tuple:
    """The fields of a line after step and time, from the statistics at the last line and now."""
    jumps, retries = now["steps"] - before["steps"], now["resampled"] - before["resampled"]
    failed = Counter(now["failed"]) - Counter(before["failed"])
    kinds = " ".join(f"{kind}:{count}" for kind, count in sorted(failed.items()))
    validity = jumps / (jumps + retries) if jumps + retries else ""
    repaired = now["repaired"] - before["repaired"]
    if not jumps:
        return retries, kinds, validity, "", "", "", jumps, repaired
    seconds = sum(now["seconds"].values()) - sum(before["seconds"].values())
    energies = now["last"]["energyBefore"], now["last"]["energyAfter"]
    return retries, kinds, validity, *energies, seconds / jumps, jumps, repaired


def resume(simulation, checkpoint, *files) -> int:
    """Go on with a run that was interrupted, without lost or doubled frames in its files.

    Loads the checkpoint and cuts from the files whatever was written after it, torn ends included::

        done = resume(simulation, "run.chk", "trajectory.xtc", "log.csv", "starmd.csv")
        simulation.reporters += [
            XTCReporter("trajectory.xtc", 10, append=done > 0),
            StateDataReporter("log.csv", 10, step=True, potentialEnergy=True, append=done > 0),
            StarMDReporter("starmd.csv", 10, append=done > 0),
            CheckpointReporter("run.chk", 100),
        ]
        simulation.step(total - simulation.currentStep)

    The same lines start a run. Where there is no checkpoint yet, or one that came before the first frame of a file (to
    which OpenMM could not append), the run starts anew; what had been written, the checkpoint included, is renamed by a
    number at its end (``trajectory.xtc.1``) and never deleted.

    The CheckpointReporter has to come last, so that every file reaches as far as the checkpoint. Its interval should be
    a multiple of the others': a StarMDReporter does not know of the jumps between its last line and the checkpoint.
    Every run counts its steps from 0 (after an equilibration, set ``simulation.currentStep = 0``) and keeps its
    intervals, because an XTCReporter that appends numbers its frames by their count. XTC and DCD files hold at most
    2^31 - 1 steps: a run that goes on beyond them needs new files, and ``simulation.currentStep = 0``. Logs may have
    any separator, and trajectories an ``atomSubset``.

    A reporter that appends without `resume` doubles frames, or gives them wrong times. A StarMDReporter warns of every
    file of its Simulation that is appended to and does not end where the Context stands.

    Parameters
    ----------
    simulation : Simulation
        The Simulation, with System, integrator and platform as before. Its reporters are made after this call.
    checkpoint : str
        Name of the file that a CheckpointReporter writes; it need not exist.
    files : str
        Names of all files that reporters append to: of XTCReporter, DCDReporter, StateDataReporter (``step=True``) and
        StarMDReporter.

    Returns
    -------
    int
        Step at which the run goes on; 0 if it starts anew.

    Raises
    ------
    HistoryError
        If the checkpoint is damaged, or of another system, model, platform or version.
    StarMDError
        If a file is none of these, has more atoms than the Simulation, lacks frames before the checkpoint or cannot
        hold more steps, or the run has not started from step 0. After every error files and Simulation are as before.
    """
    outputs = [Output(path) for path in files if os.path.exists(path)]
    if not os.path.exists(checkpoint):
        return _startAnew(simulation, checkpoint, files)
    if len(outputs) < len(files):
        missing = ", ".join(str(path) for path in files if not os.path.exists(path))
        raise StarMDError(f"{checkpoint} exists, but not {missing}; a file of a new reporter needs no resume.")
    before = simulation.context.createCheckpoint()
    try:
        _load(simulation, checkpoint)
        kept = [output.count(simulation.currentStep, simulation.topology.getNumAtoms()) for output in outputs]
    except BaseException:
        simulation.context.loadCheckpoint(before)
        raise
    if not all(kept):
        simulation.context.loadCheckpoint(before)
        return _startAnew(simulation, checkpoint, files)
    for output, count in zip(outputs, kept, strict=True):
        output.cut(count)
    return simulation.currentStep


def _startAnew(simulation, checkpoint, files) -> int:
    if simulation.currentStep:
        raise StarMDError(
            f"There is nothing to go on from in {checkpoint}, and a new run counts its steps from 0, but this "
            f"Simulation is at step {simulation.currentStep}; set simulation.currentStep = 0 first."
        )
    renamed = []
    for path in (checkpoint, *files):  # the checkpoint first: without it, the next call comes here again
        if os.path.exists(path) and os.path.getsize(path):
            numbered = (f"{path}.{number}" for number in itertools.count(1))
            renamed.append(next(name for name in numbered if not os.path.exists(name)))
            os.rename(path, renamed[-1])
    if renamed:
        warnings.warn(f"The run starts anew; what it had written before is now {', '.join(renamed)}.", stacklevel=3)
    return 0


def _load(simulation, checkpoint):
    """Load a checkpoint and look at once whether it is whole; OpenMM reads half of one in silence."""
    with open(checkpoint, "rb") as file:
        data = file.read()
    try:
        simulation.context.loadCheckpoint(data)
        if len(simulation.context.createCheckpoint()) != len(data):
            raise HistoryError("The file has another length than a checkpoint of this Simulation.")
    except Exception as error:
        raise HistoryError(
            f"{checkpoint} cannot be loaded; it is damaged, or of another system, model, platform or version of OpenMM "
            f"({error})"
        ) from error
