"""How much faster `hnloader.inspect` is than `torch.load`, and how much memory it takes.

    python -m lab.benchmarks.inspect_time [--files 300]

On one file of 202 MB, in both containers that torch writes, and on a set of files of 22 to 202 MB, each way through the
whole set in a row, of which none is kept. All are in the cache of the system.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import hnloader
from lab.benchmarks._set import make_files, megabytes, multiplied

ROUNDS = 3


def best(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the quickest round, after one that warms up."""
    call()
    return min(seconds(call) for _ in range(rounds))


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that Python asks for at most during the call."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def compare_one(path: Path, container: str) -> str:
    """One file, the quickest of several rounds of each."""
    load = best(lambda: torch.load(path, weights_only=True), 5)
    inspect = best(lambda: hnloader.inspect(path), 50)
    peak = peak_memory(lambda: hnloader.inspect(path))
    return (
        f"{container:6} {path.stat().st_size / 1e6:.0f} MB: torch.load {load * 1e3:.0f} ms, "
        f"inspect {inspect * 1e3:.2f} ms ({load / inspect:.0f} times faster, {peak / 1e6:.1f} MB of memory)"
    )


def compare_set(files: list[Path]) -> str:
    """The whole set by each, in turns; of each file the quickest of the rounds, as the machine's pace changes."""
    load: list[list[float]] = [[] for _ in files]
    inspect: list[list[float]] = [[] for _ in files]
    for _ in range(ROUNDS):
        for path, times in zip(files, load, strict=True):
            times.append(seconds(partial(torch.load, path, weights_only=True)))
        for path, times in zip(files, inspect, strict=True):
            times.append(seconds(partial(hnloader.inspect, path)))
    loaded, inspected = (sum(map(min, times)) for times in (load, inspect))
    whole = [sum(sum(times) for times in each) / ROUNDS for each in (load, inspect)]
    return (
        f"{megabytes(files)}: torch.load {loaded:.2f} s, inspect {inspected:.3f} s ({loaded / inspected:.0f} times "
        f"faster; with the slower rounds {whole[0]:.2f} and {whole[1]:.3f} s, {whole[0] / whole[1]:.0f} times)"
    )


def main() -> None:
    """Print one line per container, and one for the set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=300, help="how many are in the set (default: 300)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder)
        content = torch.load(files[-1], weights_only=True)
        legacy = folder / "legacy.pt"
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
        del content
        print(compare_one(files[-1], "zip"))
        print(compare_one(legacy, "legacy"))
        print(compare_set(multiplied(files, chosen.files, folder / "set")))


if __name__ == "__main__":
    main()
