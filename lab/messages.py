"""Find the code that a message comes from: `python -m lab.messages "skipped; already ends in .pt"`.

The message may be cut off, and may be several messages in one. The command prints the places in the code whose texts
share the longest runs of words with it, the best first.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("hnloader", "extension", "scripts", "install.py")
MOST_PLACES = 5
# Fewer words in a row are shared by chance.
FEWEST_WORDS = 2


@dataclass(frozen=True)
class Place:
    """A text in the code that shares words with a message.

    Attributes:
        path: File, relative to the project.
        line: Line in the file.
        score: Sum, over the fixed parts of the text, of the squared number of words of the longest shared run.
        text: These runs.
    """

    path: Path
    line: int
    score: int
    text: str


def main(arguments: Sequence[str]) -> int:
    """Print where a message comes from. Returns 1 if no text of the product is similar."""
    found = places_of(" ".join(arguments))[:MOST_PLACES]
    for place in found:
        print(f"{place.path}:{place.line}: {place.text}")
    if not found:
        print("No text of hnloader is similar. Messages about options come from typer, others from torch or diffusers.")
    return 0 if found else 1


def places_of(message: str) -> list[Place]:
    """Return the places whose text shares words with a message, the best first."""
    said = _words(message)
    found = []
    for path, line, fixed in texts():
        runs = [_longest(_words(each), said) for each in fixed]
        if any(length >= FEWEST_WORDS for length, _ in runs):
            score = sum(length**2 for length, _ in runs)
            found.append(Place(path, line, score, " ... ".join(part for _, part in runs if part)))
    return sorted(found, key=lambda place: -place.score)


def texts() -> Iterator[tuple[Path, int, list[str]]]:
    """Yield the path, line and fixed parts of each text in the code of the product, except docstrings."""
    for top in SOURCES:
        paths = [ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py"))
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    documents |= {id(part) for part in node.values}
                    fixed = [part.value for part in node.values if isinstance(part, ast.Constant)]
                elif isinstance(node, ast.Constant) and id(node) not in documents:
                    fixed = [node.value]
                else:
                    continue
                yield path.relative_to(ROOT), node.lineno, [each for each in fixed if isinstance(each, str)]


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][\w'-]*|\d+", text)


def _longest(words: Sequence[str], said: Sequence[str]) -> tuple[int, str]:
    """Return the number of words and the text of the longest run of `words` that is in `said`."""
    best = (0, "")
    for begin in range(len(words)):
        for start in range(len(said)):
            length = 0
            while words[begin + length : begin + length + 1] == said[start + length : start + length + 1] != []:
                length += 1
            if length > best[0]:
                best = (length, " ".join(words[begin : begin + length]))
    return best


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
