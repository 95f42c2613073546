"""The command ``starmd``: a module for each command that parses and calls the library, and what they share."""

from openmm_starmd.cli.program import EXAMPLES, app, main, spread_values

__all__ = ["EXAMPLES", "app", "main", "spread_values"]
