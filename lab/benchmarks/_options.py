"""The options that the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def parse(description: str | None, models: Sequence[str] = ()) -> argparse.Namespace:
    """`quick`, `results` (a folder or None), `threads`, which is put in force, and `only`: which of `models`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds and few models: a look, not a measurement")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write JSON files and plots there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: what torch takes")
    if models:
        parser.add_argument("--only", nargs="+", choices=models, default=models, help="default: all that fit `--quick`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
    return options
