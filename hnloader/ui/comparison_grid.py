"""A comparison as one labeled image, with the same seeds everywhere.

Its rows are prompts, and its columns are hypernetworks by strengths, and embeddings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.embeddings.prompt_words import text_has_word
from hnloader.errors import SettingsError
from hnloader.prompt import Tag, format_number
from hnloader.texts import shown
from hnloader.ui.page_host import Generator, ImageRequest
from hnloader.units import counted

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOST_IMAGES", "Column", "Comparison", "read_prompts", "read_strengths"]

MOST_IMAGES = 400
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Column:
    """One column of the grid: a hypernetwork at a strength, an embedding, or without a path the model alone.

    Attributes:
        path: The file.
        strength: Of a hypernetwork.
        word: Of an embedding, which has no strength.
    """

    path: Path | None = None
    strength: float = 0.0
    word: str = ""

    @property
    def label(self) -> str:
        """The text above the column."""
        if self.word:
            return "embedding"
        return "none" if self.path is None else format_number(self.strength)

    def applied(self, request: ImageRequest) -> ImageRequest:
        """Return the request with the file of this column."""
        if self.path is None:
            return request
        if self.word:
            known = text_has_word(request.prompt, self.word)
            prompt = request.prompt if known else f"{request.prompt} {self.word}"
            return replace(request, prompt=prompt, embeddings=(self.path,))
        return replace(request, hypernetworks=((self.path, Tag(self.path.stem.strip() or "_", self.strength)),))


@dataclass(frozen=True)
class Comparison:
    """Prompts, files and strengths to compare.

    Attributes:
        prompts: At least one. Their `<hypernet:...>` tags, and words of embeddings, apply in every column.
        hypernetworks: Files. Each is shown at every strength.
        embeddings: Files with their words. The word goes at the end of a prompt that lacks it.
        strengths: At least one. Strength 0 is the same for all files and made once.
        request: Settings that all images share. Prompt, seed and hypernetworks are replaced.
        seed: Seed of each prompt's first row.
        seeds: Number of rows per prompt, with seeds `seed`, `seed + 1`, ...
    """

    prompts: tuple[str, ...]
    hypernetworks: tuple[Path, ...]
    strengths: tuple[float, ...]
    request: ImageRequest
    embeddings: tuple[tuple[Path, str], ...] = ()
    seed: int = 0
    seeds: int = 1

    def check(self) -> None:
        """Raise SettingsError for a value that is missing or out of range."""
        if not self.prompts:
            raise SettingsError("Prompts: none given. Write at least one, each on its own line.")
        if not self.hypernetworks and not self.embeddings:
            raise SettingsError("Nothing is selected. Select at least one file to compare.")
        if not self.strengths and self.hypernetworks:
            raise SettingsError("Strengths: none given. Write some, such as 0, 0.5, 1.")
        if self.seeds < 1:
            raise SettingsError(f"Seeds per prompt: expected at least 1, got {self.seeds}.")
        if not 0 <= self.seed <= _LARGEST_SEED - self.seeds + 1:
            raise SettingsError(f"Seed: expected 0 to {_LARGEST_SEED}, got {self.seed}.")
        if self.to_make > MOST_IMAGES:
            raise SettingsError(
                f"Comparison: expected at most {MOST_IMAGES} images, got {self.to_make:,}. "
                "Choose fewer prompts, files, strengths or seeds."
            )

    @property
    def columns(self) -> list[Column]:
        """Columns from left to right: the model alone if strength 0 is asked for, then file by file."""
        plain = [Column()] if 0 in self.strengths else []
        by_strength = [Column(path, strength) for path in self.hypernetworks for strength in self._strengths]
        return plain + by_strength + [Column(path, word=word) for path, word in self.embeddings]

    @property
    def _strengths(self) -> list[float]:
        return [strength for strength in self.strengths if strength != 0]

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Prompts and seeds from top to bottom."""
        return [(prompt, self.seed + number) for prompt in self.prompts for number in range(self.seeds)]

    @property
    def to_make(self) -> int:
        """Number of images."""
        return len(self.columns) * len(self.rows)

    def make_rows(self, generator: Generator, report: Callable[[int, int, str], None]) -> Iterator[list[Image]]:
        """Make the images and yield each row when it is complete.

        `report(done, total, text)` is called after each sampling step; it raises to cancel.
        """
        total, number = self.to_make, 0
        for prompt, seed in self.rows:
            row: list[Image] = []
            for column in self.columns:

                def progress(step: int, steps: int, at: int = number) -> None:
                    report(at * steps + step, total * steps, f"Image {at + 1} of {total}, step {step} of {steps}")

                request = column.applied(replace(self.request, prompt=prompt, seed=seed))
                row.append(generator.image(request, progress))
                number += 1
            yield row

    def grid(self, rows: Sequence[Sequence[Image]]) -> Image:
        """Return the labeled image of one or more complete rows."""
        from hnloader.grids import labeled_grid

        columns = self.columns
        groups = [("", 1)] if columns[0].path is None else []
        names = _labels([*self.hypernetworks, *(path for path, _ in self.embeddings)])
        counts = [len(self._strengths)] * len(self.hypernetworks) + [1] * len(self.embeddings)
        groups += [(name, count) for name, count in zip(names, counts, strict=True) if count]
        return labeled_grid(
            rows,
            columns=[column.label for column in columns],
            rows=[f"{prompt} (seed {seed})" if self.seeds > 1 else prompt for prompt, seed in self.rows[: len(rows)]],
            groups=groups,
            caption=self._caption(),
        )

    def _caption(self) -> str:
        settings = counted(self.request.steps, "step")
        if self.request.guidance is not None:
            settings += f", CFG scale {format_number(self.request.guidance)}"
        seeds = f"seed {self.seed}" if self.seeds == 1 else f"seeds {self.seed} to {self.seed + self.seeds - 1}"
        return f"Same seed along each row; columns are strengths. {settings}, {seeds}."

    def infotext(self) -> str:
        """Return all settings as text for the saved image."""
        lines = [f"Prompt: {prompt}" for prompt in self.prompts]
        lines += [f"Negative prompt: {self.request.negative}"] if self.request.negative else []
        if self.hypernetworks:
            lines.append("Hypernetworks: " + ", ".join(path.name for path in self.hypernetworks))
            lines.append("Strengths: " + ", ".join(map(format_number, self.strengths)))
        if self.embeddings:
            lines.append("Embeddings: " + ", ".join(path.name for path, _ in self.embeddings))
        return "\n".join([*lines, self._caption()])


def read_strengths(text: str) -> tuple[float, ...]:
    """Read strengths separated by commas, semicolons or spaces, each once. Raises SettingsError for other text."""
    strengths: list[float] = []
    for part in filter(None, re.split(r"[\s,;]+", text)):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SettingsError(f"Strengths: expected numbers such as 0, 0.5, 1, got {shown(part)}.")
        strengths.append(value)
    return tuple(dict.fromkeys(strengths))


def read_prompts(text: str) -> tuple[str, ...]:
    """Read prompts, one from each line that is not blank."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return each file's stem, or its name where two stems are equal."""
    stems = [path.stem for path in paths]
    return [path.stem if stems.count(path.stem) == 1 else path.name for path in paths]
