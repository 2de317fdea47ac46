"""Checks that need a graphics card: `python -m tests.on_gpu`. They share models and files with the tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "attention")]
