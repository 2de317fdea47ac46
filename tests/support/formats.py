"""A format that is written by another function than its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hnloader.conversion import single
from hnloader.formats.outgoing import Outgoing
from hnloader.formats.registry import format_named


def write_safetensors_with(monkeypatch: pytest.MonkeyPatch, write: Callable[[Outgoing, Path], None]) -> None:
    """Make conversions to safetensors call `write`."""
    changed = dataclasses.replace(format_named("safetensors"), write=write)
    monkeypatch.setattr(single, "format_to_write", lambda path: changed)
