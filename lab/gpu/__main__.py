"""Run the checks that need a GPU, one line each; exit with 1 if any fails.

    python -m lab.gpu [--only NAME,NAME]

The models are small or the bundled one; nothing is downloaded. --device cpu tests the checks without a GPU.
"""

from __future__ import annotations

import argparse
import sys

import torch
from diffusers.utils import logging

from hnloader.training.deterministic import configure_cublas
from tests.support.checking import outcome

from . import attaching, programs


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(prog="python -m lab.gpu", description=__doc__)
    parser.add_argument("--only", default="", help="run only checks whose names contain one of these: a,b,c")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch found no GPU. Use --device cpu to test the checks.", file=sys.stderr)
        return 1
    if device.type == "cuda":
        device = torch.device("cuda", device.index or torch.cuda.current_device())
    configure_cublas()  # before the first check uses it
    # By default, float32 convolutions use TF32, which has 11 bits of precision.
    torch.backends.cudnn.allow_tf32 = False
    logging.set_verbosity_error()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"on {name}, torch {torch.__version__}", flush=True)
    checks = {**attaching.CHECKS, **programs.CHECKS}
    chosen = [each for each in checks if any(part in each for part in given.only.split(","))]
    results = [outcome(each, lambda check=checks[each]: check(device)) for each in chosen]
    failed = results.count(False)
    print(f"{len(results)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
