"""Memory, as ComfyUI reports it."""

from __future__ import annotations

from typing import Any

free = 8 << 30


def get_free_memory(device: Any) -> int:
    return free


def minimum_inference_memory() -> int:
    return 1 << 30
