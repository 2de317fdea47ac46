"""The preview image and the notes beside a hypernetwork file, shared with the webuis.

For `ink.pt` the image is `ink.png` or `ink.preview.png` (also jpg, jpeg, webp, gif). `ink.json` holds `notes`,
`description` and `preferred weight` (the strength); its other keys are kept.
"""

from __future__ import annotations

import base64
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

__all__ = [
    "DESCRIPTION",
    "NOTES",
    "STRENGTH",
    "description_beside",
    "notes_path",
    "preview_path",
    "read_description",
    "read_notes",
    "read_values",
    "save_notes",
    "save_preview",
    "save_values",
    "strength_in",
    "text_in",
    "thumbnail",
    "thumbnail_url",
]

_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif")
# A larger file than people write is something else.
_LARGEST_NOTES = 2**20
_LARGEST_PREVIEW = 50 * 2**20
_LONGEST_TEXT = 100_000
NOTES, DESCRIPTION, STRENGTH = "notes", "description", "preferred weight"


def preview_path(path: Path, exists: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """Return the preview image of a hypernetwork file, or None; `exists` checks each candidate."""
    names = (name for suffix in _SUFFIXES for name in (f"{path.stem}.{suffix}", f"{path.stem}.preview.{suffix}"))
    return next((path.with_name(name) for name in names if exists(path.with_name(name))), None)


def save_preview(path: Path, image: Image) -> Path:
    """Save the preview of a hypernetwork file, replacing the current one.

    Raises:
        HypernetworkError: The folder is not writable or the disk is full.
    """
    # `ink.png` may be the user's own image; replace it only because `preview_path` would find it first.
    plain = path.with_name(f"{path.stem}.png")
    target = plain if plain.is_file() else path.with_name(f"{path.stem}.preview.png")
    with replacing(target) as temporary:
        image.convert("RGB").save(temporary, format="PNG")
    return target


def thumbnail(path: Path, side: int = 320) -> bytes | None:
    """Return the preview as a JPEG of at most `side` pixels a side, or None without a readable one."""
    preview = preview_path(path)
    if preview is None:
        return None
    with contextlib.suppress(OSError):
        status = preview.stat()
        if status.st_size <= _LARGEST_PREVIEW:
            return _thumbnail(preview, status.st_mtime_ns, status.st_size, side)
    return None


def thumbnail_url(path: Path, side: int = 320) -> str:
    """Return the thumbnail as a data URL, so that the server needs to serve no files; "" without one."""
    small = thumbnail(path, side)
    return "" if small is None else f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"


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
    """Return the JSON file with the notes of a hypernetwork file."""
    return path.with_suffix(".json")


def read_values(path: Path) -> dict[str, Any]:
    """Return the contents of a hypernetwork file's JSON file, empty if it is missing or something else."""
    return _read(notes_path(path))


def read_notes(path: Path) -> str:
    """Return the notes on a hypernetwork file, "" without any."""
    return text_in(read_values(path), NOTES)


def read_description(path: Path) -> str:
    """Return the description that a webui keeps in the same JSON file, "" without one."""
    return text_in(read_values(path), DESCRIPTION)


def description_beside(path: Path) -> str:
    """Return the description in `ink.txt` or `ink.description.txt`, as the webuis read it, "" without one."""
    for name in (f"{path.stem}.txt", f"{path.stem}.description.txt"):
        with contextlib.suppress(OSError):
            return read_regular(path.with_name(name), _LARGEST_NOTES).decode("utf-8-sig", errors="replace")
    return ""


def text_in(values: dict[str, Any], key: str) -> str:
    """Return a text among the values of `read_values`, "" without one."""
    text = values.get(key)
    return text if isinstance(text, str) else ""


def strength_in(values: dict[str, Any]) -> float | None:
    """Return the preferred strength among the values of `read_values`; None for 0, the webuis' default."""
    strength = values.get(STRENGTH)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not strength:
        return None
    try:
        return float(strength) if math.isfinite(strength) else None
    except OverflowError:
        return None


def save_notes(path: Path, notes: str) -> Path:
    """Save the notes on a hypernetwork file. See `save_values`."""
    return save_values(path, {NOTES: notes})


def save_values(path: Path, changes: dict[str, Any]) -> Path:
    """Change values in a hypernetwork file's JSON file; its other keys are kept.

    Raises:
        HypernetworkError: The file is not a JSON object or is not readable, a text has more than 100,000 characters,
            the folder is not writable, or the disk is full.
    """
    for key, text in changes.items():
        if isinstance(text, str) and len(text) > _LONGEST_TEXT:
            raise HypernetworkError(f"{key}: expected at most {_LONGEST_TEXT:,} characters, got {len(text):,}.")
    target = notes_path(path)
    values = _read(target)
    if not values and _is_something_else(target):
        raise HypernetworkError(f"{target}: expected a JSON object. Rename the file; saving notes would overwrite it.")
    with replacing(target) as temporary:
        text = json.dumps({**values, **changes}, ensure_ascii=False, indent=4)
        # Writes lone surrogates as JSON escapes, which keeps them.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    return target


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, _LARGEST_NOTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_something_else(path: Path) -> bool:
    """Return whether a file exists that is neither empty nor an empty JSON object. Raises HypernetworkError."""
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_NOTES).decode("utf-8-sig", errors="replace").strip()
    except FileNotFoundError:
        return False
    except OSError as error:
        reason = error.strerror or error
        raise HypernetworkError(f"{path}: cannot read the file ({reason}). Saving would overwrite it.") from error
    return bool(content) and "".join(content.split()) != "{}"
