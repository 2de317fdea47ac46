"""What becomes of files and models when things go wrong: kills, full disks, changed files, crowds.

    python -m lab.faults [SCENARIO ...] [--rounds N] [--seed N]

Each scenario counts its trials and says what it found wrong. docs/dev/faults.md shows the counts.
"""

import os

# What transformers and diffusers have to say when they are imported hides what is counted.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
