"""The command ``starmd``: parses, then calls the library."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

from openmm_starmd import __version__
from openmm_starmd.errors import StarMDError

try:
    import typer
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    sys.exit(f'ImportError: starmd needs typer and rich ({missing}): pip install "openmm-starmd[cli,analysis]"')

CommandError = typer.BadParameter.__mro__[2]  # ClickException, of click or of the copy of it that newer typer holds
SEVERAL = ("--reference", "--generated", "--jumps")  # take several values after one option
STOPPED = 130  # exit code after Ctrl-C or SIGTERM
LIGHTS = {"green": "[green]●[/]", "amber": "[yellow]◆[/]", "red": "[red]■[/]", "unclear": "○", "none": " "}

app = typer.Typer(
    name="starmd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


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


@contextmanager
def _progress(console: Console):
    """A bar on the terminal; yields a function (text, share that is done)."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done: bar.update(task, description=text, total=1.0 if done else None, completed=done)


def _dask(scheduler: str | None):
    """Context with a client of the scheduler at an address, or without one."""
    if scheduler is None:
        return nullcontext()
    from openmm_starmd.rollout.cluster import connect

    return connect(scheduler)


def _score_table(evaluation) -> Table:
    from openmm_starmd.evaluation.scoring.scores import written

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column, justify in (("", "left"), ("score", "left"), ("generated", "right"), ("MD itself", "right")):
        table.add_column(column, justify=justify)
    for s in evaluation.scores:
        table.add_row(LIGHTS[s.light], s.name, written(s.value, s.unit), written(s.oracle, s.unit))
    return table


@app.command(
    epilog="Example: [bold]starmd evaluate --reference a.xtc b.xtc --generated c.xtc --topology top.pdb -o report[/]"
)
def evaluate(
    reference: Annotated[list[Path], typer.Option(help="Trajectories of MD; several may follow.", show_default=False)],
    generated: Annotated[
        list[Path], typer.Option(help="Trajectories to judge; several may follow.", show_default=False)
    ],
    topology: Annotated[
        Path | None, typer.Option(help="Topology of the files that hold none of their own (PDB, HDF5).")
    ] = None,
    generated_topology: Annotated[
        Path | None, typer.Option(help="Topology of the generated files, if it is another one.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html, summary.md and metrics.json.")
    ] = Path("report"),
    stride: Annotated[
        float | None, typer.Option(help="ps between generated frames, if their file does not tell.")
    ] = None,
    reference_stride: Annotated[float | None, typer.Option(help="ps between frames of the reference.")] = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    jumps: Annotated[
        list[Path] | None, typer.Option(help="Tables of the StarMDReporters of the generated trajectories.")
    ] = None,
) -> None:
    """Compare generated trajectories with MD: a verdict, scores and a page with figures.

    Reads XTC, TRR, DCD, NetCDF, HDF5 and PDB with many models; atoms are matched by residue order and name.
    """
    try:
        from openmm_starmd.evaluation import evaluate as compare
        from openmm_starmd.evaluation.scoring.scores import MEANING
    except ImportError as missing:
        raise StarMDError(f'starmd evaluate needs more ({missing}): pip install "openmm-starmd[analysis]"') from None
    console = Console()
    with _progress(Console(stderr=True)) as progress:
        evaluation = compare(
            reference,
            generated,
            topology,
            generated_topology=generated_topology,
            stride=stride,
            reference_stride=reference_stride,
            temperature=temperature,
            jumps=jumps or (),
            progress=progress,
        )
        progress("drawing the page", 0.0)
        page = evaluation.write(output)
    console.print(Text(evaluation.verdict, style="bold"), "")
    console.print(_score_table(evaluation))
    console.print("")
    for name, meaning in MEANING.items():
        if name != "none":
            console.print(f"{LIGHTS[name]} {meaning}", style="dim")
    if "note" in evaluation.settings:
        console.print(Text(f"\nNote: {evaluation.settings['note']}"))
    console.print(f"\n{page}", soft_wrap=True, highlight=False)


@app.command(epilog="Example: [bold]starmd prepare 1abc.pdb -o start.pdb[/]")
def prepare(
    structure: Annotated[Path, typer.Argument(help="PDB or mmCIF file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="PDB or mmCIF (.cif) file to write.")] = Path(
        "prepared.pdb"
    ),
    ph: Annotated[float, typer.Option("--ph", help="Decides about hydrogens that the file does not tell.")] = 7.0,
    disulfides: Annotated[bool, typer.Option(help="Bond close sulfur atoms of CYS, or keep all as thiols.")] = True,
) -> None:
    """Make a structure ready for implicit solvent: hydrogens and missing atoms added, all but protein removed.

    Every change is printed with its residues.
    """
    from openmm.app import PDBFile, PDBxFile

    from openmm_starmd.systems import prepare as run

    topology, positions, changes = run(structure, ph=ph, disulfides=disulfides)
    writer = PDBxFile if output.suffix == ".cif" else PDBFile
    long_names = sorted({chain.id for chain in topology.chains() if len(chain.id) > 1})
    if writer is PDBFile and long_names:
        changes.append(f"renamed the chains {', '.join(long_names)}, as the PDB format has one letter: use -o NAME.cif")
    with open(output, "w", encoding="utf-8") as file:
        writer.writeFile(topology, positions, file, keepIds=True)
    for change in changes:
        print(change)
    print(f"{output}: {topology.getNumResidues()} residues, {topology.getNumAtoms()} atoms")


def _read_pdb(path: Path):
    """openmm.app.PDBFile of a path; StarMDError in one line for what is none."""
    from openmm.app import PDBFile

    if not path.is_file():
        raise StarMDError(f"there is no file {path}")
    try:
        pdb = PDBFile(str(path))
        if pdb.topology.getNumAtoms():
            return pdb
        reason = "it holds no atoms"
    except Exception as error:  # OpenMM's parser raises what it happens to raise
        reason = str(error).split("\n")[0] or type(error).__name__
    raise StarMDError(f"{path} cannot be read as a PDB file ({reason}); `starmd prepare` reads PDB and mmCIF files")


@app.command(epilog="Example: [bold]starmd rollout start.pdb --nanoseconds 1000 --stride 100 --replicas 16 -o run[/]")
def rollout(
    structure: Annotated[Path, typer.Argument(help="PDB file with all hydrogens.", show_default=False)],
    nanoseconds: Annotated[float, typer.Option(min=0, help="Length of each trajectory.", show_default=False)],
    stride: Annotated[float, typer.Option(help="ps of one step.")] = 100.0,
    replicas: Annotated[int, typer.Option(min=1, help="Trajectories.")] = 1,
    model: Annotated[str, typer.Option(help="Name, as `starmd models` lists them, or path; auto chooses.")] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trajectories.")] = Path("rollout"),
    relax: Annotated[bool, typer.Option(help="Relax every conformation in Amber ff14SB and OBC2.")] = True,
    dynamics_steps: Annotated[
        int, typer.Option(min=0, help="Of 2 fs each, at the end of a relaxation: most of its cost.")
    ] = 60,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of all replicas.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Relaxations at a time, one CPU thread each.")] = 1,
    device: Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda.")] = "auto",
    max_retries: Annotated[int, typer.Option(min=0, help="Samples more of a conformation that fails the checks.")] = 5,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Replicas in a batch of the network.", show_default="all; 8 by Dask")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Warn where the model's domain is left for this reason, such as length; may be repeated."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler; its workers must see the output folder.")
    ] = None,
) -> None:
    """Sample trajectories of a learned model; a stopped run goes on where it was, with the same command."""
    from openmm_starmd.binding.context import refuseWater
    from openmm_starmd.domain import allowing
    from openmm_starmd.plugins import NewPropagator
    from openmm_starmd.protein.tokens import ResidueTokens, refuse_missing_hydrogens
    from openmm_starmd.relaxation import Relaxation
    from openmm_starmd.rollout import rollout as run
    from openmm_starmd.systems import peptide_system

    pdb, n_steps = _read_pdb(structure), max(1, round(1000 * nanoseconds / stride))
    refuse_missing_hydrogens(pdb.topology)
    strict, described = allowing(allow or []), (ResidueTokens.from_topology(pdb.topology), stride, temperature)
    new_propagator = NewPropagator.of(model, *described, device if scheduler is None else "cpu", strict)
    new_propagator.require(*described)
    refuseWater(pdb.topology)
    made = 0
    with _dask(scheduler) as client, _progress(Console(stderr=True)) as progress:

        def count(frames):
            nonlocal made
            made += frames
            progress(f"{made:,} of {n_steps * replicas:,} frames", made / (n_steps * replicas))

        files = run(
            new_propagator.source,
            pdb.topology,
            pdb.positions,
            stride=stride,
            n_steps=n_steps,
            n_replicas=replicas,
            seed=seed,
            output=output,
            resume=True,
            temperature=temperature,
            system=peptide_system(pdb.topology) if relax else None,
            relaxation=Relaxation(dynamicsSteps=dynamics_steps),
            workers=workers,
            device=device,
            max_retries=max_retries,
            batch_size=batch_size,
            strict=strict,
            client=client,
            progress=count,
        )
    for file in files:
        print(file)


@app.command(epilog="Example: [bold]starmd refine run --nanoseconds 0.5 --processes 2 -o refined[/]")
def refine(
    learned: Annotated[list[Path], typer.Argument(help="Folder of `starmd rollout`, or trajectories.")],
    nanoseconds: Annotated[float, typer.Option(min=0, help="MD from each start.", show_default=False)],
    starts: Annotated[int, typer.Option(min=1, help="Conformations of the run that MD starts from.")] = 64,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the MD and the result.")] = Path("refined"),
    topology: Annotated[Path | None, typer.Option(help="PDB file of trajectories that are no folder.")] = None,
    system: Annotated[Path | None, typer.Option(help="XML of an OpenMM System in place of ff14SB and OBC2.")] = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    frame_interval: Annotated[float, typer.Option(help="ps between frames of the MD.")] = 2.0,
    precision: Annotated[float, typer.Option(help="Factor within which results have to be known.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of velocities and noise.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Trajectories at a time, one CPU thread each.")] = 1,
    platform: Annotated[str, typer.Option(help="OpenMM platform.")] = "CPU",
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler; its workers must see the output folder.")
    ] = None,
) -> None:
    """Correct a learned run by short MD: populations and rates of the force field, with intervals.

    A stopped call goes on by the same command; more nanoseconds prolong every trajectory.
    """
    try:
        from openmm_starmd.refinement import refine as run
        from openmm_starmd.refinement.inputs import read_system, rollout_files
    except ImportError as missing:
        raise StarMDError(f'starmd refine needs more ({missing}): pip install "openmm-starmd[analysis]"') from None
    files, structure = rollout_files(learned, topology)
    with _dask(scheduler) as client, _progress(Console(stderr=True)) as progress:
        result = run(
            files,
            _read_pdb(structure).topology,
            nanoseconds=nanoseconds,
            output=output,
            n_starts=starts,
            system=read_system(system),
            temperature=temperature,
            frame_interval=frame_interval,
            precision=precision,
            seed=seed,
            processes=processes,
            platform=platform,
            client=client,
            progress=progress,
        )
    console, table = Console(), Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "force field", "learned run"):
        table.add_column(column)
    for row in result.table():
        table.add_row(*row)
    console.print(Text(result.verdict, style="bold"), "", table, "", sep="\n")
    console.print(str(output / "refined.md"), soft_wrap=True, highlight=False)


@app.command(epilog="Example: [bold]starmd train config.toml[/]")
def train(
    config: Annotated[Path, typer.Argument(help="TOML file; see the README.", show_default=False)],
) -> None:
    """Train or fine-tune a model on trajectories; a killed run goes on where it was, with the same command."""
    try:
        from openmm_starmd.training import TrainingConfig
        from openmm_starmd.training import train as run
    except ImportError as missing:
        raise StarMDError(f'starmd train needs more ({missing}): pip install "openmm-starmd[train]"') from None
    settings = TrainingConfig.from_toml(config)
    run(settings)
    print(Path(settings.output) / "model.safetensors")


@app.command(epilog="Example: [bold]starmd simulate AAAA ace-DWGR-nme start.pdb --nanoseconds 10 -o training[/]")
def simulate(
    sequences: Annotated[
        list[str], typer.Argument(help="One-letter codes, with caps as in ace-AAAA-nme, or PDB files with hydrogens.")
    ],
    nanoseconds: Annotated[float, typer.Option(min=0, help="Length of each trajectory.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.pdb and NAME.xtc.")] = Path("md"),
    frame_interval: Annotated[float, typer.Option(help="ps between frames.")] = 5.0,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    replicas: Annotated[int, typer.Option(min=1, help="Trajectories of each molecule: NAME, NAME_2, ...")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Systems at a time, one CPU thread each.")] = 1,
    together: Annotated[int, typer.Option(min=1, help="Trajectories in one System, far apart: for a GPU.")] = 1,
    seed: Annotated[int, typer.Option(help="Of starts, velocities and noise.")] = 0,
    platform: Annotated[str, typer.Option(help="OpenMM platform.")] = "CPU",
) -> None:
    """Make MD of peptides and proteins (Amber ff14SB, OBC2); a killed run goes on by the same command."""
    from openmm_starmd.training import simulate as run

    with _progress(Console(stderr=True)) as progress:
        names = run(
            sequences,
            output,
            nanoseconds,
            frame_interval=frame_interval,
            temperature=temperature,
            replicas=replicas,
            processes=processes,
            together=together,
            seed=seed,
            platform=platform,
            progress=progress,
        )
    for name in names:
        print(output / f"{name}.xtc")


@app.command(epilog="Example: [bold]starmd models starmd-peptide[/]")
def models(
    name: Annotated[str | None, typer.Argument(help="Name or path; all names are listed without.")] = None,
) -> None:
    """List the models and propagators that there are, or show where one was trained, and its card."""
    from openmm_starmd.model import available_models, load_model
    from openmm_starmd.plugins import available_propagators, load_propagator

    console, others = Console(), available_propagators()
    if name is None:
        print("\n".join([*available_models(), *others]))
        return
    if name in others and name not in available_models():
        console.print(Markdown(load_propagator(name).card))
        return
    model = load_model(name, device="cpu")
    domain = Table(title=Text(model.name), box=None, show_header=False, title_justify="left", padding=(0, 2, 0, 0))
    for key, value in model.domain.to_dict().items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        domain.add_row(key.replace("_", " "), Text(text))
    console.print(domain)
    console.print(Markdown(model.card) if model.card else "This model has no card.")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Errors are one line on stderr."""
    logging.getLogger("openmm_starmd").addHandler(logging.NullHandler())
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is there is saved
    try:
        arguments = spread_values(sys.argv[1:] if arguments is None else arguments)
        result = app(arguments, prog_name="starmd", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        message = "stopped" if code == STOPPED else ""  # some releases of typer return the code of an interrupt
    except (KeyboardInterrupt, typer.Abort):
        message, code = "stopped", STOPPED
    except CommandError as error:
        message, code = error.format_message(), error.exit_code
    except (StarMDError, ValueError, OSError) as error:
        message, code = str(error), 1
    finally:
        signal.signal(signal.SIGTERM, terminated)
    if message:
        print("starmd: " + " ".join(message.split()), file=sys.stderr)
    return code
