"""Prepare the content of a converted file, and read what such a file states about its source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from hnloader.conversion.normalizing import normalized, why_not
from hnloader.errors import HypernetworkError, OtherModelError
from hnloader.files import sha256_of
from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Lazy, Outgoing, from_contents
from hnloader.formats.reading import read_contents
from hnloader.formats.registry import format_of
from hnloader.formats.source import open_source
from hnloader.texts import well_formed

__all__ = [
    "DTYPES",
    "SOURCE_HASH",
    "Origin",
    "dtype_name",
    "hash_of",
    "opened",
    "origin_notes",
    "origin_of",
    "prepared",
]

DTYPES = ("float32", "float16", "bfloat16")

# Statements of a safetensors file about its source.
SOURCE_HASH = "hnloader.source_sha256"
_SOURCE_NAME = "hnloader.source_name"
_NORMALIZED, _DTYPE = "hnloader.normalized", "hnloader.dtype"
_DATE = "modelspec.date"


@dataclass(frozen=True)
class Origin:
    """The statements of a converted safetensors file about its source; None or False for missing ones."""

    sha256: str | None
    normalized: bool
    dtype: str | None


def origin_of(contents: Contents) -> Origin:
    """Return the statements of an opened file about its source."""
    notes = contents.notes
    return Origin(notes.get(SOURCE_HASH), notes.get(_NORMALIZED) == "true", notes.get(_DTYPE))


def origin_notes(source: Path, normalize: bool, dtype: str | None) -> dict[str, str]:
    """Return the statements of a safetensors file about its source. The date is that of the source."""
    changed = datetime.fromtimestamp(source.stat().st_mtime, tz=timezone.utc)
    stated = {_SOURCE_NAME: well_formed(source.name), _DATE: changed.strftime("%Y-%m-%dT%H:%M:%SZ")}
    stated |= {_NORMALIZED: "true"} if normalize else {}
    return stated | ({_DTYPE: dtype} if dtype else {})


@contextlib.contextmanager
def opened(path: Path, *, checksums: bool = True) -> Iterator[Contents]:
    """Open a single hypernetwork. Raises HypernetworkError."""
    with open_source(path, checksums=checksums) as source:
        found = format_of(source)
        if found is not None and found.read_composition is not None:
            raise OtherModelError(
                f"{path} is a composition of several hypernetworks. Make one of it with 'hnloader merge'."
            )
        yield read_contents(source)


def prepared(
    contents: Contents, source: Path, *, normalize: bool, dtype: str | None
) -> tuple[Outgoing, tuple[str, ...]]:
    """Return the content to write, and notes about it."""
    outgoing = from_contents(contents, source.stem)
    notes: tuple[str, ...] = ()
    if normalize:
        reason = why_not(contents.architecture)
        if reason is None:
            outgoing = normalized(outgoing, contents)
        else:
            notes = (f"not normalized: {reason}",)
    return (_cast(outgoing, dtype, contents.label) if dtype else outgoing), notes


def dtype_name(dtype: torch.dtype | str | None) -> str | None:
    """Return the name of a dtype that tensors can be cast to. Raises HypernetworkError."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise HypernetworkError(f"Found the dtype {name!r}. Give one of {', '.join(DTYPES)}.")
    return name


def hash_of(path: Path) -> str:
    """Return the sha256 of a file in hex. Raises HypernetworkError."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise HypernetworkError(
            f"{path}: cannot read the file ({error.strerror or error}). Check the path and the disk."
        ) from error


def _cast(outgoing: Outgoing, dtype: str, label: str) -> Outgoing:
    def cast(tensors: Mapping[str, Lazy], where: str) -> dict[str, Lazy]:
        return {name: _cast_tensor(tensor, dtype, f"{label}: {name} {where}") for name, tensor in tensors.items()}

    sides = {key: cast(tensors, f"of the {key[1]} side of {key[0].label}") for key, tensors in outgoing.sides.items()}
    return replace(outgoing, sides=sides)


def _cast_tensor(tensor: Lazy, dtype: str, where: str) -> Lazy:
    def get() -> torch.Tensor:
        full = tensor.get()
        small: torch.Tensor = full.to(getattr(torch, dtype))
        if not torch.isfinite(small).all():
            largest = float(full.float().abs().max())
            raise HypernetworkError(f"{where} has the value {largest:g}, too large for {dtype}. Use bfloat16.")
        return small

    return Lazy(tensor.shape, dtype, get)
