"""Converting one file between `.pt` and `.safetensors`, losslessly, and verified before it takes its name."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch

from hnloader.conversion.companions import State, companion_of, opened_state
from hnloader.conversion.normalizing import normalized, why_not
from hnloader.conversion.planning import numbered
from hnloader.conversion.verification import verify_equal
from hnloader.errors import ExistingFileError, HypernetworkError, OtherModelError, VerificationError
from hnloader.files import check_free, expanded, replacing_together, same_file, sha256_of
from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Lazy, Outgoing, from_contents
from hnloader.formats.pickles import Parameters
from hnloader.formats.reading import read_contents
from hnloader.formats.registry import format_named, format_of, format_to_write
from hnloader.formats.source import open_source, unchanged
from hnloader.texts import shown, well_formed

OnExisting = Literal["overwrite", "skip", "rename"]
DTYPES = ("float32", "float16", "bfloat16")

# What a safetensors file states of where it came from.
_SOURCE_HASH, _SOURCE_NAME = "hnloader.source_sha256", "hnloader.source_name"
_NORMALISED, _DTYPE = "hnloader.normalized", "hnloader.dtype"
_DATE = "modelspec.date"


@dataclass(frozen=True)
class Checked:
    """That two files hold the same.

    Attributes:
        source: the first file.
        target: the second file.
        verified: what was compared, in words: ("tensors", "metadata", "outputs").
    """

    source: Path
    target: Path
    verified: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """What became of one file.

    Attributes:
        source: the file that was read.
        target: the file that was written, or that was there already when skipped.
        action: "converted", or "skipped" because `target` or the `.optim` beside it exists.
        lossless: every tensor and every metadata key is as in the source.
        verified: what was compared with the source, in words; empty without a verification.
        notes: what else is to be said, one sentence each.
        source_sha256: of the source's bytes, in hex; None when skipped, and for a `.pt` that was not verified.
    """

    source: Path
    target: Path
    action: Literal["converted", "skipped"]
    lossless: bool
    verified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_sha256: str | None = None


@dataclass(frozen=True)
class Origin:
    """What a converted safetensors file states of where it came from; None or False where it states nothing."""

    sha256: str | None
    name: str | None
    normalized: bool
    dtype: str | None


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    normalize: bool = False,
    dtype: torch.dtype | str | None = None,
    verify: bool = True,
    on_existing: OnExisting = "overwrite",
) -> Converted:
    """Convert one hypernetwork file to `.safetensors` or `.pt`, by the ending of `target`.

    Tensors are read and written one at a time. A `.pt.optim` beside the source is written beside the target.

    Args:
        source: a `.pt` or `.safetensors` file. It is never written to.
        target: where the result goes. It appears under its name when it is whole, and verified.
        normalize: rewrite old variants in today's form, with the same outputs.
        dtype: store the tensors as float32, float16 or bfloat16; None keeps them bit for bit.
        verify: read the result back and compare it with the source before it takes its name. Without, for speed, all
            else that costs time is left out too: the checksums of a zip archive are not compared, the disk is not
            waited for, a safetensors file does not state ModelSpec's hash of its data, and of a file that becomes
            `.pt` no sha256 is taken. A safetensors file always states the sha256 of its source.
        on_existing: What happens where `target` exists, or the `.optim` that is written beside it: both are
            replaced, both are left alone, or a number is added to the names of the new ones.

    Raises:
        HypernetworkError: the source cannot be read or is no hypernetwork, the target cannot be written or is
            the source itself, or the verification failed. Nothing is left behind then.
    """
    given, wanted = expanded(source), expanded(target)
    format_to_write(wanted)
    wanted_dtype = _dtype_name(dtype)
    _check_target(given, wanted)
    state_file = companion_of(given) if companion_of(given).is_file() else None
    if on_existing == "rename":
        wanted = next(path for path in itertools.chain([wanted], numbered(wanted)) if is_free(path, state_file))
    elif on_existing == "skip" and os.path.lexists(wanted):
        return Converted(given, wanted, "skipped", lossless=True)
    try:
        return _converted(
            given,
            wanted,
            state_file,
            normalize=normalize,
            dtype=wanted_dtype,
            verify=verify,
            overwrite=on_existing == "overwrite",
        )
    except ExistingFileError as error:
        if on_existing != "skip":
            raise
        return Converted(given, wanted, "skipped", lossless=True, notes=(str(error),))


def is_free(target: Path, state_file: Path | None) -> bool:
    """Return whether nothing stands where a file and, if there is one, its optimizer's state are to be written."""
    return not os.path.lexists(target) and not (state_file and os.path.lexists(companion_of(target)))


def _converted(
    given: Path,
    wanted: Path,
    state_file: Path | None,
    *,
    normalize: bool,
    dtype: str | None,
    verify: bool,
    overwrite: bool,
) -> Converted:
    file_format = format_to_write(wanted)
    assert file_format.write is not None
    stated = verify or file_format.keeps_notes or state_file is not None
    hashing = _Hash(given) if stated else contextlib.nullcontext()
    with _opened(given, checksums=verify) as contents, hashing as hashed, contextlib.ExitStack() as stack:
        outgoing, notes = _prepared(contents, given, normalize=normalize, dtype=dtype)
        changed = dtype is not None and any(info.dtype != dtype for info in _infos(contents))
        state = stack.enter_context(opened_state(state_file, hashed.result)) if state_file and hashed else None
        written: dict[Path, list[Path]] = {}
        there = companion_of(wanted)
        if isinstance(state, State) and state_file and (overwrite or not os.path.lexists(there)):
            written[there] = [state_file]  # before the file: one that is there is complete
        written[wanted] = [given]
        with replacing_together(written, flush=verify, overwrite=overwrite) as (*states, temporary), unchanged(given):
            notes_of_file = _stated(given, normalize, dtype)
            hashes = {_SOURCE_HASH: hashed.result} if hashed else {}
            file_format.write(replace(outgoing, notes=notes_of_file, hashes=hashes, data_hash=verify), temporary)
            sha256 = hashed.result() if hashed else None
            verified = _verified(outgoing, temporary, wanted) if verify else ()
            if isinstance(state, State):
                new_sha256 = _sha256(temporary)
                if states:
                    state.write(states[0], new_sha256)
                elif not state.is_written(there, new_sha256):  # as a run does that was killed before the file's turn
                    check_free(there)
                notes += (state.told(there),)
            elif state is not None:
                notes += (state,)
            stack.close()  # what was read is checked before anything takes its name
    notes += _kept_otherwise(contents) + file_format.changes(contents)
    if changed:
        notes += (f"the tensors are rounded to {dtype}: this is not lossless",)
    lossless = not changed and not normalize and not _kept_otherwise(contents)
    return Converted(given, wanted, "converted", lossless, verified, notes, sha256)


def check(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Checked:
    """Verify that `target` was made from `source`: tensors, metadata and outputs are compared.

    A target that was normalized or is stored in another dtype, as its metadata say or as its tensors show, is held
    against what the source becomes by that.

    Raises:
        HypernetworkError: they differ, and where; or one of them cannot be read.
    """
    given, made = Path(source), Path(target)
    with _opened(given) as contents, _opened(made) as found:
        stated = _origin(found.notes)
        if stated.sha256 is not None and stated.sha256 != (actual := _sha256(given)):
            raise HypernetworkError(
                f"{made} was made from another file: it states the sha256 {stated.sha256[:10]}..., and {given} has "
                f"{actual[:10]}..."
            )
        dtype = stated.dtype or _shown_dtype(contents, found)
        rewritten = stated.normalized or (
            not format_named(found.format).keeps_notes and list(found.metadata) != list(contents.metadata)
        )
        expected, _ = _prepared(contents, given, normalize=rewritten, dtype=dtype)
        return Checked(given, made, verify_equal(expected, found, made))


def is_result(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    normalize: bool = False,
    dtype: torch.dtype | str | None = None,
) -> bool:
    """Whether `target` is whole and what `convert` would write from `source` as it is now.

    What a safetensors file states is held against the settings and the hash of the source. A file that states
    nothing, as every `.pt`, is compared with the source as `check` does.

    Raises:
        HypernetworkError: one of them cannot be read or is no hypernetwork.
    """
    given, made = Path(source), Path(target)
    wanted_dtype = _dtype_name(dtype)
    with _opened(made) as found:
        stated = _origin(found.notes)
        if stated.sha256 is not None:
            settings = (stated.normalized, stated.dtype)
            return settings == (normalize, wanted_dtype) and stated.sha256 == _sha256(given)
        with _opened(given) as contents:
            expected, _ = _prepared(contents, given, normalize=normalize, dtype=wanted_dtype)
            try:
                verify_equal(expected, found, made)
            except VerificationError:
                return False
            return True


def origin(path: str | os.PathLike[str]) -> Origin:
    """What a converted file states of where it came from; only the header is read.

    Raises:
        HypernetworkError: it cannot be read or is no hypernetwork.
    """
    with _opened(Path(path)) as contents:
        return _origin(contents.notes)


# -- what is written


def _prepared(
    contents: Contents, source: Path, *, normalize: bool, dtype: str | None
) -> tuple[Outgoing, tuple[str, ...]]:
    """What is to be written, and what is to be said about it."""
    outgoing = from_contents(contents, source.stem)
    notes: tuple[str, ...] = ()
    if normalize:
        reason = why_not(contents.architecture)
        if reason is None:
            outgoing = normalized(outgoing, contents)
        else:
            notes = (f"not normalized: {reason}",)
    return (_cast(outgoing, dtype, contents.label) if dtype else outgoing), notes


def _kept_otherwise(contents: Contents) -> tuple[str, ...]:
    """Say what becomes another kind in every file that hnloader writes."""
    keys = [key for key, value in contents.metadata.items() if _holds_parameters(value)]
    told = [f"the torch ParameterDict in {shown(key)} becomes an OrderedDict of tensors" for key in keys]
    if contents.ordered is None:
        told.append("some of its state dicts are OrderedDicts and others are not: all become dicts")
    return tuple(told)


def _holds_parameters(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value, Parameters) or any(map(_holds_parameters, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_parameters, value))


def _cast(outgoing: Outgoing, dtype: str, label: str) -> Outgoing:
    sides = {
        (width, side): {
            name: _cast_tensor(tensor, dtype, f"{label}: {name} of the {side} side of width {width}")
            for name, tensor in tensors.items()
        }
        for (width, side), tensors in outgoing.sides.items()
    }
    return replace(outgoing, sides=sides)


def _cast_tensor(tensor: Lazy, dtype: str, where: str) -> Lazy:
    def get() -> torch.Tensor:
        full = tensor.get()
        small: torch.Tensor = full.to(getattr(torch, dtype))
        if not torch.isfinite(small).all():
            largest = float(full.float().abs().max())
            raise HypernetworkError(f"{where} has the value {largest:g}, which {dtype} cannot hold; take bfloat16")
        return small

    return Lazy(tensor.shape, dtype, get)


def _stated(source: Path, normalize: bool, dtype: str | None) -> dict[str, str]:
    """What a safetensors file says of its source. The date is that of the source: conversion makes nothing new."""
    changed = datetime.fromtimestamp(source.stat().st_mtime, tz=timezone.utc)
    stated = {
        _SOURCE_NAME: well_formed(source.name),
        _DATE: changed.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    stated |= {_NORMALISED: "true"} if normalize else {}
    return stated | ({_DTYPE: dtype} if dtype else {})


def _origin(notes: Mapping[str, str]) -> Origin:
    return Origin(notes.get(_SOURCE_HASH), notes.get(_SOURCE_NAME), notes.get(_NORMALISED) == "true", notes.get(_DTYPE))


def _verified(expected: Outgoing, temporary: Path, target: Path) -> tuple[str, ...]:
    with open_source(temporary) as source:
        return verify_equal(expected, read_contents(source), target)


# -- looking before


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise HypernetworkError(f"there is no dtype {name!r} to convert to; {', '.join(DTYPES)} were expected")
    return name


def _check_target(source: Path, target: Path) -> None:
    if same_file(target, source):
        raise HypernetworkError(f"{target} is the source itself; write the result elsewhere")
    if os.path.isdir(target):  # noqa: PTH112 - Path.is_dir raises for paths that are too long
        raise HypernetworkError(f"{target} is a folder; name a file")


@contextlib.contextmanager
def _opened(path: Path, *, checksums: bool = True) -> Iterator[Contents]:
    with open_source(path, checksums=checksums) as source:
        found = format_of(source)
        if found is not None and found.read_composition is not None:
            raise OtherModelError(
                f"{path} is a composition of several hypernetworks, and a file holds one; "
                "'hnloader merge' makes one of it"
            )
        yield read_contents(source)


def _infos(contents: Contents) -> list[Lazy]:
    return [Lazy(info.shape, info.dtype, torch.empty) for side in contents.sides.values() for info in side.values()]


def _shown_dtype(contents: Contents, found: Contents) -> str | None:
    """The dtype to which all tensors seem to have been cast; None when they are as they were."""
    before, after = ({info.dtype for info in _infos(each)} for each in (contents, found))
    return after.pop() if len(after) == 1 and before != after else None


# -- hashing


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise HypernetworkError(f"{path} cannot be read: {error.strerror or error}") from error


class _Hash:
    """sha256 of a file, taken in a thread of its own while the header is looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcome: str | HypernetworkError = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Hash:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._outcome = _sha256(self._path)
        except HypernetworkError as error:
            self._outcome = error

    def result(self) -> str:
        """The hash in hex; waits for it. Raises HypernetworkError where the file cannot be read."""
        self._thread.join()
        if isinstance(self._outcome, HypernetworkError):
            raise self._outcome
        return self._outcome
