"""Find the caption of an image: a text file next to it, or the metadata of its folder."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from hnloader.errors import ConfigError, DatasetError
from hnloader.training.config import DataConfig
from hnloader.training.text_files import read_text, reason_of

_log = logging.getLogger(__name__)

MASK_SUFFIX = ".mask.png"
_CAPTION_SUFFIXES = (".txt", ".caption")
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "captions.json")
_MAX_CAPTION = 10_000

# Takes the path of a file and a sentence about it.
Warn = Callable[[Path, str], None]


class CaptionFiles:
    """The caption files of a folder of images.

    Args:
        folder: The folder.
        config: Its `captions` names the source.

    Raises:
        ConfigError: The metadata file that `captions` asks for does not exist.
        DatasetError: The metadata file cannot be read.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self._folder, self._kind = folder, config.captions
        self._sidecars: dict[Path, dict[tuple[str, str], Path]] = {}
        self._metadata = _read_metadata(folder, required=self._kind == "metadata") if self._uses("metadata") else {}

    def _uses(self, kind: str) -> bool:
        return self._kind in ("auto", kind)

    def caption(self, image: Path, warn: Warn) -> str | None:
        """Return the caption of an image, None if it has none; report unreadable files to `warn`."""
        if self._kind == "filename":
            return words_of(image.stem)
        found = self._sidecar_caption(image, warn) if self._uses("sidecar") else None
        if found is None:
            # Images that are given one by one can be anywhere.
            name = image.relative_to(self._folder).as_posix() if image.is_relative_to(self._folder) else image.name
            found = self._metadata.get(name, self._metadata.get(image.name))
        if found is None and self._kind in ("sidecar", "metadata"):
            warn(image, f"No caption ({self._kind}). A template is used.")
        return found

    def sidecar(self, image: Path, suffix: str) -> Path | None:
        """Return the file next to an image with its stem and a suffix.

        Cameras write IMG_1.JPG and some programs IMG_1.TXT, so the suffix matches in any case, lower case first.
        """
        exact = image.with_name(image.stem + suffix)
        if exact.is_file():
            return exact
        if image.parent not in self._sidecars:
            self._sidecars[image.parent] = {
                (each.name[: -len(known)], known): each
                for each in _files_in(image.parent)
                for known in (*_CAPTION_SUFFIXES, MASK_SUFFIX)
                if each.name.lower().endswith(known)
            }
        return self._sidecars[image.parent].get((image.stem, suffix))

    def _sidecar_caption(self, image: Path, warn: Warn) -> str | None:
        for suffix in _CAPTION_SUFFIXES:
            path = self.sidecar(image, suffix)
            if path is None:
                continue
            try:
                text = " ".join(read_text(path).split())
            except (OSError, ValueError) as error:
                _log.debug("%s", path, exc_info=True)
                warn(path, f"Cannot be read: {reason_of(error)}")
                continue
            if text:
                return text[:_MAX_CAPTION]
            warn(path, "Empty. A template is used.")
        return None


def words_of(stem: str) -> str:
    """Return the words of a file name, without leading numbers and separators."""
    return " ".join(re.sub(r"[_\-+.]+", " ", re.sub(r"^[\d\s_\-]+(?=\D)", "", stem)).split()) or stem


def _files_in(folder: Path) -> list[Path]:
    """Return the files in a folder by name; none if it cannot be listed."""
    try:
        return sorted(each for each in folder.iterdir() if each.is_file())
    except OSError:
        return []


def _read_metadata(folder: Path, *, required: bool) -> dict[str, str]:
    """Return the captions of the metadata file by the path of the image in the folder."""
    existing = {path.name.lower(): path for path in reversed(_files_in(folder))}
    path = next((existing[name] for name in _METADATA_NAMES if name in existing), None)
    if path is None:
        if required:
            raise ConfigError(
                f"Setting 'data.captions' is 'metadata', but {folder} has no {' or '.join(_METADATA_NAMES)}. Add one."
            )
        return {}
    try:
        return dict(_entries(path))
    except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        raise DatasetError(
            f"{path}: cannot read the captions ({reason_of(error).removesuffix('.')}). "
            "Write entries with file_name and text."
        ) from error


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    text, kind = read_text(path), path.suffix.lower()
    if kind == ".csv":
        for row in csv.DictReader(text.splitlines()):
            if None in row:
                raise ValueError("A line has more values than the header. Put texts with commas in quotes.")
            if row["text"] is not None:
                yield row["file_name"], row["text"]
    elif kind == ".jsonl":
        for line in filter(str.strip, text.splitlines()):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"A line holds a {type(row).__name__}.")
            yield _string(row["file_name"]), _string(row["text"])
    else:
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise TypeError(f'Expected {{"NAME.png": "caption", ...}}, got a {type(entries).__name__}.')
        for name, caption in entries.items():
            yield name, _string(caption)


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"Expected text, got {json.dumps(value)[:80]}.")
