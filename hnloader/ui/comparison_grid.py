"""A comparison: prompts x hypernetworks x strengths, the same seeds everywhere, as one labeled image."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import HypernetworkError
from hnloader.prompt import Tag, format_number
from hnloader.texts import shown, well_formed
from hnloader.ui.page_host import Generator, ImageRequest

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_IMAGES = 400
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Column:
    """One column of the grid: a hypernetwork at a strength; without a path, the model alone."""

    path: Path | None
    strength: float

    def hypernetworks(self) -> tuple[tuple[Path, Tag], ...]:
        """What the generator applies: nothing where the strength is 0."""
        if self.path is None or self.strength == 0:
            return ()
        return ((self.path, Tag(self.path.stem.strip() or "_", self.strength)),)


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        prompts: one or more; each may hold `<hypernet:...>` tags of its own, which apply in every column.
        hypernetworks: files; every one is shown at every strength.
        strengths: one or more; at 0, which is the same for all files, the image is made once.
        request: all that is the same everywhere; its prompt, seed and hypernetworks are replaced.
        seed: of the first row of every prompt.
        seeds: rows for each prompt, with seed, seed + 1, ...
    """

    prompts: tuple[str, ...]
    hypernetworks: tuple[Path, ...]
    strengths: tuple[float, ...]
    request: ImageRequest
    seed: int = 0
    seeds: int = 1

    def check(self) -> None:
        """Raise HypernetworkError with what is missing or too much."""
        if not self.prompts:
            raise HypernetworkError("There is no prompt. Write at least one, each on a line of its own.")
        if not self.hypernetworks:
            raise HypernetworkError("No hypernetwork is chosen. Choose at least one to compare.")
        if not self.strengths:
            raise HypernetworkError("There is no strength. Write some, such as 0, 0.5, 1.")
        if self.seeds < 1:
            raise HypernetworkError("At least one seed for each prompt is needed.")
        if not 0 <= self.seed <= _LARGEST_SEED - self.seeds + 1:
            raise HypernetworkError(f"Seeds are 0 to {_LARGEST_SEED}; this one is {self.seed}.")
        if self.to_make > MOST_IMAGES:
            raise HypernetworkError(
                f"These are {self.to_make:,} images; a comparison has at most {MOST_IMAGES}. "
                "Take fewer prompts, hypernetworks, strengths or seeds."
            )

    @property
    def columns(self) -> list[Column]:
        """The columns from left to right: the model alone if strength 0 is asked for, then file by file."""
        plain = [Column(None, 0.0)] if 0 in self.strengths else []
        others = [strength for strength in self.strengths if strength != 0]
        return plain + [Column(path, strength) for path in self.hypernetworks for strength in others]

    @property
    def rows(self) -> list[tuple[str, int]]:
        """(prompt, seed) from top to bottom."""
        return [(prompt, self.seed + number) for prompt in self.prompts for number in range(self.seeds)]

    @property
    def to_make(self) -> int:
        """How many images that is."""
        return len(self.columns) * len(self.rows)

    def images(
        self, generator: Generator, report: Callable[[int, int, str], None]
    ) -> Iterator[tuple[list[Image], bool]]:
        """Make the images row by row; yields (the row so far, whether it is complete) after each of them.

        `report(done, total, text)` is called after each sampling step, and raises to stop.
        """
        total, number = self.to_make, 0
        for prompt, seed in self.rows:
            row: list[Image] = []
            for column in self.columns:
                at = number

                def progress(step: int, steps: int, at: int = at) -> None:
                    report(at * steps + step, total * steps, f"Image {at + 1} of {total}, step {step} of {steps}")

                asked = replace(self.request, prompt=prompt, seed=seed, hypernetworks=column.hypernetworks())
                row.append(generator.image(asked, progress))
                number += 1
                yield row, len(row) == len(self.columns)

    def grid(self, rows: Sequence[Sequence[Image]]) -> Image:
        """The labeled image of the rows that are complete, at least one."""
        from hnloader.grids import labeled_grid

        columns = self.columns
        plain = [column for column in columns if column.path is None]
        names = _labels(self.hypernetworks)
        others = (len(columns) - len(plain)) // max(1, len(self.hypernetworks))
        groups = [("", len(plain))] if plain else []
        groups += [(name, others) for name in names] if others else []
        many = self.seeds > 1
        return labeled_grid(
            [list(row) for row in rows],
            columns=["none" if column.path is None else format_number(column.strength) for column in columns],
            rows=[f"{prompt} (seed {seed})" if many else prompt for prompt, seed in self.rows[: len(rows)]],
            groups=groups,
            caption=self._caption(),
        )

    def _caption(self) -> str:
        settings = f"{self.request.steps} steps"
        if self.request.guidance is not None:
            settings += f", guidance {format_number(self.request.guidance)}"
        seeds = f"seed {self.seed}" if self.seeds == 1 else f"seeds {self.seed} to {self.seed + self.seeds - 1}"
        return f"The same seed along each row; the columns are strengths. {settings}, {seeds}."

    def infotext(self) -> str:
        """All settings as text, for the saved image."""
        lines = [f"Prompt: {prompt}" for prompt in self.prompts]
        lines += [f"Negative prompt: {self.request.negative}"] if self.request.negative else []
        lines.append("Hypernetworks: " + ", ".join(path.name for path in self.hypernetworks))
        lines.append("Strengths: " + ", ".join(map(format_number, self.strengths)))
        return "\n".join([*lines, self._caption()])


def read_strengths(text: str) -> tuple[float, ...]:
    """Strengths as a user writes them: `0, 0.5, 1`, separated by commas, semicolons or spaces; each once.

    Raises HypernetworkError naming what is no number.
    """
    strengths: list[float] = []
    for part in re.split(r"[\s,;]+", text.strip()):
        if not part:
            continue
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise HypernetworkError(f"{shown(part)} is no strength. Write numbers such as 0, 0.5, 1.")
        strengths.append(value)
    return tuple(dict.fromkeys(strengths))


def read_prompts(text: str) -> tuple[str, ...]:
    """Prompts, one on each line that is not blank."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def save_comparison(grid: Image, folder: Path, seed: int, infotext: str) -> Path:
    """Save a grid as `compare-00001-SEED.png`, numbered on, with its settings in the PNG's `parameters`.

    Raises HypernetworkError where the folder cannot be written to.
    """
    return save_numbered(grid, folder, "compare-", seed, infotext)


def save_numbered(image: Image, folder: Path, prefix: str, seed: int, infotext: str) -> Path:
    """Save an image under the next free name of `numbered`; its `parameters` are left out where there are none.

    Raises HypernetworkError where the folder cannot be written to.
    """
    from PIL.PngImagePlugin import PngInfo

    from hnloader.errors import ExistingFileError
    from hnloader.files import replacing

    chunks = PngInfo()
    if infotext:
        chunks.add_text("parameters", well_formed(infotext).replace("\x00", ""))
    path = numbered(folder, prefix, seed)
    while True:
        try:
            with replacing(path, overwrite=False) as temporary:
                image.save(temporary, format="PNG", pnginfo=chunks)
            return path
        except ExistingFileError:  # another program numbers its images in the same folder at the same time
            number = int(path.name[len(prefix) :].partition("-")[0]) + 1
            path = folder / f"{prefix}{number:05d}-{seed}.png"


def numbered(folder: Path, prefix: str, seed: int) -> Path:
    """The next free `PREFIX00001-SEED.png` in a folder, which is made if it is missing.

    Raises HypernetworkError where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [re.fullmatch(rf"{re.escape(prefix)}(\d{{5,}})-.*", path.stem) for path in folder.glob("*.png")]
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise HypernetworkError(f"cannot write to {folder}: {getattr(error, 'strerror', None) or error}") from error
    number = max((int(match[1]) for match in found if match), default=0) + 1
    return folder / f"{prefix}{number:05d}-{seed}.png"


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names for files: the stem, or the file name where a stem is there twice."""
    stems = [path.stem for path in paths]
    return [path.stem if stems.count(path.stem) == 1 else path.name for path in paths]
