"""The process that fuzzes one target with atheris; started by `python -m lab.fuzz`.

python -m lab.fuzz.run_atheris TARGET SECONDS FRESH FINDS
python -m lab.fuzz.run_atheris TARGET merge INTO FROM FROM
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path

import atheris
import torch

# What is guided by: instrumented when it is imported here for the first time.
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
from lab.fuzz.targets import TARGETS
from lab.fuzz.watching import limit_memory

CORPUS = Path(__file__).parent / "corpus"
# Of the fuzzer's bytes. Files made of them have some ten kilobytes.
LONGEST = 2048


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, seconds, fresh, finds = sys.argv[1:]
    target = TARGETS[name]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit_memory()
    counts = os.open("/dev/stdout", os.O_WRONLY)
    runs = 0

    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        target.run(data)
        if runs % 1_000 == 0 and differential.counts:
            os.write(counts, differential.summary().encode())

    known = CORPUS / name
    known.mkdir(parents=True, exist_ok=True)
    limits = [
        "-timeout=900",  # of the clock, for what never ends; `watched` counts the time that an input really takes
        "-rss_limit_mb=4096",
        f"-max_len={LONGEST}",
        "-len_control=0",
        f"-max_total_time={seconds}",
    ]
    options = [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={finds}/{name}-", fresh, str(known)]
    atheris.Setup(options, one)
    atheris.Fuzz()


main()
