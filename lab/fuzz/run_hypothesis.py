"""Fuzz one target with inputs that hypothesis draws; `python -m lab.fuzz` starts this process.

python -m lab.fuzz.run_hypothesis TARGET SECONDS KNOWN FRESH FINDS
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lab.fuzz import differential
from lab.fuzz.choices import LONGEST
from lab.fuzz.corpus_archive import input_name
from lab.fuzz.targets import TARGETS
from lab.fuzz.watching import limit_memory


def main() -> int:
    """Draw inputs until the time is up or one fails."""
    name, seconds, known, _, finds = sys.argv[1:]
    target = TARGETS[name]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit_memory()
    until = time.monotonic() + float(seconds)
    runs = 0

    def run(data: bytes) -> None:
        nonlocal runs
        runs += 1
        try:
            target.run(data)
        except BaseException:
            (Path(finds) / f"{name}-{input_name(data)}").write_bytes(data)
            raise

    try:
        for path in sorted(Path(known).iterdir()):
            run(path.read_bytes())
        for number in itertools.count():
            if time.monotonic() > until:
                break
            _draw(run, number)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        print(f"executed {runs} inputs")
        print(differential.summary())
    return 0


def _draw(run: Callable[[bytes], None], number: int) -> None:
    @seed(number)
    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(max_size=LONGEST))
    def check(data: bytes) -> None:
        run(data)

    check()


if __name__ == "__main__":
    sys.exit(main())
