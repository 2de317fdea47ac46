"""Verifies that a file holds what it was to hold: tensors, metadata and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from hnloader.errors import VerificationError
from hnloader.formats.architecture import normalise_name
from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Lazy, Outgoing, from_contents, tensor_bytes
from hnloader.formats.trees import canonical
from hnloader.network import Architecture, make_side
from hnloader.texts import as_text, shown

_ROWS = 4


def verify_equal(expected: Outgoing, found: Contents, path: Path) -> tuple[str, ...]:
    """Compare a file with what it was to hold, one tensor at a time.

    Args:
        expected: with tensors as they were to be written.
        found: the file as it was read back.
        path: what messages call it.

    Returns:
        What was compared, in words.

    Raises:
        VerificationError: something differs.
    """
    if expected.widths != found.widths:
        raise VerificationError(
            f"{path} has the widths {shown(found.widths)} where {shown(expected.widths)} were expected"
        )
    _verify_metadata(expected, found, path)
    read_back = from_contents(found, "")
    for key, tensors in expected.sides.items():
        where = f"the {key[1]} side of width {key[0]}"
        wanted = {normalise_name(name): tensor for name, tensor in tensors.items()}
        given = {normalise_name(name): tensor for name, tensor in read_back.sides[key].items()}
        if wanted.keys() != given.keys():
            odd = ", ".join(sorted(wanted.keys() ^ given.keys()))
            raise VerificationError(f"{path} has other tensors on {where} than expected: {as_text(odd, 200)}")
        for name, tensor in wanted.items():
            if not _same_data(tensor, given[name]):
                raise VerificationError(f"{path}: {name} of {where} differs from the source")
        x = torch.randn(1, _ROWS, key[0], generator=torch.Generator().manual_seed(key[0]))
        outputs = [_output(found.architecture, key[0], each, x) for each in (given, wanted)]
        if not _same_bits(*outputs):
            raise VerificationError(f"{path}: the outputs of width {key[0]} differ from those of the source")
    return ("tensors", "metadata", "outputs")


def _same_data(one: Lazy, two: Lazy) -> bool:
    """The same shape, dtype and bits, compared in pieces; -0.0 and 0.0 differ."""
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    # As bytes: memoryviews compare value by value, which is a hundred times slower than a copy of both.
    return all(bytes(a) == bytes(b) for a, b in zip_longest(one.pieces(), two.pieces(), fillvalue=b""))


def _output(architecture: Architecture, width: int, tensors: Mapping[str, Lazy], x: Tensor) -> Tensor:
    """What a side gives for `x`, with the parameters of one module at a time in memory, in float32."""
    with torch.device("meta"):
        side = make_side(architecture, width).eval()
    for path, module in side.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            _fetch_when_called(module, path, tensors)
    with torch.no_grad():
        result: Tensor = side(x)
    return result


def _fetch_when_called(module: nn.Module, path: str, tensors: Mapping[str, Lazy]) -> None:
    names = [name for name, _ in module.named_parameters(recurse=False)]

    def fill(module: nn.Module, args: object) -> None:
        for name in names:
            values = tensors[f"{path}.{name}"].get().float()
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def empty(module: nn.Module, args: object, output: object) -> None:
        for name in names:
            module.register_parameter(name, None)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(empty)


def _verify_metadata(expected: Outgoing, found: Contents, path: Path) -> None:
    if list(expected.metadata) != list(found.metadata):
        missing = [key for key in expected.metadata if key not in found.metadata]
        more = [key for key in found.metadata if key not in expected.metadata]
        what = f"has {shown(more)} besides" if more else "has them in another order"
        what = f"lacks {shown(missing)}" if missing else what
        raise VerificationError(f"{path} does not have the metadata of the source: it {what}")
    for key, value in expected.metadata.items():
        if canonical(value, _bits) != canonical(found.metadata[key], lambda info: _bits_of(found.read(info))):
            raise VerificationError(f"{path}: the value of {shown(key)} differs from the source, or its type does")


def _bits(tensor: Lazy) -> object:
    return _bits_of(tensor.get())


def _bits_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype, bytes]:
    """What equals that of another tensor of the same shape, dtype and bits; -0.0 and 0.0 differ."""
    ready = tensor.contiguous()
    return ready.shape, ready.dtype, bytes(tensor_bytes(ready))


def _same_bits(one: Tensor, two: Tensor) -> bool:
    return _bits_of(one) == _bits_of(two)
