"""`hnloader inspect image.png`: show what an image was made with, and find those files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from hnloader.cli.shared_options import embedding_folders, hypernetwork_library
from hnloader.cli.terminal import clean, shortened

if TYPE_CHECKING:
    from hnloader.hashes import Hashes
    from hnloader.infotext import Infotext, Used
    from hnloader.library import Library

__all__ = ["ImageInfo", "ImageReader"]

Match = Literal["hash", "name", "other file"]


@dataclass(frozen=True)
class Found:
    """A hypernetwork or embedding that an image was made with.

    Attributes:
        used: Its name, strength and hash in the image.
        file: The file in the library, or None.
        match: "hash": the hashes are equal; "name": the names are equal and the image has no hash; "other file": the
            names are equal but the hashes differ.
    """

    used: Used
    file: Path | None
    match: Match | None


@dataclass(frozen=True)
class ImageInfo:
    """The parameters of an image and the files it was made with."""

    about: Infotext
    found: tuple[Found, ...]

    def to_dict(self, path: Path) -> dict[str, Any]:
        """Return the values for JSON."""

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
        """Return labels and values for the terminal."""
        rows: list[tuple[str, str | Text]] = [("Prompt", shortened(self.about.prompt))]
        rows += [("Negative", shortened(self.about.negative_prompt))] if self.about.negative_prompt else []
        for kind, label in (("hypernetwork", "Hypernetworks"), ("embedding", "Embeddings")):
            lines = [_line(one) for one in self.found if one.used.kind == kind]
            lines = lines or ([Text("none")] if kind == "hypernetwork" else [])
            rows += [("" if place else label, line) for place, line in enumerate(lines)]
        return rows


class ImageReader:
    """Reads images and finds the files that they name; hashes each file at most once."""

    def __init__(self, hypernetworks: Sequence[Path] | None, embeddings: Sequence[Path] | None) -> None:
        self._given = hypernetworks
        self._embeddings = embedding_folders(embeddings)
        self._places: tuple[Library, Library, Hashes] | None = None

    def read(self, path: Path) -> ImageInfo | None:
        """Return the parameters of an image; None for other files and embeddings.

        Raises:
            UnknownFormatError: The image holds no parameters.
            HypernetworkError: The image is damaged.
        """
        from hnloader.embeddings.embedding_files import is_embedding
        from hnloader.errors import UnknownFormatError
        from hnloader.files import open_regular
        from hnloader.images import is_image
        from hnloader.infotext import made_with, read_infotext

        try:
            if not path.is_file():
                return None
            with open_regular(path) as file:
                head = file.read(16)
        except OSError:
            return None  # the reader of hypernetworks reports it
        if not is_image(head) or is_embedding(path):
            return None
        about = read_infotext(path)
        if about is None:
            raise UnknownFormatError(
                f"{path} is an image without generation parameters. Use the file as the webui or hnloader saved it."
            )
        return ImageInfo(about, tuple(self._found(used) for used in made_with(about)))

    def close(self) -> None:
        """Save the hashes for the next run."""
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
            from hnloader.embeddings.embedding_files import embedding_library
            from hnloader.hashes import Hashes
            from hnloader.ui.index import cache_folder

            embeddings = embedding_library(self._embeddings)
            self._places = hypernetwork_library(self._given), embeddings, Hashes(cache_folder())
        return self._places


def _line(one: Found) -> Text:
    strength = "" if one.used.strength is None else f" {one.used.strength:g}"
    text = Text(f"{clean(one.used.name)}{strength}")
    if one.used.hash:
        text.append(f" ({clean(one.used.hash)})", "dim")
    if one.file is None:
        return text.append(": not in the library", "yellow")
    matches = {"hash": ("", "green"), "name": (" (same name)", ""), "other file": (" (different hash)", "yellow")}
    words, style = matches[one.match or "name"]
    return text.append(f": {clean(one.file)}{words}", style)
