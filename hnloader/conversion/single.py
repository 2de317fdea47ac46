"""Convert one file between `.pt` and `.safetensors`, losslessly, and verify it before it takes its name."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from hnloader.conversion.bulk import OnExisting
from hnloader.conversion.companions import State, companion_of, opened_state
from hnloader.conversion.planning import numbered
from hnloader.conversion.preparing import SOURCE_HASH, dtype_name, hash_of, opened, origin_notes, prepared
from hnloader.conversion.verification import verify_equal
from hnloader.errors import ExistingFileError, HypernetworkError
from hnloader.files import check_free, expanded, replacing_together, same_file
from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Outgoing
from hnloader.formats.pickles import Parameters
from hnloader.formats.reading import read_contents
from hnloader.formats.registry import format_to_write
from hnloader.formats.source import open_source, unchanged
from hnloader.texts import shown

__all__ = ["Converted", "convert", "is_free"]


@dataclass(frozen=True)
class Converted:
    """The result of `hnloader.convert`.

    Attributes:
        source: The file that was read.
        target: The file that was written, or that exists if the source was skipped.
        action: "converted", or "skipped" because `target` or the `.optim` beside it exists.
        lossless: Every tensor and every metadata key equals that of the source.
        verified: The parts that were compared with the source: ("tensors", "metadata", "outputs"), or ().
        notes: Further remarks.
        source_sha256: sha256 of the source in hex; None if skipped, and for a `.pt` that was not verified.

    Example:
        >>> import hnloader.demo, tempfile
        >>> source = hnloader.demo.hypernetwork_paths()["outline"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = hnloader.convert(source, f"{folder}/outline.safetensors", dtype="float32")
        >>> done.action, done.lossless
        ('converted', False)
    """

    source: Path
    target: Path
    action: Literal["converted", "skipped"]
    lossless: bool
    verified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source_sha256: str | None = None


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    normalize: bool = False,
    dtype: torch.dtype | str | None = None,
    verify: bool = True,
    on_existing: OnExisting = "overwrite",
) -> Converted:
    """Convert one hypernetwork file to `.safetensors` or `.pt`, by the suffix of `target`.

    Tensors are read and written one at a time. A `.pt.optim` beside the source is written beside the target.

    Args:
        source: A `.pt` or `.safetensors` file. It stays unchanged.
        target: The file to write. It appears under its name when it is complete and verified.
        normalize: Rewrite old variants in the current form, with the same outputs. Default: False.
        dtype: Cast the tensors to float32, float16 or bfloat16. Default: None, which keeps them bit for bit.
        verify: Read the result back and compare it with the source. False skips all that takes time: the checksums of
            zip archives, waiting for the disk, ModelSpec's hash of the data, and for a `.pt` the sha256 of the source.
            A safetensors file states the sha256 of its source in any case. Default: True.
        on_existing: What to do if `target` or the `.optim` beside it exists: "overwrite" replaces both, "skip" leaves
            both, "rename" adds a number to the new names. Default: "overwrite".

    Returns:
        The result.

    Raises:
        HypernetworkError: The source cannot be read or is something else, the target cannot be written or is the
            source itself, or the verification failed. No file is left behind.

    Example:
        >>> import hnloader.demo, tempfile
        >>> source = hnloader.demo.hypernetwork_paths()["outline"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hnloader.convert(source, f"{folder}/outline.safetensors").verified
        ('tensors', 'metadata', 'outputs')
    """
    given, wanted = expanded(source), expanded(target)
    format_to_write(wanted)
    cast_to = dtype_name(dtype)
    _check_target(given, wanted)
    state_file = companion_of(given) if companion_of(given).is_file() else None
    if on_existing == "rename":
        wanted = next(path for path in itertools.chain([wanted], numbered(wanted)) if is_free(path, state_file))
    elif on_existing == "skip" and os.path.lexists(wanted):
        return Converted(given, wanted, "skipped", lossless=True)
    overwrite = on_existing == "overwrite"
    try:
        return _convert(given, wanted, state_file, normalize, cast_to, verify, overwrite)
    except ExistingFileError as error:
        if on_existing != "skip":
            raise
        return Converted(given, wanted, "skipped", lossless=True, notes=(str(error),))


def is_free(target: Path, state_file: Path | None) -> bool:
    """Return True if nothing exists under the names of a file and, if given, of its optimizer's state."""
    return not os.path.lexists(target) and not (state_file and os.path.lexists(companion_of(target)))


def _convert(
    given: Path,
    wanted: Path,
    state_file: Path | None,
    normalize: bool,
    dtype: str | None,
    verify: bool,
    overwrite: bool,
) -> Converted:
    file_format = format_to_write(wanted)
    assert file_format.write is not None
    needs_hash = verify or file_format.keeps_notes or state_file is not None
    hashing = _hashing(given) if needs_hash else contextlib.nullcontext()
    with opened(given, checksums=verify) as contents, hashing as source_hash, contextlib.ExitStack() as stack:
        outgoing, notes = prepared(contents, given, normalize=normalize, dtype=dtype)
        changed = dtype is not None and any(
            info.dtype != dtype for side in contents.sides.values() for info in side.values()
        )
        state = stack.enter_context(opened_state(state_file, source_hash)) if state_file and source_hash else None
        written: dict[Path, list[Path]] = {}
        beside = companion_of(wanted)
        if isinstance(state, State) and state_file and (overwrite or not os.path.lexists(beside)):
            written[beside] = [state_file]  # first, so that a file that exists has its state
        written[wanted] = [given]
        with replacing_together(written, flush=verify, overwrite=overwrite) as (*states, temporary), unchanged(given):
            hashes = {SOURCE_HASH: source_hash} if source_hash else {}
            stated = origin_notes(given, normalize, dtype)
            file_format.write(replace(outgoing, notes=stated, hashes=hashes, data_hash=verify), temporary)
            sha256 = source_hash() if source_hash else None
            verified = _verified(outgoing, temporary, wanted) if verify else ()
            if isinstance(state, State):
                new_sha256 = hash_of(temporary)
                if states:
                    state.write(states[0], new_sha256)
                elif not state.is_written(beside, new_sha256):  # by a run that was killed before the file's turn
                    check_free(beside)
                notes += (state.described(beside),)
            elif state is not None:
                notes += (state,)
            stack.close()  # checks what was read before anything takes its name
    losses = _losses(contents)
    notes += losses + file_format.changes(contents)
    if changed:
        notes += (f"the tensors are rounded to {dtype}: this is not lossless",)
    lossless = not changed and not normalize and not losses
    return Converted(given, wanted, "converted", lossless, verified, notes, sha256)


def _losses(contents: Contents) -> tuple[str, ...]:
    """Return notes about objects that become another kind in every file that hnloader writes."""
    keys = [key for key, value in contents.metadata.items() if _holds_parameters(value)]
    notes = [f"the torch ParameterDict in {shown(key)} becomes an OrderedDict of tensors" for key in keys]
    if contents.ordered is None:
        notes.append("some of its state dicts are OrderedDicts and others are not: all become dicts")
    return tuple(notes)


def _holds_parameters(value: object) -> bool:
    if isinstance(value, dict):
        return isinstance(value, Parameters) or any(map(_holds_parameters, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_parameters, value))


def _verified(expected: Outgoing, temporary: Path, target: Path) -> tuple[str, ...]:
    with open_source(temporary) as source:
        return verify_equal(expected, read_contents(source), target)


def _check_target(source: Path, target: Path) -> None:
    if same_file(target, source):
        raise HypernetworkError(f"{target}: this is the source itself. Write the result elsewhere.")
    if os.path.isdir(target):  # noqa: PTH112 - Path.is_dir raises for paths that are too long
        raise HypernetworkError(f"{target}: this is a folder. Name a file.")


@contextlib.contextmanager
def _hashing(path: Path) -> Iterator[Callable[[], str]]:
    """Take the sha256 of a file in a thread; yield a function that waits for it."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(hash_of, path).result
