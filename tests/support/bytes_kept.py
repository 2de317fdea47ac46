"""Count the bytes that autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def bytes_kept(unet: nn.Module, run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the bytes that autograd saves besides parameters."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in unet.parameters()}
    real = torch.autograd.graph.saved_tensors_hooks

    def note(found: object) -> object:
        if isinstance(found, Tensor) and found.data_ptr() not in own:
            kept[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        return found

    def counting(pack: Callable[[Tensor], object], unpack: Callable[[Any], Tensor]) -> object:
        return real(lambda tensor: note(pack(tensor)), unpack)

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", counting)
    with counting(lambda tensor: tensor, lambda tensor: tensor):
        alive = run()
    monkeypatch.undo()
    del alive
    return sum(kept.values())
