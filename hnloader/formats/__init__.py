"""Reading and writing hypernetwork files, one module per format.

A weight format has `detect(source)`, `read(source) -> Contents` and `write(hypernetwork, path)`. To add one,
add a module and name it in `WEIGHT_FORMATS`; to add something that composes others, see `hns`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError
from hnloader.files import expanded, replacing
from hnloader.formats import hns, safetensors, webui
from hnloader.formats.contents import Contents
from hnloader.formats.identify import kind_of_bytes
from hnloader.formats.readings import Place, check_pickle
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
        """Write it to exactly this path; raises OSError where it cannot be written."""


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
    trace = check_pickle(source, Place(0, source.size))
    if trace.ending == "limit":
        raise CorruptFileError(
            f"{source.label}: a pickle with more opcodes or bytes than are read; nothing is known of it"
        )
    if trace.ending == "damage" and (trace.is_certain or trace.names):
        raise CorruptFileError(
            f"{source.label}: its pickle is damaged at byte {trace.end:,}. Copy or download it again."
        )
    if trace.ending == "stop":
        raise UnknownFormatError(
            f"{source.label} is a pickle without tensors, not written by torch.save; not a hypernetwork"
        )


def save(
    hypernetwork: Hypernetwork,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    sources: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Save losslessly: `.safetensors`, or `.pt` as AUTOMATIC1111's webui writes it, by the path's ending.

    The file is written beside its place and renamed, so that no half-written one is ever seen.

    Args:
        hypernetwork: What to save.
        path: Where.
        overwrite: Replace what stands there; False raises an error instead.
        sources: The files that it was made of. Who cannot read them cannot read the new file.

    Raises:
        ExistingFileError: The file exists and is to stay.
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
    with replacing(target, overwrite=overwrite, sources=sources) as temporary:
        writers[suffix].write(hypernetwork, temporary)
