"""Parse the options that the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def parse(description: str | None, models: Sequence[str] = ()) -> argparse.Namespace:
    """Return `quick`, `results` (a folder or None), `threads` (set in torch), and `only`, some of `models`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds and models, only as a smoke test")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write JSON files and plots there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    if models:
        parser.add_argument(
            "--only", nargs="+", choices=models, default=models, help="default: all; with --quick, the smallest"
        )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
    return options
