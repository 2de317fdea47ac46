"""The same weights from the same training on a graphics card, where torch's quickest ways add in any order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """While this holds, what is computed on a CUDA device comes out with the same bits each time, if torch can do so.

    Backward passes of convolutions and of attention add up in the order in which the card happens to finish, unless
    told otherwise; after 25 steps of AdamW that is seen in the second digit of a weight. It takes two to three times
    the time (SD 1 in float32 on an H200). The processor needs nothing. The switches are torch's own, for the whole
    process, and are put back.

    torch refuses what it has no such way for, matrix products too where `ask_cublas` came too late; `without` is what
    to do then.
    """
    if device.type != "cuda":
        yield
        return
    ask_cublas()
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True)
    try:
        with _unfilled():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(mode, warn_only=warn)


def ask_cublas() -> None:
    """Have cuBLAS add up in one order; it is asked when it is first used in a process, and never again."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def without(error: RuntimeError) -> bool:
    """Whether `error` says that torch has no such way of an operation; from then on it may take the quickest way."""
    refused = torch.are_deterministic_algorithms_enabled() and "deterministic" in str(error)
    if refused:
        torch.use_deterministic_algorithms(False)
    return refused


@contextlib.contextmanager
def _unfilled() -> Iterator[None]:
    """New memory is not filled first, which torch does to show reads of what nobody wrote (2.2 and newer)."""
    options = getattr(torch.utils, "deterministic", None)
    if options is None:
        yield
        return
    before = options.fill_uninitialized_memory
    options.fill_uninitialized_memory = False
    try:
        yield
    finally:
        options.fill_uninitialized_memory = before
