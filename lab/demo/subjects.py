"""The styles that studies measure: the named ones, and unseen ones that a program draws from a space of styles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hnloader.demo.drawing import draw_images
from hnloader.demo.random_styles import RandomStyle, random_style
from hnloader.demo.scenes import ByteArray, Scene, lay_out
from hnloader.demo.styles import paint
from lab.demo.random_style_scores import random_style_score
from lab.demo.style_scores import style_score

COLOR_STYLES = ("duotone", "chalk", "midnight", "cyanotype", "screenprint")
# Styles that change more than colors.
HARDER = ("sunset", "blueprint", "neon")
NAMED = (*COLOR_STYLES, *HARDER, "outline")
EVERY = (*NAMED, *(f"unseen {index:02}" for index in range(12)))
_UNSEEN_SEED = 7_000_000


@dataclass(frozen=True)
class Subject:
    """A style to measure.

    Attributes:
        name: Its name; unseen styles are numbered.
        style: Its point in the space of random styles, or None for a named one.
    """

    name: str
    style: RandomStyle | None

    @property
    def key(self) -> str:
        """The name in the names of files."""
        return self.name.replace(" ", "-")

    def draw(self, folder: Path, count: int) -> list[Path]:
        """Draw images with captions, or return those drawn before."""
        if not (folder / f"{count - 1:02}.png").is_file():
            if self.style is None:
                draw_images(self.name, folder, count)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng((_UNSEEN_SEED, int(self.name.split()[-1]), 1))
                for index, (pixels, caption) in enumerate(self.style.examples(count, rng)):
                    Image.fromarray(pixels).save(folder / f"{index:02}.png")
                    (folder / f"{index:02}.txt").write_text(caption)
        return sorted(folder.glob("*.png"))

    def paint(self, scene: Scene, rng: np.random.Generator) -> ByteArray:
        """Draw a scene in the style."""
        laid_out = lay_out(scene, rng)
        return paint(self.name, *laid_out) if self.style is None else self.style.paint(*laid_out)

    def score(self, image: ByteArray, scene: Scene) -> float:
        """Return the style score of an image, 0 to 1."""
        if self.style is None:
            return float(np.nan_to_num(style_score(self.name, image)))
        return random_style_score(self.style, image, scene)


def subject(name: str) -> Subject:
    """Return a style by its name, such as "duotone" or "unseen 03"."""
    if not name.startswith("unseen "):
        return Subject(name, None)
    return Subject(name, random_style(np.random.default_rng((_UNSEEN_SEED, int(name.split()[-1])))))


def subjects(names: Sequence[str] = EVERY) -> list[Subject]:
    """Return styles by their names; by default, the named and twelve unseen ones."""
    return [subject(name) for name in names]
