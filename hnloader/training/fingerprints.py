"""Hashes that tell models apart without reading all their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import nn


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Return a hash of the names, the shapes and a few values of all tensors of modules."""
    total = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.flatten()[:16].float().cpu().numpy().tobytes())
    return total.hexdigest()[:16]
