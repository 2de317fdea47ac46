"""A space of drawn styles, to train a predictor on: `python -m hnloader.demo.random_styles --out styles`.

A style is a ground, an ink and a fill. The ground is the scene's own background, a paper of one color, or a paper that
changes from one color to another. The ink moves the colors of the words toward one color, and toward gray. The fill
is a filled shape or its outline.

The styles that measure a predictor are not in the space. A style with the same fill as one of them and a paper near its
paper has an ink that is far from its ink.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hnloader.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    ByteArray,
    FloatArray,
    Layer,
    as_floats,
    coverage,
    lay_out,
    pixel_centers,
    random_scene,
)
from hnloader.demo.styles import blend, canvas

__all__ = ["RESERVED", "RESERVED_INK_DISTANCE", "RESERVED_PAPER_DISTANCE", "RandomStyle", "draw_styles", "random_style"]

Color = tuple[float, float, float]

# Shares of the kinds of grounds, inks and fills.
_OWN_GROUND, _PLAIN_PAPER = 0.15, 0.65
_OWN_INK, _ONE_INK = 0.3, 0.4
_FILLED = 0.65
_WIDTHS = (2.0, 3.0)  # pixels
# RGB distance between ground and ink, so that shapes are visible.
_LEAST_CONTRAST = 70.0


@dataclass(frozen=True)
class RandomStyle:
    """A style of the space.

    Attributes:
        paper: Colors of the ground at its two ends, RGB from 0 to 255; equal for one color. Empty for the background
            of the scene.
        angle: Direction from the first color to the second, in radians; 0 is to the right, pi / 2 down.
        ink: Color toward which the colors of the words move.
        share: How far they move, 0 to 1.
        gray: How far they move toward gray before, 0 to 1.
        outline: Width of the outline in pixels; 0 for filled shapes.
    """

    paper: tuple[Color, ...]
    angle: float
    ink: Color
    share: float
    gray: float
    outline: float

    def inked(self, color: FloatArray) -> FloatArray:
        """Return a color (3,) of the words in this style."""
        grayed = color + np.float32(self.gray) * (color.mean() - color)
        return as_floats(grayed + np.float32(self.share) * (as_floats(self.ink) - grayed))

    def ground(self, background: FloatArray) -> FloatArray:
        """Return the ground, (64, 64, 3), of a scene with this background (3,)."""
        if not self.paper:
            return canvas(background)
        first, last = as_floats(self.paper[0]), as_floats(self.paper[-1])
        xs, ys = (axis / IMAGE_SIZE - 0.5 for axis in pixel_centers(IMAGE_SIZE))
        along = math.cos(self.angle) * xs + math.sin(self.angle) * ys
        reach = (abs(math.cos(self.angle)) + abs(math.sin(self.angle))) / 2
        return blend(canvas(first), last, as_floats(along / (2 * reach) + 0.5))

    def paint(self, background: FloatArray, layers: Sequence[Layer]) -> ByteArray:
        """Return the pixels of a laid-out scene, uint8 (64, 64, 3)."""
        image = self.ground(background)
        for layer in layers:
            distance = layer.distance
            if self.outline:
                distance = as_floats(np.abs(distance + self.outline / 2) - self.outline / 2)
            image = blend(image, self.inked(layer.color), coverage(distance))
        painted: ByteArray = np.clip(image + 0.5, 0, 255).astype(np.uint8)
        return painted

    def examples(self, count: int, rng: np.random.Generator) -> Iterator[tuple[ByteArray, str]]:
        """Yield images of random scenes, uint8 (64, 64, 3), with captions; every second one has two objects."""
        for number in range(count):
            scene = random_scene(rng, 1 + number % 2)
            yield self.paint(*lay_out(scene, rng)), scene.caption()


# The styles that measure a predictor: docs/dev/predictor-evidence.md. An ink with a share of 0 has no color.
_COLORLESS: Color = (0.0, 0.0, 0.0)
RESERVED: dict[str, RandomStyle] = {
    "duotone": RandomStyle(((240, 222, 180),), 0, (92, 52, 28), 1, 0, 0),
    "chalk": RandomStyle(((38, 72, 60),), 0, (245, 245, 245), 0.4, 0, 0),
    "midnight": RandomStyle(((12, 18, 60),), 0, (12, 18, 60), 0.3, 0, 0),
    "cyanotype": RandomStyle(((20, 60, 120),), 0, (226, 238, 246), 1, 0, 0),
    "screenprint": RandomStyle(((222, 172, 64),), 0, (16, 72, 84), 1, 0, 0),
    "sunset": RandomStyle(((255, 196, 110), (243, 136, 126)), math.pi / 2, (30, 20, 34), 1, 0, 0),
    "blueprint": RandomStyle(((25, 60, 130),), 0, (235, 240, 250), 1, 0, 2.4),
    "neon": RandomStyle(((14, 14, 26),), 0, _COLORLESS, 0, 0, 2.4),
    "outline": RandomStyle((), 0, _COLORLESS, 0, 0, 2.4),
}
# In RGB, 0 to 441.
RESERVED_PAPER_DISTANCE = 32.0
RESERVED_INK_DISTANCE = 96.0


def random_style(rng: np.random.Generator) -> RandomStyle:
    """Return a style of the space."""
    while True:
        style = _candidate(rng)
        if _is_visible(style) and not is_reserved(style):
            return style


def _candidate(rng: np.random.Generator) -> RandomStyle:
    def color() -> Color:
        red, green, blue = rng.uniform(0, 255, 3)
        return float(red), float(green), float(blue)

    kind = float(rng.random())
    paper: tuple[Color, ...] = ()
    if kind >= _OWN_GROUND:
        paper = (color(),) if kind < _OWN_GROUND + _PLAIN_PAPER else (color(), color())
    kind = float(rng.random())
    share = 0.0 if kind < _OWN_INK else 1.0 if kind < _OWN_INK + _ONE_INK else float(rng.uniform(0.2, 0.9))
    gray = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.2 else 0.0
    outline = 0.0 if rng.random() < _FILLED else float(rng.uniform(*_WIDTHS))
    return RandomStyle(paper, float(rng.uniform(0, 2 * math.pi)), color(), share, gray, outline)


def is_reserved(style: RandomStyle) -> bool:
    """Return True for a style that is too close to one that measures a predictor."""
    return any(_resembles(style, reserved) for reserved in RESERVED.values())


def _resembles(style: RandomStyle, reserved: RandomStyle) -> bool:
    """Return True if ground, ink and fill are all like those of a reserved style."""
    if bool(style.outline) != bool(reserved.outline) or bool(style.paper) != bool(reserved.paper):
        return False
    near = not style.paper or any(
        _distance(as_floats(color), style.paper) < RESERVED_PAPER_DISTANCE for color in reserved.paper
    )
    return near and _ink_distance(style, reserved) < RESERVED_INK_DISTANCE


def _ink_distance(style: RandomStyle, other: RandomStyle) -> float:
    """Return the RGB distance between the inks of two styles, the mean over the colors of the words."""
    colors = [as_floats(color) for color in COLORS.values()]
    return float(np.mean([np.linalg.norm(style.inked(color) - other.inked(color)) for color in colors]))


def _distance(color: FloatArray, paper: Sequence[Color]) -> float:
    """Return the RGB distance from a color to the nearest color of a paper."""
    first, line = as_floats(paper[0]), as_floats(paper[-1]) - as_floats(paper[0])
    along = float(np.clip((color - first) @ line / max(float(line @ line), 1e-6), 0.0, 1.0))
    return float(np.linalg.norm(color - first - along * line))


def _is_visible(style: RandomStyle) -> bool:
    """Return True if shapes of every color stand out from the ground, and the style differs from plain."""
    if not style.paper and not style.outline and style.share < 0.2 and style.gray < 0.3:
        return False
    grounds: Sequence[Color] = style.paper or tuple(BACKGROUNDS.values())
    inks = [style.inked(as_floats(color)) for color in COLORS.values()]
    return all(float(np.linalg.norm(ink - as_floats(ground))) >= _LEAST_CONTRAST for ink in inks for ground in grounds)


def draw_styles(folder: Path, styles: int, images: int, seed: int) -> Path:
    """Draw random styles, one folder each, with the captions in captions.json.

    Args:
        folder: The folder to write to; it is created.
        styles: Number of styles.
        images: Number of images of each style.
        seed: Seed of the styles and scenes.

    Returns:
        The folder.
    """
    for index in range(styles):
        rng = np.random.default_rng((seed, index))
        style = random_style(rng)
        place = folder / f"{index:05}"
        place.mkdir(parents=True, exist_ok=True)
        captions = {}
        for number, (pixels, caption) in enumerate(style.examples(images, rng)):
            Image.fromarray(pixels).save(place / f"{number:02}.png")
            captions[f"{number:02}.png"] = caption
        (place / "captions.json").write_text(json.dumps(captions, indent=0), encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hnloader.demo.random_styles", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--styles", type=int, default=2000)
    parser.add_argument("--images", type=int, default=8, help="images of each style")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    print(draw_styles(chosen.out, chosen.styles, chosen.images, chosen.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
