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
    from openmm_starmd.protein.tokens import ResidueTokens

TEMPERATURE = 300.0  # K
SHOWN = 8  # changes, so that all fits one screen
BUSY = 1.5  # from this ratio of wall time to CPU time on, other jobs slow the probe down


def info(
    molecule: Annotated[
        str,
        typer.Argument(help="PDB or mmCIF file, or one-letter codes as in ace-DWGR-nme.", show_default=False),
    ],
    stride: Annotated[float, typer.Option(help="ps of one step.")] = 100.0,
    temperature: Annotated[float, typer.Option(help="K.")] = TEMPERATURE,
) -> None:
    """Tell which model suits a molecule, what `starmd prepare` would change, and how fast a run is here.

    Speed is that of a few jumps which the command makes on this machine.
    """
    from openmm import unit

    from openmm_starmd.model import lacking, nearest_model
    from openmm_starmd.protein.tokens import ResidueTokens
    from openmm_starmd.systems.molecule import is_file, read_or_build
    from openmm_starmd.systems.prepare import prepare
    from openmm_starmd.units import positiveIn

    stride = positiveIn("stride", stride, unit.picoseconds)
    temperature = positiveIn("temperature", temperature, unit.kelvin)
    topology, positions, changes = prepare(molecule) if is_file(molecule) else (*read_or_build(molecule), [])
    tokens = ResidueTokens.from_topology(topology)
    nanometers = positions.value_in_unit(unit.nanometer) if unit.is_quantity(positions) else positions
    print(f"{molecule}: {tokens.n_residues} residues, {tokens.n_atoms} atoms")
    _print_changes(changes)
    outside = lacking(tokens, stride, temperature, nanometers)
    nearest = nearest_model(outside, tokens)
    _print_models(outside, nearest, stride, temperature)
    if not all(outside.values()):
        _print_speed(topology, positions, stride, temperature)
    _print_next(molecule, bool(changes), outside, tokens, stride, temperature)


def _print_changes(changes: list[str]) -> None:
    if not changes:
        print("Nothing to prepare.")
        return
    print("`starmd prepare` makes this of the file:")
    for change in changes[:SHOWN]:
        print(f"  {change}")
    if len(changes) > SHOWN:
        print(f"  and {len(changes) - SHOWN} changes more")


def _print_models(outside: dict[str, list[Violation]], nearest: str, stride: float, temperature: float) -> None:
    from openmm_starmd.domain import essential

    table = plain_table()
    for name, found in outside.items():
        told = "; ".join(found if name == nearest else essential(found)) or "knows this molecule"
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


def _print_next(
    molecule: str,
    changed: bool,
    outside: dict[str, list[Violation]],
    tokens: ResidueTokens,
    stride: float,
    temperature: float,
) -> None:
    """Print the commands to go on with, which hold all that this one was given."""
    from openmm_starmd.domain import SETTINGS, TAUTOMER
    from openmm_starmd.elastic import LEAST
    from openmm_starmd.model import embedded_domains, nearest_model

    nearest, suited, told = nearest_model(outside, tokens), not all(outside.values()), ""
    if not suited and {violation.reason for violation in outside[nearest]} <= SETTINGS:
        stride, temperature = embedded_domains()[nearest].nearest_settings(tokens.n_residues, stride, temperature)
        suited, told = True, f", with a stride and a temperature that {nearest} knows"
    print(f"\nNext{told}:")
    molecule, start = shlex.quote(molecule), "start.pdb" if changed else shlex.quote(molecule)
    given = f"--stride {stride:g}" + (f" --temperature {temperature:g}" if temperature != TEMPERATURE else "")
    if not suited and any(TAUTOMER in violation for violation in outside[nearest]):
        print(f"  starmd info {molecule} {given}, once the residues are named HID in the file; or, with HIE,")
    if changed:
        print(f"  starmd prepare {molecule} -o start.pdb")
    for name, found in outside.items():
        if [violation.reason for violation in found] == ["fold"]:
            print(f"  starmd info FOLDED.pdb {given}: {name} takes a folded structure of this molecule")
    if suited:
        print(f"  starmd rollout {start} --nanoseconds 100 {given} -o run")
        return
    print("  starmd train, on MD of this molecule (see the documentation)")
    if tokens.n_residues >= LEAST:
        fold = "FOLDED.pdb" if any(violation.reason == "fold" for violation in outside[nearest]) else start
        print("  or, for motions about a folded structure,")
        print(f"  starmd rollout {fold} --model elastic --nanoseconds 100 {given} -o run")
