"""The preview picture and the notes that lie beside a hypernetwork file.

Both lie where the webuis keep theirs and are shared with them: for `ink.pt` the picture is `ink.png` or
`ink.preview.png` (also jpg, jpeg, webp, gif), and the notes are the key `notes` of `ink.json`, whose other keys
(`description`, ...) are kept.
"""

from __future__ import annotations

import contextlib
import io
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif")
# What a notes file of people is at most; a larger file is something else.
_LARGEST_NOTES = 2**20
_LARGEST_PREVIEW = 50 * 2**20
_LONGEST_TEXT = 100_000


def preview_path(path: Path) -> Path | None:
    """The picture that belongs to a hypernetwork file, or None."""
    for suffix in _SUFFIXES:
        for name in (f"{path.stem}.{suffix}", f"{path.stem}.preview.{suffix}"):
            candidate = path.with_name(name)
            if candidate.is_file():
                return candidate
    return None


def save_preview(path: Path, image: Image) -> Path:
    """Save a picture as the preview of a hypernetwork file, in the place of the one that it has.

    Raises HypernetworkError where the folder is not writable or the disk is full.
    """
    # The name that `preview_path` finds first, unless the user keeps a picture of that name: then that one.
    plain = path.with_name(f"{path.stem}.png")
    target = plain if plain.is_file() else path.with_name(f"{path.stem}.preview.png")
    with replacing(target) as temporary:
        image.convert("RGB").save(temporary, format="PNG")
    return target


def thumbnail(path: Path, side: int = 320) -> bytes | None:
    """The preview as a JPEG of at most `side` pixels a side; None without one, or for one that is no picture."""
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
    from PIL import Image

    try:
        with Image.open(preview) as image:
            image.draft("RGB", (side, side))
            small = image.convert("RGB")
            small.thumbnail((side, side))
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=85)
            return buffer.getvalue()
    except Exception:  # a damaged or hostile picture: Pillow's decoders raise what they like
        return None


def notes_path(path: Path) -> Path:
    """Where the notes of a hypernetwork file are kept."""
    return path.with_suffix(".json")


def read_notes(path: Path) -> str:
    """The notes on a hypernetwork file; "" where there are none or the JSON file is something else."""
    notes = _read(notes_path(path)).get("notes")
    return notes if isinstance(notes, str) else ""


def read_description(path: Path) -> str:
    """The description that a webui keeps in the same JSON file."""
    text = _read(notes_path(path)).get("description")
    return text if isinstance(text, str) else ""


def save_notes(path: Path, notes: str) -> Path:
    """Save notes on a hypernetwork file and keep what else its JSON file holds.

    Raises HypernetworkError where that file is no JSON object (it is somebody else's) or cannot be read, the text
    is longer than 100,000 characters, the folder is not writable or the disk is full.
    """
    if len(notes) > _LONGEST_TEXT:
        raise HypernetworkError(f"notes have at most {_LONGEST_TEXT:,} characters; these have {len(notes):,}")
    target = notes_path(path)
    values = _read(target)
    if not values and _is_something_else(target):
        raise HypernetworkError(f"{target} is no JSON object; notes would overwrite it. Rename that file.")
    with replacing(target) as temporary:
        text = json.dumps({**values, "notes": notes}, ensure_ascii=False, indent=4)
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return target


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_NOTES:
            return {}
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_something_else(path: Path) -> bool:
    """Whether a file stands there that is neither empty nor an empty JSON object; raises HypernetworkError."""
    try:
        content = path.read_bytes()[:_LARGEST_NOTES].decode("utf-8-sig", errors="replace").strip()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HypernetworkError(f"{path} cannot be read, and would be lost: {error.strerror or error}") from error
    return bool(content) and "".join(content.split()) != "{}"
