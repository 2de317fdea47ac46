"""The styles that a predictor is trained on: a folder of examples for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from hnloader.errors import DatasetError
from hnloader.units import counted

Example = TypeVar("Example")
Reader = Callable[[Path], tuple[Sequence[Example], int]]

# The examples to predict from, and one to learn from.
LEAST_EXAMPLES = 2
_MOST_NOTES = 10


@dataclass(frozen=True)
class Style(Generic[Example]):
    """Examples of one style."""

    name: str
    examples: Sequence[Example]


@dataclass
class StyleFolders(Generic[Example]):
    """The styles of a folder, and notes about those that are left out.

    Attributes:
        identity: Returns what identifies an example, such as its hash and its caption.
    """

    identity: Callable[[Example], object]
    styles: list[Style[Example]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash of the examples."""
        parts = [self.identity(example) for style in self.styles for example in style.examples]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_styles(
    folder: Path, kind: str, read: Reader[Example], identity: Callable[[Example], object]
) -> StyleFolders[Example]:
    """Read the styles of a folder: each of its folders with at least two usable examples.

    Args:
        folder: The folder.
        kind: The kind of examples.
        read: Returns the examples of a folder and the number of problems, or raises DatasetError.
        identity: See `StyleFolders`.

    Raises:
        DatasetError: The folder does not exist, or has fewer than two styles.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: found no such folder. Name the folder with the styles.")
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found, problems = StyleFolders(identity), 0
    for place in places:
        try:
            examples, wrong = read(place)
        except DatasetError as error:
            found.notes.append(f"{error} The style is excluded.")
            continue
        problems += wrong
        if len(examples) < LEAST_EXAMPLES:
            found.notes.append(f"{place.name}: found a single usable {kind}. The style is excluded.")
        else:
            found.styles.append(Style(place.name, examples))
    if len(found.styles) < 2:
        raise DatasetError(
            f"{folder}: found {counted(len(found.styles), 'style')}. Use at least two, with a folder "
            f"of at least {LEAST_EXAMPLES} {kind}s for each."
        )
    if problems:
        found.notes.append(f"{counted(problems, 'problem')} with {kind}s.{_ADVICE.get(kind, '')}")
    more = len(found.notes) - _MOST_NOTES
    if more > 0:
        found.notes[_MOST_NOTES:] = [f"{counted(more, 'more note')}."]
    return found


_ADVICE = {"image": " `hnloader dataset check` lists those of a style."}
