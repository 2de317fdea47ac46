"""Turning hypernetwork files into other files: safetensors, the webuis' `.pt`, LoRA, and several into one.

The names below are imported at first use, so that one part does not wait for what another one needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnloader.conversion.single import Checked, Converted, Origin, check, convert, origin

__all__ = ["Checked", "Converted", "Origin", "check", "convert", "origin"]

_HOMES = dict.fromkeys(__all__, "hnloader.conversion.single")

if not TYPE_CHECKING:  # a type checker would take it for a promise that every name exists

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
