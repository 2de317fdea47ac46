"""Read and write the generation parameters that the webuis store in images.

The text is the prompt, the negative prompt, and one line of settings:

    a red circle <hypernet:ink:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Version: hnloader 0.1.0

PNG files hold it in the text chunk `parameters`, JPEG and WebP files in EXIF's user comment.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

from hnloader.errors import PromptTagError
from hnloader.files import replacing
from hnloader.images import read_text
from hnloader.prompt import parse_tag, tag_bodies
from hnloader.texts import shown, well_formed

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = "parameters"
# The hypernetworks that hnloader applied, and those that it could not apply.
HASHES, NOT_APPLIED = "Hypernet hashes", "Hypernet not applied"
# Images of 2022 name one hypernetwork without a tag, some with a hash: `ink(3fa2c1d0)`.
OLD_NAME, OLD_STRENGTH, OLD_HASH = "Hypernet", "Hypernet strength", "Hypernet hash"
# The webuis' list of textual-inversion embeddings.
EMBEDDING_HASHES = "TI hashes"
MOST_USED = 64

_NEGATIVE = "Negative prompt:"
# A key is a word of two or more characters before a colon; a value is a JSON string or runs to the next comma.
_KEY_CHARACTERS = re.compile(r"[\w \-/]+")
_KEY_START = re.compile(r"\w")
_VALUE = re.compile(r'\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_KEY = re.compile(r"\w[\w \-/]+")
# The webuis read a last line with fewer settings as a part of the prompt.
_FEWEST_SETTINGS = 3

_NAME_WITH_HASH = re.compile(r"(.+?)\(([0-9a-f]{8,10})\)", re.DOTALL)
_ENDS_IN_HASH = re.compile(r": ([0-9a-f]{8,64})$")


@dataclass(frozen=True)
class Infotext:
    """The prompt, negative prompt and settings of an image. `str` writes them as the webuis do.

    Args:
        prompt: The prompt.
        negative_prompt: The negative prompt.
        settings: The settings in order. Keys and values are text.
    """

    prompt: str = ""
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the text for the `parameters` chunk, or raise ValueError for a key that the webuis could not read.

        As in the webuis, spaces at the ends of lines and a line that starts with `Negative prompt:` are lost. Programs
        ignore fewer than three settings.
        """
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"{_NEGATIVE} {self.negative_prompt}")
        lines.append(", ".join(f"{_checked(key)}: {_quoted(value)}" for key, value in self.settings.items()))
        return "\n".join(lines)


def parse(text: str) -> Infotext:
    """Read the parameters of an image from any text; everything except settings belongs to the prompt."""
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
    """Return the keys and values in a line.

    It reads every character once, because hostile images hold lines of a megabyte that would take hours otherwise.
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


def save_png(image: Image, path: str | os.PathLike[str], infotext: Infotext, *, overwrite: bool = True) -> None:
    """Write a PNG file with its parameters. It appears under its name when it is complete.

    Raises:
        HypernetworkError: The folder is missing or not writable, or the disk is full.
        ExistingFileError: The file exists and `overwrite` is False.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    # NUL ends a text chunk; Pillow writes everything else, as iTXt if it is not Latin-1.
    chunks.add_text(CHUNK, well_formed(str(infotext)).replace("\x00", ""))
    with replacing(path, overwrite=overwrite) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)


def read_infotext(path: str | os.PathLike[str]) -> Infotext | None:
    """Return the parameters in a PNG, JPEG or WebP image, or None without parameters.

    Raises:
        HypernetworkError: The file cannot be opened, is of another format, or is damaged.
    """
    text = read_text(path, CHUNK)
    return None if text is None else parse(text)


@dataclass(frozen=True)
class Used:
    """A hypernetwork or embedding that an image was made with, according to its text.

    Attributes:
        kind: `hypernetwork` or `embedding`.
        name: Name in the image.
        strength: Strength, None if unknown.
        hash: Hex digits: 8 as in 2022, or the first 10 or more of the file's sha256. Empty if unknown.
    """

    kind: Literal["hypernetwork", "embedding"]
    name: str
    strength: float | None = None
    hash: str = ""


def made_with(about: Infotext) -> list[Used]:
    """Return the hypernetworks and embeddings in an image's tags, lists of hashes, and settings of 2022.

    The result holds at most `MOST_USED` of each kind, because hostile images name many.
    """
    settings = about.settings
    hashes = dict(listed_hashes(settings.get(HASHES, "")))
    missing = {name.strip() for name in settings.get(NOT_APPLIED, "").split(",")} - hashes.keys()
    found: dict[str, Used] = {}
    for body in tag_bodies(about.prompt):
        try:
            tag = parse_tag(body)
        except PromptTagError:
            continue
        name, digest = without_hash(tag.name)
        if tag.name not in missing:
            found.setdefault(name, Used("hypernetwork", name, tag.strength, digest or hashes.get(tag.name, "")))
    for name, digest in hashes.items():  # applied without a tag
        found.setdefault(name, Used("hypernetwork", name, None, digest))
    if (old := settings.get(OLD_NAME, "None")) != "None":
        name, digest = without_hash(old)
        strength = _number(settings.get(OLD_STRENGTH, ""))
        found.setdefault(name, Used("hypernetwork", name, strength, digest or settings.get(OLD_HASH, "")))
    embeddings = dict(listed_hashes(settings.get(EMBEDDING_HASHES, "")))
    of_embeddings = (Used("embedding", name, None, digest) for name, digest in embeddings.items())
    return [*islice(found.values(), MOST_USED), *islice(of_embeddings, MOST_USED)]


def without_hash(name: str) -> tuple[str, str]:
    """Split a name in an old image into the name and its hash, "" without a hash."""
    match = _NAME_WITH_HASH.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def listed_hashes(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and hashes of a list `name: hash, name: hash`; names may hold commas and colons."""
    parts: list[str] = []
    for part in text.split(", "):
        parts.append(part)
        if (match := _ENDS_IN_HASH.search(part)) is not None:
            yield ", ".join(parts)[: -len(match[0])], match[1]
            parts = []


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"Key {shown(key)}: use two or more letters, digits, spaces, '-' or '/'.")
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
