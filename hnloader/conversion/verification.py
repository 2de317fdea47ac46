"""Verify converted files: tensors, metadata and outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from hnloader.conversion.preparing import dtype_name, hash_of, opened, origin_of, prepared
from hnloader.errors import HypernetworkError, VerificationError
from hnloader.formats.architecture import normalize_name
from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Lazy, Outgoing, from_contents, tensor_bytes
from hnloader.formats.registry import format_named
from hnloader.formats.trees import canonical
from hnloader.network import Architecture, make_side
from hnloader.texts import as_text, shown

__all__ = ["is_result", "verify", "verify_equal"]

_ROWS = 4


def verify(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> tuple[str, ...]:
    """Verify that `target` was made from `source`: compare tensors, metadata and outputs.

    A target that was normalized or cast, as its metadata or tensors show, is compared with the source after the same
    change.

    Args:
        source: The file that was converted.
        target: The result.

    Returns:
        The parts that were compared: ("tensors", "metadata", "outputs").

    Raises:
        VerificationError: The files differ; the message names the place.
        HypernetworkError: The target states another source, or one of the files cannot be read.

    Example:
        >>> import hnloader.demo, tempfile
        >>> from hnloader.conversion import verify
        >>> source = hnloader.demo.hypernetwork_paths()["outline"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = hnloader.convert(source, f"{folder}/outline.pt")
        ...     verify(source, f"{folder}/outline.pt")
        ('tensors', 'metadata', 'outputs')
    """
    given, made = Path(source), Path(target)
    with opened(given) as contents, opened(made) as found:
        stated = origin_of(found)
        if stated.sha256 is not None and stated.sha256 != (actual := hash_of(given)):
            raise HypernetworkError(
                f"{made}: it states the source sha256 {stated.sha256[:10]}..., but {given} has {actual[:10]}... Give "
                "the file that it was made from."
            )
        dtype = stated.dtype or _common_dtype(contents, found)
        rewritten = stated.normalized or (
            not format_named(found.format).keeps_notes and list(found.metadata) != list(contents.metadata)
        )
        expected, _ = prepared(contents, given, normalize=rewritten, dtype=dtype)
        return verify_equal(expected, found, made)


def is_result(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    normalize: bool = False,
    dtype: torch.dtype | str | None = None,
) -> bool:
    """Return True if `target` is whole and equals what `convert` would write from `source` now.

    The statements of a safetensors file are compared with the settings and the hash of the source. Other files are
    compared with the source as in `verify`.

    Raises:
        HypernetworkError: One of them cannot be read or is something else.
    """
    given, made = Path(source), Path(target)
    cast_to = dtype_name(dtype)
    with opened(made) as found:
        stated = origin_of(found)
        if stated.sha256 is not None:
            settings = (stated.normalized, stated.dtype)
            return settings == (normalize, cast_to) and stated.sha256 == hash_of(given)
        with opened(given) as contents:
            expected, _ = prepared(contents, given, normalize=normalize, dtype=cast_to)
            try:
                verify_equal(expected, found, made)
            except VerificationError:
                return False
            return True


def verify_equal(expected: Outgoing, found: Contents, path: Path) -> tuple[str, ...]:
    """Compare a file with its expected content, one tensor at a time.

    Args:
        expected: The content, with tensors as they should be written.
        found: The file, read back.
        path: Name in messages.

    Returns:
        The parts that were compared.

    Raises:
        VerificationError: A part differs.
    """
    if expected.scopes != found.scopes:
        wanted_scopes, found_scopes = (", ".join(map(str, each.scopes)) for each in (expected, found))
        raise VerificationError(
            f"{path}: expected the widths {shown(wanted_scopes, 200)}, got {shown(found_scopes, 200)}."
        )
    _verify_metadata(expected, found, path)
    read_back = from_contents(found, "")
    for key, tensors in expected.sides.items():
        width, where = key[0].width, f"the {key[1]} side of {key[0].label}"
        wanted = {normalize_name(name): tensor for name, tensor in tensors.items()}
        given = {normalize_name(name): tensor for name, tensor in read_back.sides[key].items()}
        if wanted.keys() != given.keys():
            odd = ", ".join(sorted(wanted.keys() ^ given.keys()))
            raise VerificationError(f"{path}: the tensors of {where} differ from the source: {as_text(odd, 200)}.")
        for name, tensor in wanted.items():
            if not _same_data(tensor, given[name]):
                raise VerificationError(f"{path}: {name} of {where} differs from the source.")
        x = torch.randn(1, _ROWS, width, generator=torch.Generator().manual_seed(width))
        one, two = (_output(found.architecture, width, each, x) for each in (given, wanted))
        if _bits(one) != _bits(two):
            raise VerificationError(f"{path}: the outputs of {key[0].label} differ from those of the source.")
    return ("tensors", "metadata", "outputs")


def _common_dtype(contents: Contents, found: Contents) -> str | None:
    """Return the dtype that all tensors seem to have been cast to, or None."""
    before, after = (
        {info.dtype for side in each.sides.values() for info in side.values()} for each in (contents, found)
    )
    return after.pop() if len(after) == 1 and before != after else None


def _same_data(one: Lazy, two: Lazy) -> bool:
    """Compare shape, dtype and bits, in pieces; -0.0 and 0.0 differ."""
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    # As bytes: memoryviews compare value by value, a hundred times slower than copying both.
    return all(bytes(a) == bytes(b) for a, b in zip_longest(one.pieces(), two.pieces(), fillvalue=b""))


def _output(architecture: Architecture, width: int, tensors: Mapping[str, Lazy], x: Tensor) -> Tensor:
    """Return the float32 output of a side for `x`, with the parameters of one module at a time in memory."""
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
        difference = f"{shown(more)} is extra" if more else "the order differs"
        difference = f"{shown(missing)} is missing" if missing else difference
        raise VerificationError(f"{path}: the metadata keys differ from the source: {difference}.")
    for key, value in expected.metadata.items():
        wanted = canonical(value, lambda tensor: _bits(tensor.get()))
        if wanted != canonical(found.metadata[key], lambda info: _bits(found.read(info))):
            raise VerificationError(f"{path}: the value or type of {shown(key)} differs from the source.")


def _bits(tensor: Tensor) -> tuple[torch.Size, torch.dtype, bytes]:
    """Return shape, dtype and bits, to compare; -0.0 and 0.0 differ."""
    ready = tensor.contiguous()
    return ready.shape, ready.dtype, bytes(tensor_bytes(ready))
