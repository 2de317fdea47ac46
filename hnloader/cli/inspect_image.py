"""`hnloader inspect image.png`: what an image was made with, and which files of the library those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.text import Text

from hnloader.cli.terminal import clean

if TYPE_CHECKING:
    from hnloader.hashes import Hashes
    from hnloader.infotext import Infotext, Used
    from hnloader.library import Library

# Files that hold embeddings, the ones that win first.
EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin", ".png", ".webp")

Match = Literal["hash", "name", "other file"]


@dataclass(frozen=True)
class Found:
    """Something that an image was made with.

    Attributes:
        used: What the image says of it.
        file: The library's file; None where there is none.
        match: "hash": it is that file; "name": the image has no hash, and the file has its name; "other file": the
            file has its name and another hash.
    """

    used: Used
    file: Path | None
    match: Match | None


@dataclass(frozen=True)
class ImageInfo:
    """What an image says of itself."""

    about: Infotext
    found: tuple[Found, ...]

    def to_dict(self, path: Path) -> dict[str, Any]:
        """Return it as plain values that JSON can hold."""

        def listed(kind: str) -> list[dict[str, Any]]:
            return [
                {
                    "name": one.used.name,
                    "strength": one.used.strength,
                    "hash": one.used.hash or None,
                    "file": None if one.file is None else str(one.file),
                    "match": one.match,
                }
                for one in self.found
                if one.used.kind == kind
            ]

        return {
            "path": str(path),
            "prompt": self.about.prompt,
            "negative_prompt": self.about.negative_prompt,
            "settings": dict(self.about.settings),
            "hypernetworks": listed("hypernetwork"),
            "embeddings": listed("embedding"),
        }

    def details(self) -> list[tuple[str, str | Text]]:
        """Return labels and values to show."""
        rows: list[tuple[str, str | Text]] = [("Prompt", _shortened(self.about.prompt))]
        rows += [("Negative", _shortened(self.about.negative_prompt))] if self.about.negative_prompt else []
        for kind, label in (("hypernetwork", "Hypernetworks"), ("embedding", "Embeddings")):
            lines = [_line(one) for one in self.found if one.used.kind == kind]
            lines = lines or ([Text("none named")] if kind == "hypernetwork" else [])
            rows += [("" if place else label, line) for place, line in enumerate(lines)]
        return rows


class ImageReader:
    """Reads images and finds what they name; each file is read at most once for its hashes."""

    def __init__(self, hypernetworks: Sequence[Path] | None, embeddings: Sequence[Path] | None) -> None:
        for folder in embeddings or ():
            if not folder.is_dir():
                raise typer.BadParameter(f"{folder} is not a folder.", param_hint="--embedding-dir")
        self._given = hypernetworks
        self._embeddings = embeddings or ()
        self._places: tuple[Library, Library, Hashes] | None = None

    def read(self, path: Path) -> ImageInfo | None:
        """Return what an image says of itself; None for a file that is not an image with parameters.

        Raises:
            HypernetworkError: The image is damaged.
        """
        from hnloader.files import open_regular
        from hnloader.images import is_image
        from hnloader.infotext import made_with, read_png

        try:
            if not path.is_file():
                return None
            with open_regular(path) as file:
                head = file.read(16)
        except OSError:
            return None  # the reader of hypernetworks says why
        about = read_png(path) if is_image(head) else None
        if about is None:
            return None
        return ImageInfo(about, tuple(self._found(used) for used in made_with(about)))

    def close(self) -> None:
        """Keep the hashes for the next time."""
        if self._places is not None:
            self._places[2].save()

    def _found(self, used: Used) -> Found:
        from hnloader.hashes import find_by_hash, is_hash

        hypernetworks, embeddings, hashes = self._libraries()
        library = embeddings if used.kind == "embedding" else hypernetworks
        if (same := find_by_hash(library, used.name, used.hash, hashes)) is not None:
            return Found(used, same.path, "hash")
        named = library.matches(used.name)
        if not named:
            return Found(used, None, None)
        return Found(used, named[0].path, "other file" if is_hash(used.hash) else "name")

    def _libraries(self) -> tuple[Library, Library, Hashes]:
        if self._places is None:
            from hnloader.cli.generate_command import hypernetwork_library
            from hnloader.hashes import Hashes
            from hnloader.library import Library
            from hnloader.ui.index import cache_folder

            embeddings = Library(self._embeddings, EMBEDDING_SUFFIXES)
            self._places = hypernetwork_library(self._given), embeddings, Hashes(cache_folder())
        return self._places


def _line(one: Found) -> Text:
    strength = "" if one.used.strength is None else f" {one.used.strength:g}"
    text = Text(f"{clean(one.used.name)}{strength}")
    if one.used.hash:
        text.append(f" ({clean(one.used.hash)})", "dim")
    if one.file is None:
        return text.append(": not in the library", "yellow")
    said = {"hash": ("", "green"), "name": (" (by its name)", ""), "other file": (" has another hash", "yellow")}
    words, style = said[one.match or "name"]
    return text.append(f": {clean(one.file)}{words}", style)


def _shortened(text: str, longest: int = 300) -> str:
    shown = clean(text).strip()
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
