"""Load hypernetworks from files and save them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hnloader.errors import HypernetworkError
from hnloader.files import expanded, replacing
from hnloader.formats.composition import build_composition
from hnloader.formats.outgoing import from_hypernetwork
from hnloader.formats.reading import Reader, read_contents
from hnloader.formats.registry import format_to_write
from hnloader.formats.source import FileLike
from hnloader.network import Hypernetwork

__all__ = ["load", "save"]


def load(file: FileLike, folders: Iterable[str | os.PathLike[str]] = ()) -> Hypernetwork:
    """Load a hypernetwork from a `.pt`, `.safetensors` or `.hns` file. Nothing in the file is ever executed.

    Args:
        file: Path, or an open binary file, which is read from its beginning and left open.
        folders: Folders to search for the members of a composition after the composition's own folder.

    Returns:
        The hypernetwork in eval mode on the CPU. Its parameters have the stored dtype and take no gradients.

    Raises:
        UnsafeFileError: A pickle names or calls something that no hypernetwork needs.
        OtherModelError: The file is a model of another kind. The message says which one and what to do with it.
        UnknownFormatError: The file is something else, such as a web page. The message says what.
        CorruptFileError: The file is damaged or cut off, or holds values that are not finite.
        UnsupportedArchitectureError: Metadata and tensors contradict each other. The message names both.
        HypernetworkNotFoundError: No searched folder holds a member of the composition.
        HypernetworkError: The file, or a member of a composition, cannot be opened.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths
        >>> hn = hnloader.load(hypernetwork_paths()["outline"])
        >>> hn.name, hn.variant
        ('outline', 'A1111 webui, from 2022-11')
    """
    reader: Reader[Hypernetwork] = Reader(
        folders,
        lambda source, file: read_contents(source).hypernetwork(source.stem),
        lambda source, file, composition, members: build_composition(source, composition, members),
    )
    return reader.read(file)


def save(
    hypernetwork: Hypernetwork,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    sources: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Save a hypernetwork without loss: as `.safetensors`, or as `.pt` in the form of AUTOMATIC1111's webui.

    The file is written under a temporary name and renamed when it is complete.

    Args:
        hypernetwork: Hypernetwork to save.
        path: File to write. Its ending chooses the format.
        overwrite: Replace an existing file. False raises an error instead. Default: True.
        sources: Files that the hypernetwork was made from. Users who cannot read them cannot read the new file.

    Raises:
        ExistingFileError: The file exists and `overwrite` is False.
        UnknownFormatError: No format that is written has this ending.
        UnsupportedArchitectureError: The hypernetwork is a composition, or its metadata cannot be stored.
        HypernetworkError: The file cannot be written.

    Example:
        >>> import hnloader, tempfile, pathlib
        >>> hn = hnloader.Hypernetwork.new((8,), hnloader.Architecture(activation="relu"), name="small")
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> hnloader.save(hn, file)
        >>> str(hnloader.load(file).architecture)
        '1-2-1, relu'
    """
    target = expanded(path)
    file_format = format_to_write(target)
    if target.is_dir():
        raise HypernetworkError(f"{target} is a folder. Name a file.")
    with replacing(target, overwrite=overwrite, sources=sources) as temporary:
        assert file_format.write is not None
        file_format.write(from_hypernetwork(hypernetwork, file_format.suffix), temporary)
