"""``python -m openmm_starmd``: the command ``starmd``, where its folder is not on the PATH."""

import sys

from openmm_starmd.cli import main

sys.exit(main())
