"""Our reader against `torch.load(weights_only=True)` on the same bytes: agreed, explained, or a find."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter

import torch
from torch import Tensor

from hnloader.errors import HypernetworkError
from hnloader.formats import pickles, webui
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.pickles import TensorRef
from hnloader.formats.source import open_source

# What one side refuses and the other reads: what the side that refuses says, and why that is as it should be.
STRICTER: tuple[tuple[str, str], ...] = (
    (
        r"^it holds |pickle (in it )?holds",
        "torch allows more globals and calls than a hypernetwork has: dtypes, layouts, sparse tensors, ...",
    ),
    (r"its pickle is damaged: it ends at byte", "torch takes the topmost value and ignores what else was left"),
    (r"is used as a key", "keys whose hashes can be chosen make a dict take quadratic time"),
    (r"an integer of|is larger than|nests containers more than", "our limits"),
    (r"unfolds into more than|copies more than|more than [\d,]+ opcodes", "our limits"),
    (r"whose sizes are not numbers", "True is no size, and 16 dimensions are enough; torch takes both"),
    (r"marked as negated or conjugated", "views that no hypernetwork has; torch negates the values"),
    (r"stands in it as a value", "a class or a storage is no data"),
    (r"list of storages does not name", "torch ignores storages that no tensor uses, or fails later"),
    (r"is described in two ways|does not fit its storage", "torch takes the first description of a storage for all"),
    (r"add up to more than|unpacks to more than", "our limits"),
    (r"big-endian", "no hypernetwork from such a machine is known; torch swaps the bytes"),
    (
        r"programs would read different contents|would each be read as the pickle",
        "one form of the container is accepted, in which every program finds the same; torch takes others too",
    ),
    (r"it is of protocol", "Python's own pickle refuses a protocol that it does not know; torch takes any"),
    (r"it is cut off: the frame", "Python's own pickle refuses a frame that is longer than the file"),
    (r"a negative index|in other digits than", "as Python's own pickle has it"),
    (r"texts unfold into more than|encodes more than|with a name of more than", "our limits"),
    (r"outside of its folder", "torch unpacks nothing, other programs do"),
    (r"TorchScript archive", "an archive with code is no hypernetwork"),
    (r"is compressed by method", "torch.save compresses nothing; of what unpacks with little memory, deflate is read"),
    (
        r"zip archive is damaged",
        "zipfile holds a member's two headers, its CRC and its extra fields against each other",
    ),
)
MORE_LENIENT: tuple[tuple[str, str], ...] = (
    (r"Unsupported operand", "torch knows the opcodes that torch.save writes; we know all of protocols 0 to 5"),
    (r"not in a subdirectory", "members that nothing refers to are never read"),
    (
        r"meta-data for version|reading file version|parse the version|PyTorch file with version \d",
        "the member `version` says nothing that is needed",
    ),
    (
        r"invalid header or archive is corrupted",
        "fields that say nothing of where the data lie, such as zip64 ones unasked",
    ),
    (r"values to unpack \(expected [45]", "a storage named with or without the view that no file has any more"),
    (r"positional argument|requires_grad must be a bool", "gradients and hooks of a tensor, which are not used"),
    (r"GLOBAL (\S+\.)?(set|frozenset|bytes|bytearray) was not", "plain containers, made by us"),
    (r"ParameterDict", "in which the first textual-inversion embeddings keep their tensors"),
    (
        r"Trying to resize storage|setStorage|storage offset|negative (dimension|stride)|is not allowed|record size"
        r"|unpack the object|get_storage_from_record|calculation overflowed|Overflow when unpacking"
        r"|failed locating file data/",
        "a tensor that the pickle itself drops again; those that are kept are checked",
    ),
    (r"multidisk", "a number of disks that nothing refers to"),
)

counts: Counter[str] = Counter()


class DisagreementError(AssertionError):
    """The two readers disagree, and no row of the tables says why."""


class _RefusedError(Exception):
    pass


def compare(data: bytes) -> None:
    """Read with both; raise DisagreementError where they differ without an explanation."""
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
        raise DisagreementError(f"different values: {str(ours)[:300]} and {str(theirs)[:300]}")


def compare_at_once(data: bytes) -> None:
    """As `compare_ways`, of the pickle in a sound archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        compare_ways(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))


def compare_ways(pickle: bytes) -> str:
    """What is read of a pickle; raises DisagreementError where usual tensors read at once give another thing."""
    found = _told(pickle)
    most, pickles._MAX_USUAL_TENSORS = pickles._MAX_USUAL_TENSORS, 0
    try:
        if (one_by_one := _told(pickle)) != found:
            raise DisagreementError(f"read at once: {found[:300]}; opcode by opcode: {one_by_one[:300]}")
    finally:
        pickles._MAX_USUAL_TENSORS = most
    return found


def _told(pickle: bytes) -> str:
    try:
        return repr(pickles.read_pickle(pickle))
    except pickles.MalformedPickleError as error:
        return f"{error} {error.refused} {error.names}"


def _explain(who: str, table: tuple[tuple[str, str], ...], message: str) -> None:
    for pattern, _ in table:
        if re.search(pattern, message, re.DOTALL):
            counts[f"{who}: {pattern}"] += 1
            return
    raise DisagreementError(f"we are {who}: {message[:600]}")


def _outcome(read: object, data: bytes) -> object:
    try:
        return read(data)  # type: ignore[operator]
    except _RefusedError as refused:
        return refused


def _ours(data: bytes) -> object:
    try:
        with open_source(io.BytesIO(data)) as source:
            if not webui.detect(source):
                raise _RefusedError("not written by torch.save")
            checkpoint = read_checkpoint(source)
            if checkpoint.refused:
                raise _RefusedError("it holds " + ", ".join(map(str, checkpoint.refused)))
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
    except (Exception, SystemExit) as error:  # whatever it raises, it does not read the file
        # Before this, torch tells how to load files that run code.
        text = str(error)
        if isinstance(error, UnicodeDecodeError) and re.match(rb"\[enforce fail|PytorchStreamReader", error.object):
            text = error.object.decode("utf-8", "replace")  # a message with a member's name that is no UTF-8
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
    # Of strides that views of other types do not allow, as of a size of one; NaN is equal to itself here.
    plain = torch.empty(tensor.numel(), dtype=tensor.dtype)
    plain.copy_(tensor.reshape(-1))
    return plain.view(torch.uint8)


def summary() -> str:
    """The counts so far, a line each."""
    rows = sorted(counts.items(), key=lambda item: -item[1])
    return "".join(f"  compared: {number:,} {what}\n" for what, number in rows)


def table() -> str:
    """The rows for docs/dev/fuzzing.md."""
    rows = ["| who refuses | what it says (a pattern) | why that is as it should be |", "| --- | --- | --- |"]
    for who, reasons in (("hnloader", STRICTER), ("torch", MORE_LENIENT)):
        for pattern, why in reasons:
            shown = pattern.replace("|", "\\|")
            rows.append(f"| {who} | `{shown}` | {why} |")
    return "\n".join(rows)
