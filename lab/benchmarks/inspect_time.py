"""Compare the time of `hnloader.inspect` with `torch.load`, and measure its memory.

    python -m lab.benchmarks.inspect_time [--files 300]

It uses one file of 202 MB in both containers of torch, and a set of files of 22 to 202 MB. All are in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import hnloader
from lab.benchmarks._measure import timed
from lab.benchmarks._set import make_files, megabytes, multiplied

ROUNDS = 3


def best(call: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest round after a warm-up."""
    call()
    return min(timed(call).wall for _ in range(rounds))


def peak_memory(call: Callable[[], object]) -> int:
    """Return the peak of Python's memory during a call, in bytes."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def compare_one(path: Path, container: str) -> str:
    """Compare both on one file, with the fastest of several rounds."""
    load = best(lambda: torch.load(path, weights_only=True), 5)
    inspect = best(lambda: hnloader.inspect(path), 50)
    peak = peak_memory(lambda: hnloader.inspect(path))
    return (
        f"{container:6} {path.stat().st_size / 1e6:.0f} MB: torch.load {load * 1e3:.0f} ms, "
        f"inspect {inspect * 1e3:.2f} ms ({load / inspect:.0f} times faster, {peak / 1e6:.1f} MB of memory)"
    )


def compare_set(files: list[Path]) -> str:
    """Compare both on the set in turns, with the fastest round of each file because the machine's speed varies."""
    load: list[list[float]] = [[] for _ in files]
    inspect: list[list[float]] = [[] for _ in files]
    for _ in range(ROUNDS):
        for path, times in zip(files, load, strict=True):
            times.append(timed(partial(torch.load, path, weights_only=True)).wall)
        for path, times in zip(files, inspect, strict=True):
            times.append(timed(partial(hnloader.inspect, path)).wall)
    loaded, inspected = (sum(map(min, times)) for times in (load, inspect))
    whole = [sum(sum(times) for times in each) / ROUNDS for each in (load, inspect)]
    return (
        f"{megabytes(files)}: torch.load {loaded:.2f} s, inspect {inspected:.3f} s ({loaded / inspected:.0f} times "
        f"faster; mean of all rounds: {whole[0]:.2f} and {whole[1]:.3f} s, {whole[0] / whole[1]:.0f} times)"
    )


def main() -> None:
    """Print one line per container, and one for the set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=300, help="files in the set (default: 300)")
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
