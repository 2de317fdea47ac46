"""Test files and models under faults: kills, full disks, changed files, many processes at once.

    python -m lab.faults [SCENARIO ...] [--rounds N] [--seed N]

Each scenario counts its trials and failures. docs/dev/faults.md has the counts.
"""

import os

# Import messages of transformers and diffusers would hide the counts.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
