"""Deterministic training on a GPU, whose fastest algorithms add numbers in any order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Use torch's deterministic algorithms on a CUDA device while this is active; a CPU needs nothing.

    The backward passes of convolutions and attention add up in the order in which the GPU finishes. After 25 steps
    of AdamW the weights differ in the second digit. Determinism takes two to three times the time (SD 1 in float32
    on an H200). The switches belong to the whole process and are restored.

    torch raises RuntimeError for an operation without a deterministic algorithm; see `allow_nondeterministic`.
    """
    if device.type != "cuda":
        yield
        return
    configure_cublas()
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True)
    try:
        with _unfilled_memory():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(mode, warn_only=warn)


def configure_cublas() -> None:
    """Have cuBLAS add up in one order; it reads this variable once, at its first use in a process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def allow_nondeterministic(error: RuntimeError) -> bool:
    """Allow all algorithms if `error` reports a missing deterministic one; return True then."""
    refused = torch.are_deterministic_algorithms_enabled() and "deterministic" in str(error)
    if refused:
        torch.use_deterministic_algorithms(False)
    return refused


@contextlib.contextmanager
def _unfilled_memory() -> Iterator[None]:
    """Skip filling new memory, which torch 2.2 and newer does in this mode to reveal uninitialized reads."""
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
