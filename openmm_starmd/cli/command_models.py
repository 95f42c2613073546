"""``starmd models``."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from openmm_starmd.cli.terminal import plain_table

WIDTH = 80


def models(
    name: Annotated[
        str | None, typer.Argument(help="Name or path; all are listed without.", show_default=False)
    ] = None,
) -> None:
    """List the models and propagators with a line on when to choose which, or show one with its domain and card."""
    from openmm_starmd.model import StarMDModel
    from openmm_starmd.plugins import load_source

    if name is None:
        print("\n".join(_lines()))
        return
    console, model = Console(), load_source(name, device="cpu")
    if isinstance(model, StarMDModel):
        domain = plain_table()
        domain.title, domain.title_justify = Text(model.name), "left"
        for key, value in model.domain.to_dict().items():
            domain.add_row(key.replace("_", " "), Text(_written(value)))
        console.print(domain)
    console.print(Markdown(model.card) if model.card else "This model has no card.")


def _lines() -> list[str]:
    """A line of each model: its name, and the first paragraph of its card, which says when to choose it."""
    from openmm_starmd.model import embedded_cards
    from openmm_starmd.plugins import available_propagators, load_propagator

    cards = embedded_cards()
    cards |= {other: load_propagator(other).card for other in available_propagators() if other not in cards}
    widest = max(map(len, cards))
    return [f"{name:{widest}}  {textwrap.shorten(_when(card), WIDTH - widest - 2)}" for name, card in cards.items()]


def _when(card: str) -> str:
    """First paragraph of a card after its title."""
    paragraphs = [part.strip() for part in card.split("\n\n")]
    return next((part for part in paragraphs if part and not part.startswith("#")), "")


def _written(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{limit:g} up to {length} residues" for length, limit in value.items())
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)
