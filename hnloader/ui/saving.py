"""Saving images under numbered names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import ExistingFileError, HypernetworkError
from hnloader.files import replacing
from hnloader.infotext import CHUNK
from hnloader.texts import well_formed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["next_number", "save_numbered"]


def save_numbered(image: Image, folder: Path, prefix: str, seed: int, infotext: str) -> Path:
    """Save an image as the next `PREFIX00001-SEED.png` of a folder, with its parameters if it has any.

    Raises:
        HypernetworkError: The folder is not writable.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if infotext:
        chunks.add_text(CHUNK, well_formed(infotext).replace("\x00", ""))
    number = next_number(folder, prefix)
    while True:
        path = folder / f"{prefix}{number:05d}-{seed}.png"
        try:
            with replacing(path, overwrite=False) as temporary:
                image.save(temporary, format="PNG", pnginfo=chunks)
            return path
        except ExistingFileError:  # another program took the number meanwhile
            number += 1


def next_number(folder: Path, prefix: str) -> int:
    """Return the number after the highest one in a folder, which is created when missing.

    Raises:
        HypernetworkError: The folder cannot be created or read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [re.fullmatch(rf"{re.escape(prefix)}(\d{{5,}})-.*", path.stem) for path in folder.glob("*.png")]
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise HypernetworkError(f"{folder}: cannot write to the folder ({reason}). Choose another.") from error
    return max((int(match[1]) for match in found if match), default=0) + 1
