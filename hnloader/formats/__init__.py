"""Reading and writing hypernetwork files, one module per format.

A weight format has `detect(source)`, `read(source) -> Contents` and `write(hypernetwork, path)`. To add one,
add a module and name it in `WEIGHT_FORMATS`; to add something that composes others, see `hns`.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError
from hnloader.files import expanded
from hnloader.formats import hns, safetensors, webui
from hnloader.formats.contents import Contents
from hnloader.formats.identify import kind_of_bytes
from hnloader.formats.pickles import MalformedPickleError, read_pickle
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import FileLike, Source
from hnloader.network import Hypernetwork


class WeightFormat(Protocol):
    """What a module of a weight format offers."""

    SUFFIX: str

    def detect(self, source: Source) -> bool:
        """True when the file may be of this format."""

    def read(self, source: Source) -> Contents:
        """The hypernetwork in it, tensors not read."""

    def write(self, hypernetwork: Hypernetwork, path: Path) -> None:
        """Write it there, atomically."""


WEIGHT_FORMATS: tuple[WeightFormat, ...] = (webui, safetensors)


def load(file: FileLike, folders: Iterable[str | os.PathLike[str]] = ()) -> Hypernetwork:
    """Load a hypernetwork from a `.pt`, `.safetensors` or `.hns` file. Nothing in the file is ever executed.

    Args:
        file: a path, or an open binary file, which is read from its beginning and left open.
        folders: where the members of a `.hns` file are looked for, after the folder that it lies in.

    Returns:
        It in eval mode, on the CPU, with parameters in the stored dtype and without gradients.

    Raises:
        UnsafeFileError: a pickle that names or calls something that no hypernetwork needs.
        OtherModelError: a model of another kind; the message says which and what to do with it.
        UnknownFormatError: something else, a web page for one; the message says what it is. The base of the former.
        CorruptFileError: damaged, cut off, or with values that are not finite.
        UnsupportedArchitectureError: metadata and tensors contradict each other; the message says which.
        HypernetworkError: the file, or a member of a composition, cannot be opened.
    """
    reader: hns.Reader[Hypernetwork] = hns.Reader(
        folders,
        lambda source, file: read_contents(source).hypernetwork(source.stem),
        lambda source, file, structure, text, members: hns.composed(source, structure, text, members),
    )
    return reader.read(file)


def read_contents(source: Source) -> Contents:
    """The hypernetwork in an opened weight file, tensors not read; raises what `load` raises."""
    for weight_format in WEIGHT_FORMATS:
        if weight_format.detect(source):
            return weight_format.read(source)
    _refuse_bare_pickle(source)
    raise UnknownFormatError(f"{source.label} is {kind_of_bytes(source.head)}")


def _refuse_bare_pickle(source: Source) -> None:
    """A pickle that torch.save did not write has no tensors, but may well hold code."""
    try:
        pickle = read_pickle(source.read(0, min(source.size, 1 << 20)))
    except MalformedPickleError as error:
        # Any text can be read as some opcodes of protocol 0; a module that exists is what tells a pickle.
        named = [refusal for refusal in error.refused if refusal.name.split(".")[0] in sys.stdlib_module_names]
        check_refusals(named, source.label, inert_allowed=True)
        if source.head.startswith(b"\x80"):
            raise CorruptFileError(
                f"{source.label}: its pickle is damaged: {error}. Copy or download it again."
            ) from error
        return
    check_refusals(pickle.refused, source.label, inert_allowed=False)
    raise UnknownFormatError(
        f"{source.label} is a pickle without tensors, not written by torch.save; not a hypernetwork"
    )


def save(hypernetwork: Hypernetwork, path: str | os.PathLike[str]) -> None:
    """Save losslessly: `.safetensors`, or `.pt` as AUTOMATIC1111's webui writes it, by the path's ending.

    The file is written beside its place and renamed, so that no half-written one is ever seen.

    Raises:
        UnknownFormatError: the ending is another one.
        UnsupportedArchitectureError: a composition, which neither format can hold.
        HypernetworkError: the file cannot be written.
    """
    target = expanded(path)
    writers = {weight_format.SUFFIX: weight_format for weight_format in WEIGHT_FORMATS}
    suffix = target.suffix.lower()
    if suffix not in writers:
        near = difflib.get_close_matches(suffix, writers, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UnknownFormatError(f"{target} ends in {suffix!r}; {' or '.join(writers)} was expected.{hint}")
    if target.is_dir():
        raise HypernetworkError(f"{target} is a folder; name a file")
    writers[suffix].write(hypernetwork, target)
