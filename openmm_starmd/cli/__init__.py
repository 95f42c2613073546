"""The command ``starmd``: a module for each command that parses and calls the library, and what they share."""

from openmm_starmd.cli.main import app, main, spread_values

__all__ = ["app", "main", "spread_values"]
