"""Paths of the repository and the reference files."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
