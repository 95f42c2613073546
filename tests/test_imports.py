"""The house of architecture: every module imports from lower floors, or from earlier rows of its own floor."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "openmm_starmd"
FLOORS = [
    "errors files progress seeds units protein.residues",
    "geometry.constants geometry.rigid geometry.igso3 geometry.torsions",
    "protein.length_unit protein.bond_graph protein.tokens protein.conformation protein.displacement "
    "protein.validity protein.clashes protein.history",
    "systems trajectories",
    "network.config network.fluctuations network.elastic_steps network.invariants network.rotamers network.pulls "
    "network.embedding network.attention network.pair_embedding network.ipa network.masks network.block "
    "network.parameterization network.reversion network.denoiser",
    "diffusion.process diffusion.loss diffusion.denoising_state diffusion.sampler diffusion.tape diffusion.replay "
    "diffusion.execution diffusion.distillation",
    "domain model interface context_window propagator plugins elastic",
    "binding relaxation integrator reporters rollout training "
    "evaluation.metrics evaluation.scoring evaluation.report evaluation refinement",
    "cli __main__",
]
ROWS = [room for floor in FLOORS for room in floor.split()]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor.split()}
SEES_OPENMM = {"units", "protein.length_unit", "protein.bond_graph", "protein.tokens", "systems", "trajectories"}
SEES_OPENMM |= {room for room, floor in FLOOR_OF.items() if floor >= 7}
LONGEST, RUN = 350, 6  # lines
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(name):
    """The row of the table that a module belongs to; a room may be a module or, a folder."""
    return next((room for room in ROWS if name == room or name.startswith(room + ".")), None)


def imports(path):
    """Full dotted names that a file imports, those inside functions included."""
    package = ["openmm_starmd", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def runs(path):
    """Every `RUN` lines of code on end, and the number of the first; imports, fields and arguments do not count."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    passed = set()
    for node in ast.walk(tree):
        documented = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node)
        skipped = [node.body[0]] if documented else []
        skipped += [node] if isinstance(node, ast.Import | ast.ImportFrom | ast.AnnAssign | ast.arguments) else []
        for part in skipped:
            if hasattr(part, "lineno"):
                passed.update(range(part.lineno, part.end_lineno + 1))
        if isinstance(node, ast.arguments):
            for argument in (*node.args, *node.kwonlyargs):
                passed.update(range(argument.lineno, argument.end_lineno + 1))
    lines = [(line.strip(), number) for number, line in enumerate(source.splitlines(), 1) if number not in passed]
    lines = [(line, number) for line, number in lines if len(line) > 3 and not line.startswith("#")]
    for k in range(len(lines) - RUN + 1):
        yield tuple(line for line, _ in lines[k : k + RUN]), lines[k][1]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_has_a_room_and_looks_down(path):
    room = room_of(module_name(path))
    assert room is not None, f"{module_name(path)} stands on no floor"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "openmm_starmd" and rest != "__version__":
            other = room_of(rest)
            assert other is not None, f"{module_name(path)} imports {name}, which stands on no floor"
            assert other == room or ROWS.index(other) < ROWS.index(room), f"{room} looks up to {other}"
        assert top != "openmm" or room in SEES_OPENMM, f"{room} imports {name}: OpenMM starts at floor 7"
        assert top != "torch" or FLOOR_OF[room] > 0, f"{room} imports torch: floor 0 knows numpy at most"


def test_no_circle_of_imports():
    """Imports of functions and of type checkers count, too."""
    modules = {module_name(path): path for path in MODULES}

    def module(name):
        name = name.removeprefix("openmm_starmd.")
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    found = {name: {module(other) for other in imports(path)} - {"", name} for name, path in modules.items()}
    graphlib.TopologicalSorter(found).prepare()  # raises a CycleError that names the modules


def test_no_two_modules_bear_one_name():
    names = [path.name for path in MODULES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_short(path):
    """A longer module says in its first lines why it is."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST or "module is long because" in ast.get_docstring(ast.parse(text)).replace(
        "\n", " "
    )


def test_no_run_of_lines_stands_twice():
    """Lines of code that stand twice could be a function; what differs in names alone a person has to judge."""
    places = {}
    for path in MODULES:
        for run, line in runs(path):
            places.setdefault(run, []).append(f"{module_name(path)}:{line}")
    twice = [found for found in places.values() if len(found) > 1]
    assert not twice, twice


def test_inner_packages_open_no_back_doors():
    for path in PACKAGE.rglob("__init__.py"):
        folder = module_name(path).removesuffix("__init__").rstrip(".")
        for name in imports(path):
            if folder and name.startswith("openmm_starmd.") and name != "openmm_starmd.errors.lazily":
                assert name.startswith(f"openmm_starmd.{folder}."), f"{folder}/__init__.py imports {name}"


def test_the_root_holds_no_other_modules():
    allowed = set("errors files progress seeds units domain model interface propagator elastic plugins".split())
    allowed |= set("context_window relaxation integrator reporters rollout cli __main__".split())
    assert {module_name(path) for path in MODULES if path.parent == PACKAGE} <= allowed
