"""``starmd train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openmm_starmd.cli.terminal import logged


def train(
    config: Annotated[Path, typer.Argument(help="TOML file; docs/guide/training.md describes it.", show_default=False)],
) -> None:
    """Train or fine-tune a model on trajectories; a killed run goes on where it was, with the same command."""
    from openmm_starmd.training import TrainingConfig
    from openmm_starmd.training import train as run

    settings = TrainingConfig.from_toml(config)
    with logged():
        run(settings)
    print(Path(settings.output) / "model.safetensors")
