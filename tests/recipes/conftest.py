"""The scripts of recipes/ import each other as they do when they are run."""

import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
sys.path[:0] = [str(RECIPES / name) for name in ("engines", "starmd-peptide", "starmd-protein")]
