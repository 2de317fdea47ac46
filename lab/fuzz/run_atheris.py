"""Fuzz one target with atheris; `python -m lab.fuzz` starts this process.

python -m lab.fuzz.run_atheris TARGET SECONDS KNOWN FRESH FINDS
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

import atheris
import torch

# The coverage of these guides the fuzzer; they are instrumented when they are first imported.
with atheris.instrument_imports(include=["hnloader", "yaml", "zipfile"]):
    for module in (
        "zipfile",
        "yaml",
        "hnloader.formats",
        "hnloader.infotext",
        "hnloader.prompt",
        "hnloader.training.config",
    ):
        importlib.import_module(module)

from lab.fuzz import differential
from lab.fuzz.choices import LONGEST
from lab.fuzz.targets import TARGETS
from lab.fuzz.watching import limit_memory


def main() -> None:
    """Run until libFuzzer ends the process; never returns."""
    name, seconds, known, fresh, finds = sys.argv[1:]
    target = TARGETS[name]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit_memory()
    stdout = os.open("/dev/stdout", os.O_WRONLY)
    runs = 0

    def run(data: bytes) -> None:
        nonlocal runs
        runs += 1
        target.run(data)
        if runs % 1_000 == 0 and differential.counts:
            os.write(stdout, differential.summary().encode())

    limits = [
        "-timeout=900",  # wall time, for inputs that never end; `watched` limits CPU time
        "-rss_limit_mb=4096",
        f"-max_len={LONGEST}",
        "-len_control=0",
        f"-max_total_time={seconds}",
    ]
    options = [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={finds}/{name}-", fresh, known]
    atheris.Setup(options, run)
    atheris.Fuzz()


main()
