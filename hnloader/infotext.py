"""The generation parameters that the webuis write into pictures, as text and in PNG files.

The text is the prompt, the negative prompt, and one line of settings:

    a red circle <hypernet:ink:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Version: hnloader 0.1.0

In a PNG file it stands in the text chunk `parameters`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.files import replacing
from hnloader.texts import well_formed

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "parameters"

_NEGATIVE = "Negative prompt:"
# A key is a word of two or more characters before a colon; a value is a JSON string or runs to the next comma.
_KEY_CHARACTERS = re.compile(r"[\w \-/]+")
_KEY_START = re.compile(r"\w")
_VALUE = re.compile(r'\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_KEY = re.compile(r"\w[\w \-/]+")
# Fewer settings than this in the last line, and the webuis take it for a part of the prompt.
_FEWEST_SETTINGS = 3


@dataclass(frozen=True)
class Infotext:
    """A picture's prompt, negative prompt and settings (in their order; keys and values are text)."""

    prompt: str = ""
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text for the `parameters` chunk. Raises ValueError for a key that the webuis could not read.

        Two things cannot be expressed, as in the webuis: spaces at the ends of the prompts' lines, and a line
        of a prompt that starts with `Negative prompt:`. With fewer than three settings nothing reads them.
        """
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"{_NEGATIVE} {self.negative_prompt}")
        lines.append(", ".join(f"{_checked(key)}: {_quoted(value)}" for key, value in self.settings.items()))
        return "\n".join(lines)


def parse(text: str) -> Infotext:
    """Read a picture's parameters. Any text is accepted: what is no setting is prompt."""
    *lines, last = text.strip().split("\n")
    found = _settings(last)
    if len(found) < _FEWEST_SETTINGS:
        lines.append(last)
        found = []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part = negative
            part.append(line[len(_NEGATIVE) :].strip())
        else:
            part.append(line)
    settings = {key: _unquoted(value) for key, value in found}
    return Infotext("\n".join(prompt), "\n".join(negative), settings)


def _settings(line: str) -> list[tuple[str, str]]:
    """Keys and values in a line.

    Every character is looked at once: pictures of strangers hold lines of a megabyte that are made to take hours.
    """
    found = []
    at = 0
    while (run := _KEY_CHARACTERS.search(line, at)) is not None:
        at = run.end()
        start = _KEY_START.search(line, run.start(), at)
        if start is None or at - start.start() < 2 or line[at : at + 1] != ":":
            continue
        value = _VALUE.match(line, at + 1)
        assert value is not None
        found.append((line[start.start() : at], value[1]))
        at = value.end()
    return found


def save_png(image: Image, path: str | os.PathLike[str], infotext: Infotext) -> None:
    """Write a PNG file with its parameters. It appears under its name when it is complete.

    Raises HypernetworkError where the folder is missing or not writable, or the disk is full.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    # NUL ends a text chunk; everything else survives (as iTXt where Latin-1 does not have it).
    chunks.add_text(CHUNK, well_formed(str(infotext)).replace("\x00", ""))
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)


def read_png(path: str | os.PathLike[str]) -> Infotext | None:
    """The parameters in a picture, or None where it has none. Raises OSError for what is not a picture."""
    from PIL import Image

    with Image.open(Path(path)) as image:
        image.load()  # the chunk may stand after the pixels
        text = image.info.get(CHUNK)
    return parse(text) if isinstance(text, str) else None


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} cannot be a key: two or more letters, digits, spaces, '-' or '/'")
    return key


def _quoted(value: str) -> str:
    plain = not any(character in value for character in ',:"\n') and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value
