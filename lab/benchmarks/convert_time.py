"""Compare conversion with copying the same files with `cp`, and measure its verification and memory.

    python -m lab.benchmarks.convert_time [--files 300] [--at-once 10] [--jobs 2] [--folder DIR]

The files have 22 to 202 MB and are in the page cache; most are hard links to a few distinct ones. `cp -r` copies a
folder, and hnloader converts it as its command does, in turns. Each way starts after earlier output is on the disk, and
its output is deleted afterwards. The set is processed in parts of `--at-once` files.

A large part fills the write cache, and then the disk limits every way; a small part shows the processor time. `at
least` is the processor time without verification, spread over the cores: one SHA-256 of the source for safetensors, one
CRC of the archive for `.pt`, and the work of `cp`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from hnloader.conversion.bulk import convert_many
from hnloader.conversion.planning import plan
from hnloader.conversion.to_format import ToFormat
from lab.benchmarks._measure import timed
from lab.benchmarks._set import make_files, megabytes, multiplied

_PIECE = 1 << 20


def bulk(source: Path, target: Path, suffix: str, *, jobs: int, verify: bool = False) -> None:
    """Convert a folder as `hnloader convert --out` does."""
    for result in convert_many(
        plan([source], suffix=suffix, out=target), ToFormat(suffix, verify_results=verify), jobs=jobs
    ):
        assert result.outcome == "converted", result


def measure(files: list[Path], number: int, folder: Path, at_once: int, jobs: int) -> dict[str, float]:
    """Return the total seconds of each way for a set of `number` files; the ways take turns for each part."""
    total: dict[str, float] = {}
    bulk(files[0].parent, folder / "distinct", ".safetensors", jobs=1)
    converted = sorted((folder / "distinct").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    for first in range(0, number, at_once):
        count = min(at_once, number - first)
        old, new, out = folder / "old", folder / "new", folder / "out"
        multiplied(files, count, old)
        multiplied(converted, count, new)
        compared = ways(old, new, out, jobs)
        if first == 0:  # the first way to fill the cache pays for its allocation
            compared["cp"]()
            shutil.rmtree(out)
        order = list(compared) if first // at_once % 2 == 0 else list(reversed(compared))
        for name in order:
            os.sync()
            total[name] = total.get(name, 0.0) + timed(compared[name]).wall
            shutil.rmtree(out)
        shutil.rmtree(old)
        shutil.rmtree(new)
    return total


def ways(old: Path, new: Path, out: Path, jobs: int) -> dict[str, Callable[[], object]]:
    """Return the compared ways; each makes the folder `out`."""

    def copy() -> None:
        subprocess.run(["cp", "-r", str(old), str(out)], check=True)

    def copy_and_sync() -> None:
        copy()
        os.sync()

    return {
        "cp": copy,
        "cp and sync": copy_and_sync,
        "to safetensors": lambda: bulk(old, out, ".safetensors", jobs=jobs),
        "to pt": lambda: bulk(new, out, ".pt", jobs=jobs),
        "to safetensors, verified": lambda: bulk(old, out, ".safetensors", jobs=jobs, verify=True),
        "to pt, verified": lambda: bulk(new, out, ".pt", jobs=jobs, verify=True),
    }


def processor_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call, including the programs that it starts."""
    start = _spent()
    call()
    return _spent() - start


def _spent() -> float:
    both = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def least(files: list[Path], folder: Path, cores: int) -> dict[str, float]:
    """Return the unavoidable seconds per byte of each way, from the fastest of three measurements."""
    size = sum(path.stat().st_size for path in files)
    data = bytes(64 * _PIECE)
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]

    def copy() -> None:
        shutil.rmtree(folder / "copies", ignore_errors=True)
        (folder / "copies").mkdir()
        subprocess.run(["cp", *map(str, files), str(folder / "copies")], check=True)

    def sha256() -> None:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)

    def crc() -> None:
        for piece in pieces:
            zlib.crc32(piece)

    copying = min(processor_seconds(copy) for _ in range(3)) / size
    shutil.rmtree(folder / "copies")
    hashing, checking = (min(processor_seconds(call) for _ in range(3)) / len(data) for call in (sha256, crc))
    return {
        "to safetensors": (copying + hashing) / cores,
        "to pt": (copying + checking) / cores,
    }


_CHILD = """
import sys, torch
from hnloader.conversion import convert
import hnloader.conversion.single

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

open("/proc/self/clear_refs", "w").write("5")  # without the peak of the imports
before = status("VmRSS")
convert(sys.argv[1], sys.argv[2], verify=sys.argv[3] == "True")
print(status("VmHWM") - before)
"""


def peak_memory(source: Path, target: Path, verify: bool) -> float:
    """Return the MB of resident memory above an interpreter with torch and hnloader imported (Linux only)."""
    command = [sys.executable, "-c", _CHILD, str(source), str(target), str(verify)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    target.unlink()
    return int(result.stdout) * 1024 / 1e6


def main() -> None:
    """Print the ratios."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=30, help="number of files (default: 30; documented figures: 300)")
    parser.add_argument("--at-once", type=int, default=10, help="files in a part (default: 10)")
    parser.add_argument("--jobs", type=int, default=min(cores, 4), help="parallel jobs (default: same as the command)")
    parser.add_argument("--folder", type=Path, default=None, help="working folder (default: temporary)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = make_files(folder / "files")
        counted = [files[index % len(files)] for index in range(chosen.files)]
        size = sum(path.stat().st_size for path in counted)
        total = measure(files, chosen.files, folder, chosen.at_once, chosen.jobs)
        bound = least(files, folder, cores)
        print(f"{megabytes(counted)}, in parts of {chosen.at_once}; {chosen.jobs} jobs, {cores} cores")
        for way, spent in total.items():
            line = f"  {way:<24} {spent:7.2f} s  {spent / total['cp']:5.2f} x cp  {size / spent / 1e6:6.0f} MB/s"
            at_least = f"  (processor: at least {bound[way] * size / total['cp']:.2f})" if way in bound else ""
            print(line + at_least)
        for source in (files[0], files[-1]):
            for verify in (False, True):
                peak = peak_memory(source, folder / "m.safetensors", verify)
                verification = "with verification" if verify else "without verification"
                print(
                    f"  memory, {source.stat().st_size / 1e6:.0f} MB {verification}: "
                    f"{peak:.0f} MB above the interpreter"
                )


if __name__ == "__main__":
    main()
