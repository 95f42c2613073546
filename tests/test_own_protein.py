"""The commands of examples/own_protein/README.md, one after the other, on a tripeptide and with small numbers."""

import glob
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from openmm.app import PDBFile

for library in ("typer", "lightning_fabric", "deeptime"):
    pytest.importorskip(library)

from openmm_starmd import cli, load_model  # noqa: E402
from openmm_starmd.systems import build_peptide  # noqa: E402
from openmm_starmd.training import TrainingConfig  # noqa: E402

simulate = sys.modules["openmm_starmd.training.simulate"]  # the package's name of it is the function

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "own_protein"
(BLOCK,) = re.findall(r"^```bash\n(.*?)^```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
COMMANDS = BLOCK.splitlines()
SMALL = {"--nanoseconds 1 ": "--nanoseconds 0.12 ", "--processes 2": "--processes 1"}
SMALL |= {"--nanoseconds 500 --stride 200": "--nanoseconds 0.1 --stride 10"}
SMALL_TRAINING = {"total_steps": 4, "validation_steps": 2, "batch_size": 2, "stride_range": [10, 20]}


def test_the_configuration_is_valid():
    config = TrainingConfig.from_toml(FOLDER / "config.toml")
    assert config.start_from is None and config.model.network.max_relative_position >= 32


def test_the_first_command_finds_villin():
    code = re.search(r"python -c '(.*?)'", COMMANDS[0]).group(1)
    found = {}
    exec(code.replace("print(", "found.update(path="), {"found": found})
    path = re.search(r'\)"?(/\S+\.pdb)', COMMANDS[0]).group(1)
    residues = [r.name for r in PDBFile(found["path"] + path).topology.residues()]
    assert residues[:5] == ["LEU", "SER", "ASP", "GLU", "ASP"]


@pytest.mark.slow
def test_the_commands_lead_to_a_report(tmp_path, monkeypatch, capsys):
    """A few steps from scratch give no sound conformation: here the training starts from the embedded model."""
    monkeypatch.chdir(tmp_path)
    config = (FOLDER / "config.toml").read_text(encoding="utf-8").split("[model]")[0]
    config += 'start_from = "starmd-peptide"\n'
    for name, value in SMALL_TRAINING.items():
        config, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", config, flags=re.M)
        assert found == 1, name
    Path("config.toml").write_text(config)
    with open("villin.pdb", "w") as file:
        PDBFile.writeFile(*build_peptide("ASG", seed=1), file)
    monkeypatch.setattr(simulate, "EQUILIBRATION_STEPS", 100)
    assert all(long in BLOCK for long in SMALL)
    for command in COMMANDS[1:]:
        for long, short in SMALL.items():
            command = command.replace(long, short)
        words = [word for pattern in shlex.split(command) for word in sorted(glob.glob(pattern)) or [pattern]]
        assert words[0] == "starmd" and cli.main(words[1:]) == 0, (command, capsys.readouterr().err)
    assert len(glob.glob("rollout/replica*.xtc")) == 2
    metrics = json.loads(Path("report/metrics.json").read_text())
    assert metrics and Path("report/report.html").exists()
    card = load_model("villin/model.safetensors", "cpu").card
    assert "other trajectories of 1 of them are trained on" in card
