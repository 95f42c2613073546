"""The command ``starmd``: its commands with an example of each, and errors as one line."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

from openmm_starmd import __version__
from openmm_starmd.errors import StarMDError

try:
    import rich  # noqa: F401
    import typer
except ImportError as missing:
    sys.exit(f'ImportError: starmd needs typer and rich ({missing}): pip install "openmm-starmd[cli,analysis]"')

from openmm_starmd.cli.command_evaluate import evaluate
from openmm_starmd.cli.command_info import info
from openmm_starmd.cli.command_models import models
from openmm_starmd.cli.command_prepare import prepare
from openmm_starmd.cli.command_refine import refine
from openmm_starmd.cli.command_rollout import rollout
from openmm_starmd.cli.command_simulate import simulate
from openmm_starmd.cli.command_train import train

CommandError = typer.BadParameter.__mro__[2]  # ClickException, of click or of the copy of it that newer typer holds
SEVERAL = ("--reference", "--generated", "--jumps")  # take several values after one option
STOPPED = 130  # exit code after Ctrl-C or SIGTERM
GOING_ON = ("rollout", "refine", "simulate", "train")  # commands that go on where they were
EXAMPLES = {
    info: "starmd info 1abc.pdb",
    prepare: "starmd prepare 1abc.pdb -o start.pdb",
    rollout: "starmd rollout start.pdb --nanoseconds 1000 --stride 100 --replicas 16 -o run",
    simulate: "starmd simulate start.pdb --nanoseconds 100 --frame-interval 10 -o md",
    evaluate: "starmd evaluate --reference md/start.xtc --generated run/replica*.xtc --topology md/start.pdb -o report",
    refine: "starmd refine run --nanoseconds 0.5 --processes 2 -o refined",
    models: "starmd models starmd-peptide",
    train: "starmd train config.toml",
}
"""Commands in the order of their use; one after another, the examples lead from a structure file to a report."""

app = typer.Typer(
    name="starmd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
for _command, _example in EXAMPLES.items():
    app.command(epilog=f"Example: [bold]{_example}[/]")(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"starmd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Learned molecular dynamics of proteins with OpenMM: make reference MD, and judge what a model generates."""


def spread_values(arguments: Sequence[str]) -> list[str]:
    """``--reference a b`` as ``--reference a --reference b``, which is what the parser understands."""
    spread, option = [], None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in SEVERAL else None
            first = True
        elif option:
            if not first:
                spread.append(option)
            first = False
        spread.append(argument)
    return spread


def _stopped(arguments: Sequence[str]) -> str:
    return "stopped; the same command goes on from here" if {*arguments[:1]} & {*GOING_ON} else "stopped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Errors are one line on stderr."""
    logging.getLogger("openmm_starmd").addHandler(logging.NullHandler())
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is there is saved
    try:
        arguments = spread_values(sys.argv[1:] if arguments is None else arguments)
        result = app(arguments, prog_name="starmd", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        message = _stopped(arguments) if code == STOPPED else ""  # some releases of typer return the interrupt's code
    except (KeyboardInterrupt, typer.Abort):
        message, code = _stopped(arguments), STOPPED
    except CommandError as error:
        message, code = error.format_message(), error.exit_code
    except (StarMDError, ValueError, OSError) as error:
        message, code = str(error), 1
    finally:
        signal.signal(signal.SIGTERM, terminated)
    if message:
        print("starmd: " + " ".join(message.split()), file=sys.stderr)
    return code
