"""Compare hnloader with `torch.load(weights_only=True)` on the same bytes.

Both refuse a file, both read the same values, or a row of `STRICTER` or `MORE_LENIENT` explains the difference.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter

import torch
from torch import Tensor

from hnloader.errors import HypernetworkError
from hnloader.formats import pickles
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.pickles import TensorRef
from hnloader.formats.pt import FORMAT
from hnloader.formats.source import open_source

# Files that hnloader refuses and torch reads: a pattern of hnloader's message, and the reason.
STRICTER: tuple[tuple[str, str], ...] = (
    (
        r"pickle (in it )?holds",
        "torch allows more globals and calls than a hypernetwork needs: dtypes, layouts, sparse tensors, ...",
    ),
    (r"It ends at byte", "torch takes the topmost value and ignores the rest of the stack"),
    (r"is used as a key", "keys with chosen hashes make a dict take quadratic time"),
    (r"An integer|is larger than|Containers nest more than", "our limits"),
    (r"unfolds into more than|copies more than|more than [\d,]+ opcodes", "our limits"),
    (
        r"sizes of a tensor .* are not numbers|other things than numbers",
        "hnloader takes only integers as sizes, and 16 dimensions are enough",
    ),
    (r"marked as negated or conjugated", "hypernetworks never have such views; torch negates the values"),
    (r"is used as a value", "only tensors and plain values are data, not classes or storages"),
    (r"list of storages does not match", "torch ignores unused storages, or fails later"),
    (
        r"has two descriptions|does not fit its storage",
        "torch uses the first description of a storage",
    ),
    (r"add up to more than|unpacks to more than", "our limits"),
    (r"big-endian", "hypernetworks from such machines are unknown; torch swaps the bytes"),
    (
        r"programs would read different contents|as the pickle\. torch\.save writes one",
        "hnloader accepts only the form of the container that every program reads alike",
    ),
    (r"It has protocol", "Python's pickle refuses unknown protocols; torch takes any"),
    (r"It is cut off: the frame", "Python's pickle refuses a frame that is longer than the file"),
    (r"An index at byte \d+ is negative|has other digits than", "Python's pickle does the same"),
    (r"texts unfold into more than|encodes more than|has over \d+ characters", "our limits"),
    (r"outside of its folder", "other programs unpack archives; torch does not"),
    (r"TorchScript archive", "hypernetworks contain no code"),
    (
        r"is compressed by method",
        "torch.save compresses nothing; of the methods, hnloader reads deflate",
    ),
    (
        r"zip archive is damaged",
        "zipfile compares a member's two headers, its CRC and its extra fields",
    ),
)
# Files that torch refuses and hnloader reads: a pattern of torch's message, and the reason.
MORE_LENIENT: tuple[tuple[str, str], ...] = (
    (r"Unsupported operand", "torch knows the opcodes that torch.save writes; hnloader knows all of protocols 0 to 5"),
    (r"not in a subdirectory", "hnloader never reads members without references"),
    (
        r"meta-data for version|reading file version|parse the version|PyTorch file with version \d",
        "the member `version` is irrelevant",
    ),
    (
        r"invalid header or archive is corrupted",
        "fields that do not locate data, such as unused zip64 fields",
    ),
    (r"values to unpack \(expected [45]", "a storage with or without the obsolete view"),
    (r"positional argument|requires_grad must be a bool", "hnloader ignores gradients and hooks of tensors"),
    (r"GLOBAL (\S+\.)?(set|frozenset|bytes|bytearray) was not", "hnloader makes plain containers itself"),
    (r"ParameterDict", "the first textual-inversion embeddings keep their tensors in one"),
    (
        r"Trying to resize storage|setStorage|storage offset|negative (dimension|stride)|is not allowed|record size"
        r"|unpack the object|get_storage_from_record|calculation overflowed|Overflow when unpacking"
        r"|failed locating file data/",
        "a tensor that the pickle drops; hnloader checks only those that remain",
    ),
    (r"multidisk", "the number of disks is irrelevant"),
)

counts: Counter[str] = Counter()


class DisagreementError(AssertionError):
    """The two readers disagree, and no row of the tables explains it."""


class _RefusedError(Exception):
    pass


def compare(data: bytes) -> None:
    """Read with both; raise DisagreementError for an unexplained difference."""
    ours, theirs = _outcome(_ours, data), _outcome(_theirs, data)
    if isinstance(ours, _RefusedError) and isinstance(theirs, _RefusedError):
        counts["both refuse"] += 1
    elif isinstance(ours, _RefusedError):
        _explain("stricter", STRICTER, str(ours))
    elif isinstance(theirs, _RefusedError):
        _explain("more lenient", MORE_LENIENT, str(theirs))
    elif _same(ours, theirs, 0):
        counts["both read the same"] += 1
    else:
        raise DisagreementError(f"Different values: {str(ours)[:300]} and {str(theirs)[:300]}")


def compare_fast_path(data: bytes) -> None:
    """Call `compare_ways` with the pickle of a valid archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        compare_ways(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))


def compare_ways(pickle: bytes) -> str:
    """Read a pickle with and without the fast path for usual tensors; raise DisagreementError if they differ."""
    found = _describe(pickle)
    most, pickles._MAX_USUAL_TENSORS = pickles._MAX_USUAL_TENSORS, 0
    try:
        if (one_by_one := _describe(pickle)) != found:
            raise DisagreementError(f"Fast path: {found[:300]}; opcode by opcode: {one_by_one[:300]}")
    finally:
        pickles._MAX_USUAL_TENSORS = most
    return found


def _describe(pickle: bytes) -> str:
    try:
        return repr(pickles.read_pickle(pickle))
    except pickles.MalformedPickleError as error:
        return str(error)


def _explain(side: str, table: tuple[tuple[str, str], ...], message: str) -> None:
    for pattern, _ in table:
        if re.search(pattern, message, re.DOTALL):
            counts[f"{side}: {pattern}"] += 1
            return
    raise DisagreementError(f"{side}: hnloader and torch disagree: {message[:600]}")


def _outcome(read: object, data: bytes) -> object:
    try:
        return read(data)  # type: ignore[operator]
    except _RefusedError as refused:
        return refused


def _ours(data: bytes) -> object:
    try:
        with open_source(io.BytesIO(data)) as source:
            if not FORMAT.detect(source):
                raise _RefusedError("Not written by torch.save.")
            checkpoint = read_checkpoint(source)
            if checkpoint.refused:
                raise _RefusedError("It holds " + ", ".join(map(str, checkpoint.refused)))
            return _with_tensors(checkpoint.tree, checkpoint.read)
    except HypernetworkError as error:
        raise _RefusedError(str(error)) from error


def _with_tensors(value: object, read: object) -> object:
    if isinstance(value, TensorRef):
        return read(value)  # type: ignore[operator]
    if isinstance(value, dict):
        return {_with_tensors(key, read): _with_tensors(part, read) for key, part in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(_with_tensors(part, read) for part in value)
    return value


def _theirs(data: bytes) -> object:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (Exception, SystemExit) as error:  # any error means that it refuses the file
        text = str(error)
        if isinstance(error, UnicodeDecodeError) and re.match(rb"\[enforce fail|PytorchStreamReader", error.object):
            text = error.object.decode("utf-8", "replace")  # a message that names a member in another encoding
        # torch first explains how to load unsafe files; the reason follows.
        reason = text.rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0].strip()
        raise _RefusedError(f"{type(error).__name__}: {reason}") from error


def _same(one: object, other: object, depth: int) -> bool:
    if depth > 80:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and _same_tensor(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(
            _same(a, b, depth + 1) for pair in pairs for a, b in zip(*pair, strict=True)
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        kinds = isinstance(one, list) == isinstance(other, list)
        return kinds and len(one) == len(other) and all(_same(a, b, depth + 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, (set, frozenset)):
        return type(one) is type(other) and len(one) == len(other)
    return type(one) is type(other) and repr(one) == repr(other)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    other = other.detach()
    if one.shape != other.shape or one.dtype != other.dtype or (one.numel() and one.stride() != other.stride()):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    # A contiguous copy allows any view; comparing bytes makes NaN equal to itself.
    plain = torch.empty(tensor.numel(), dtype=tensor.dtype)
    plain.copy_(tensor.reshape(-1))
    return plain.view(torch.uint8)


def summary() -> str:
    """Return the counts so far, one per line."""
    rows = sorted(counts.items(), key=lambda item: -item[1])
    return "".join(f"  compared: {number:,} {what}\n" for what, number in rows)
