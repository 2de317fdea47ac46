"""The process that fuzzes one target with inputs that hypothesis draws; started by `python -m lab.fuzz`.

python -m lab.fuzz.run_hypothesis TARGET SECONDS FRESH FINDS
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
import warnings
from hashlib import sha256
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lab.fuzz import differential
from lab.fuzz.targets import TARGETS
from lab.fuzz.watching import limit_memory

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 2048


def main() -> int:
    """Draw inputs until the time is over or something is found."""
    name, seconds, _, finds = sys.argv[1:]
    target = TARGETS[name]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit_memory()
    until = time.monotonic() + float(seconds)
    runs = 0

    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        try:
            target.run(data)
        except BaseException:
            (Path(finds) / f"{name}-{sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise

    try:
        for path in sorted((CORPUS / name).glob("*")):
            one(path.read_bytes())
        for number in itertools.count():
            if time.monotonic() > until:
                break
            _drawn(one, number)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        print(f"executed {runs} inputs")
        print(differential.summary())
    return 0


def _drawn(one: object, number: int) -> None:
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
        one(data)  # type: ignore[operator]

    check()


if __name__ == "__main__":
    sys.exit(main())
