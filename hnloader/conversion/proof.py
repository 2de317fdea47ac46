"""Proves that a file holds what it was to hold: tensors, metadata and outputs."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from hnloader.errors import HypernetworkError
from hnloader.formats.contents import Contents, build_side, is_tensor_info
from hnloader.formats.outgoing import Lazy, Outgoing
from hnloader.formats.proof import normalise_name
from hnloader.network import Side

_ROWS = 4


class ProofError(HypernetworkError):
    """A file does not hold what it was to hold; the message says what differs."""


def prove_equal(expected: Outgoing, found: Contents, path: Path) -> tuple[str, ...]:
    """Compare a file with what it was to hold, one side at a time.

    Args:
        expected: with tensors as they were to be written.
        found: the file as it was read back.
        path: what messages call it.

    Returns:
        What was compared, in words.

    Raises:
        ProofError: something differs.
    """
    if expected.widths != found.widths:
        raise ProofError(f"{path} has the widths {found.widths} where {expected.widths} were expected")
    _prove_metadata(expected, found, path)
    for key, tensors in expected.sides.items():
        side = found.side(*key)
        read_back = {name: parameter.detach() for name, parameter in side.named_parameters()}
        wanted = {normalise_name(name): tensor.get() for name, tensor in tensors.items()}
        if wanted.keys() != read_back.keys():
            odd = ", ".join(sorted(wanted.keys() ^ read_back.keys()))
            raise ProofError(f"{path} has other tensors on the {key[1]} side of width {key[0]} than expected: {odd}")
        for name, tensor in wanted.items():
            if not _same_bits(tensor, read_back[name]):
                raise ProofError(f"{path}: {name} of the {key[1]} side of width {key[0]} differs from the source")
        _prove_outputs(side, wanted, found, key[0], path)
        found.forget()
    return ("tensors", "metadata", "outputs")


def _prove_outputs(side: Side, wanted: dict[str, Tensor], found: Contents, width: int, path: Path) -> None:
    """Both compute the same on random inputs, bit for bit: one from the file, one from the source's tensors."""
    other = build_side(found.architecture, width, wanted)
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(1, _ROWS, width, generator=generator)
    with torch.no_grad():
        one, two = side.float()(x), other.float()(x)
    if not _same_bits(one, two):
        raise ProofError(f"{path}: the outputs of width {width} differ from those of the source")


def _prove_metadata(expected: Outgoing, found: Contents, path: Path) -> None:
    if list(expected.metadata) != list(found.metadata):
        missing = [key for key in expected.metadata if key not in found.metadata]
        more = [key for key in found.metadata if key not in expected.metadata]
        what = f"lacks {missing}" if missing else f"has {more} besides" if more else "has them in another order"
        raise ProofError(f"{path} does not have the metadata of the source: it {what}")
    for key, value in expected.metadata.items():
        if not _same(value, found.metadata[key], found):
            raise ProofError(f"{path}: the value of {key!r} differs from the source, or its type does")


def _same(one: object, two: object, found: Contents) -> bool:
    """Equal in value and type, all the way down; tensors bit for bit."""
    if isinstance(one, Lazy):
        return is_tensor_info(two) and _same_bits(one.get(), found.read(two))
    if type(one) is not type(two):
        return False
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(_same(value, two[key], found) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(_same(a, b, found) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and isinstance(two, float):
        return one == two or (math.isnan(one) and math.isnan(two))
    return one == two


def _same_bits(one: Tensor, two: Tensor) -> bool:
    """The same shape, dtype and bits; -0.0 and 0.0 differ."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return (
        torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))
        if one.dim()
        else (torch.equal(one, two))
    )
