"""How much faster `hnloader.inspect` is than `torch.load`, and how much memory it takes, on files of 200 MB."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import torch

import hnloader

WIDTHS = (320, 640, 768, 1280)
# [1, 4.6, 1] at these widths is 200 MB in float32; [1, 2, 1], the usual one, is 87 MB.
RATIO = 4.6


def content() -> dict[object, object]:
    """What a webui saves, with random weights."""

    def side(width: int) -> dict[str, torch.Tensor]:
        hidden = int(width * RATIO)
        return {
            "linear.0.weight": torch.randn(hidden, width),
            "linear.0.bias": torch.zeros(hidden),
            "linear.1.weight": torch.randn(width, hidden),
            "linear.1.bias": torch.zeros(width),
        }

    keys = {"layer_structure": [1, RATIO, 1], "activation_func": "linear", "is_layer_norm": False}
    return {**{width: (side(width), side(width)) for width in WIDTHS}, "step": 1, "name": "large", **keys}


def best(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the quickest round, after one that warms up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that Python asks for at most during the call."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    """Print one line per container."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for container in ("zip", "legacy"):
            path = Path(folder) / f"{container}.pt"
            torch.save(content(), path, _use_new_zipfile_serialization=container == "zip")
            load = best(lambda: torch.load(path, weights_only=True), 5)  # noqa: B023 - called at once
            inspect = best(lambda: hnloader.inspect(path), 50)  # noqa: B023
            peak = peak_memory(lambda: hnloader.inspect(path))  # noqa: B023
            print(
                f"{container:6} {path.stat().st_size / 1e6:.0f} MB: torch.load {load * 1e3:.0f} ms, "
                f"inspect {inspect * 1e3:.2f} ms ({load / inspect:.0f} times faster, {peak / 1e6:.1f} MB of memory)"
            )
            path.unlink()


if __name__ == "__main__":
    main()
