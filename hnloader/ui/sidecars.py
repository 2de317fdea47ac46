"""The preview image and the notes that lie beside a hypernetwork file.

Both lie where the webuis keep theirs and are shared with them: for `ink.pt` the image is `ink.png` or
`ink.preview.png` (also jpg, jpeg, webp, gif), and `ink.json` holds `notes`, `description` and `preferred weight` (the
strength); its other keys are kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.files import open_regular, read_regular, replacing
from hnloader.images import read_image

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif")
# What a notes file of people is at most; a larger file is something else.
_LARGEST_NOTES = 2**20
_LARGEST_PREVIEW = 50 * 2**20
_LONGEST_TEXT = 100_000
NOTES, DESCRIPTION, STRENGTH = "notes", "description", "preferred weight"


def preview_path(path: Path, exists: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """The image that belongs to a hypernetwork file, or None; `exists` is asked about each possible one."""
    for suffix in _SUFFIXES:
        for name in (f"{path.stem}.{suffix}", f"{path.stem}.preview.{suffix}"):
            candidate = path.with_name(name)
            if exists(candidate):
                return candidate
    return None


def save_preview(path: Path, image: Image) -> Path:
    """Save an image as the preview of a hypernetwork file, in the place of the one that it has.

    Raises HypernetworkError where the folder is not writable or the disk is full.
    """
    # The name that `preview_path` finds first, unless the user keeps an image of that name: then that one.
    plain = path.with_name(f"{path.stem}.png")
    target = plain if plain.is_file() else path.with_name(f"{path.stem}.preview.png")
    with replacing(target) as temporary:
        image.convert("RGB").save(temporary, format="PNG")
    return target


def thumbnail(path: Path, side: int = 320) -> bytes | None:
    """The preview as a JPEG of at most `side` pixels a side; None without one, or for one that is no image."""
    preview = preview_path(path)
    if preview is None:
        return None
    with contextlib.suppress(OSError):
        status = preview.stat()
        if status.st_size <= _LARGEST_PREVIEW:
            return _thumbnail(preview, status.st_mtime_ns, status.st_size, side)
    return None


@lru_cache(maxsize=512)
def _thumbnail(preview: Path, modified: int, size: int, side: int) -> bytes | None:
    try:
        small = read_image(preview, shortest=side).image
    except HypernetworkError:  # a damaged, hostile or too large image
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def notes_path(path: Path) -> Path:
    """Where the notes of a hypernetwork file are kept."""
    return path.with_suffix(".json")


def read_values(path: Path) -> dict[str, Any]:
    """All that the JSON file of a hypernetwork file holds; empty where there is none or it is something else."""
    return _read(notes_path(path))


def read_notes(path: Path) -> str:
    """The notes on a hypernetwork file; "" where there are none or the JSON file is something else."""
    return text_in(read_values(path), NOTES)


def read_description(path: Path) -> str:
    """The description that a webui keeps in the same JSON file."""
    return text_in(read_values(path), DESCRIPTION)


def description_beside(path: Path) -> str:
    """Return the description in a text file beside it, `ink.txt` or `ink.description.txt`, as the webuis read it."""
    for name in (f"{path.stem}.txt", f"{path.stem}.description.txt"):
        with contextlib.suppress(OSError):
            return read_regular(path.with_name(name), _LARGEST_NOTES).decode("utf-8-sig", errors="replace")
    return ""


def text_in(values: dict[str, Any], key: str) -> str:
    """A text among the values of `read_values`, "" where there is none."""
    text = values.get(key)
    return text if isinstance(text, str) else ""


def strength_in(values: dict[str, Any]) -> float | None:
    """The preferred strength among the values of `read_values`; None where there is none (the webuis write 0)."""
    strength = values.get(STRENGTH)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not strength:
        return None
    try:
        return float(strength) if math.isfinite(strength) else None
    except OverflowError:
        return None


def save_notes(path: Path, notes: str) -> Path:
    """See `save_values`."""
    return save_values(path, {NOTES: notes})


def save_values(path: Path, changes: dict[str, Any]) -> Path:
    """Change values in the JSON file of a hypernetwork file and keep what else it holds.

    Raises HypernetworkError where that file is no JSON object (it is somebody else's) or cannot be read, a text
    is longer than 100,000 characters, the folder is not writable or the disk is full.
    """
    for key, text in changes.items():
        if isinstance(text, str) and len(text) > _LONGEST_TEXT:
            raise HypernetworkError(f"{key}: {len(text):,} characters are too many, at most {_LONGEST_TEXT:,} are kept")
    target = notes_path(path)
    values = _read(target)
    if not values and _is_something_else(target):
        raise HypernetworkError(f"{target} is no JSON object; notes would overwrite it. Rename that file.")
    with replacing(target) as temporary:
        text = json.dumps({**values, **changes}, ensure_ascii=False, indent=4)
        # Lone surrogates become the escapes that JSON has for them, and stay what they are.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    return target


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, _LARGEST_NOTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_something_else(path: Path) -> bool:
    """Whether a file stands there that is neither empty nor an empty JSON object; raises HypernetworkError."""
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_NOTES).decode("utf-8-sig", errors="replace").strip()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HypernetworkError(f"{path} cannot be read, and would be lost: {error.strerror or error}") from error
    return bool(content) and "".join(content.split()) != "{}"
