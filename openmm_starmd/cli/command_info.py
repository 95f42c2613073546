"""``starmd info``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from openmm_starmd.cli.terminal import LIGHTS, plain_table, progress
from openmm_starmd.progress import duration

if TYPE_CHECKING:
    from openmm_starmd.domain import Violation

SHOWN = 8  # changes, so that all fits one screen
BUSY = 1.5  # from this ratio of wall time to CPU time on, other jobs slow the probe down


def info(
    molecule: Annotated[
        str,
        typer.Argument(help="PDB or mmCIF file, or one-letter codes as in ace-DWGR-nme.", show_default=False),
    ],
    stride: Annotated[float, typer.Option(help="ps of one step.")] = 100.0,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
) -> None:
    """Tell which model suits a molecule, what `starmd prepare` would change, and how fast a run is here.

    Speed is that of a few jumps which the command makes on this machine.
    """
    from openmm import unit

    from openmm_starmd.binding.context import refuseOtherMolecules
    from openmm_starmd.model import embedded_domains
    from openmm_starmd.protein.tokens import ResidueTokens
    from openmm_starmd.systems.molecule import is_file, read_or_build
    from openmm_starmd.systems.prepare import prepare

    topology, positions, changes = prepare(molecule) if is_file(molecule) else (*read_or_build(molecule), [])
    refuseOtherMolecules(topology)
    tokens = ResidueTokens.from_topology(topology)
    nanometers = positions.value_in_unit(unit.nanometer) if unit.is_quantity(positions) else positions
    print(f"{molecule}: {tokens.n_residues} residues, {tokens.n_atoms} atoms")
    _print_changes(changes)
    outside = {
        name: domain.check(tokens, stride, temperature, nanometers) for name, domain in embedded_domains().items()
    }
    _print_models(outside, stride, temperature)
    if not all(outside.values()):
        _print_speed(topology, positions, stride, temperature)
    _print_next(molecule, bool(changes), outside, stride)


def _print_changes(changes: list[str]) -> None:
    if not changes:
        print("Nothing to prepare.")
        return
    print("`starmd prepare` makes this of the file:")
    for change in changes[:SHOWN]:
        print(f"  {change}")
    if len(changes) > SHOWN:
        print(f"  and {len(changes) - SHOWN} changes more")


def _print_models(outside: dict[str, list[Violation]], stride: float, temperature: float) -> None:
    table = plain_table()
    for name, found in outside.items():
        told = "; ".join(found) or "knows this molecule"
        table.add_row(LIGHTS["red" if found else "green"], name, Text(told))
    print(f"\nModels, jumps of {stride:g} ps at {temperature:g} K:")
    Console().print(table)


def _print_speed(topology, positions, stride: float, temperature: float) -> None:
    from openmm_starmd.errors import JumpRejectedError
    from openmm_starmd.model import choose_model
    from openmm_starmd.rollout.probe import seconds_a_jump

    model = choose_model(topology, stride, temperature)
    try:
        with progress() as report:
            report("measuring the speed", 0.0)
            wall, cpu = seconds_a_jump(model, topology, positions, stride=stride, temperature=temperature)
    except JumpRejectedError as error:
        print(f"\nSpeed here: not measured, the first jumps of {model.name} fail. {error}")
        return
    print(f"\nSpeed of {model.name} here, one replica, relaxed: {_speed(wall, stride)}")
    if wall > BUSY * cpu:
        print(f"Other jobs take part of the processor. Alone it would be about: {_speed(cpu, stride)}")


def _speed(seconds: float, stride: float) -> str:
    a_day, of_100_ns = 86.4 * stride / seconds, duration(seconds * 1e5 / stride)
    return f"{seconds:.2g} s a jump, {a_day:,.0f} ns/day, {of_100_ns} for 100 ns."


def _print_next(molecule: str, changed: bool, outside: dict[str, list[Violation]], stride: float) -> None:
    start = "start.pdb" if changed else shlex.quote(molecule)
    print("\nNext:")
    if changed:
        print(f"  starmd prepare {shlex.quote(molecule)} -o start.pdb")
    for name, found in outside.items():
        if [violation.reason for violation in found] == ["fold"]:
            print(f"  starmd info FOLDED.pdb: {name} takes a folded structure of this molecule")
    if not all(outside.values()):
        print(f"  starmd rollout {start} --nanoseconds 100 --stride {stride:g} -o run")
    else:
        print(
            "  starmd train (on MD of this molecule, see the documentation), or, for motions about a folded structure,"
        )
        print(f"  starmd rollout {start} --model elastic --nanoseconds 100 --stride {stride:g} -o run")
