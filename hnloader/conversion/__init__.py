"""Convert hypernetwork files: to safetensors, to the `.pt` of the webuis, and several to one.

`lora` exports them as LoRA and LyCORIS files. The names below are imported at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnloader.conversion.preparing import Origin, origin
    from hnloader.conversion.single import Converted, convert
    from hnloader.conversion.verification import Verified, verify

__all__ = ["Converted", "Origin", "Verified", "convert", "origin", "verify"]

_HOMES = {
    "Converted": "single",
    "Origin": "preparing",
    "Verified": "verification",
    "convert": "single",
    "origin": "preparing",
    "verify": "verification",
}

if not TYPE_CHECKING:  # a type checker would take it for a promise that every name exists

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"Module {__name__!r} has no attribute {name!r}.")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
