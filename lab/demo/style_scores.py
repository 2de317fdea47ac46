"""Measure the style of an image from its pixels: 0 (plain) to 1 (as drawn in that style).

Each score looks for one property that plain images lack:

- outline: the inside of the shapes has the background's color,
- blueprint: the same, and the background is blueprint blue,
- halftone: the inside of the shapes repeats a grid of dots,
- duotone: all colors are between dark brown and cream,
- neon: as outline, and the background is the night's,
- chalk: the shapes' colors are as far on the way to white as chalk is, and the background is the board's,
- sunset: the background goes from one color of the sky at the top to the other at the bottom, the shapes are dark,
- cyanotype: the background is Prussian blue and the shapes are pale,
- screenprint: the background is mustard and the shapes are teal,
- midnight: the shapes' colors are as far on the way to midnight as dimmed colors, and the background is midnight's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from hnloader.demo.scenes import COLORS, ByteArray, FloatArray, as_floats
from hnloader.demo.styles import BLUEPRINT_BLUE, dots
from lab.demo.checker import Mask, Seen, along, look, shrink
from lab.demo.study_styles import (
    BOARD,
    BROWN,
    CREAM,
    MIDNIGHT,
    MUSTARD,
    NIGHT,
    PALE,
    PRUSSIAN_BLUE,
    SILHOUETTE,
    SKY,
    TEAL,
    Tint,
    chalked,
    dimmed,
    sky,
)

Score = Callable[[ByteArray], float]

# An inside of fewer pixels says nothing of an outline.
_SMALLEST_INSIDE = 6
# RGB distance from the color of a style at which the score is 0.
_REACH = 120.0
# RGB distance beside the ways from all plain colors to their tints, from which on a color is none of the tints.
_BESIDE = 70.0


def _ink(image: FloatArray, seen: Seen, part: Mask) -> FloatArray:
    """Each pixel's place between the background's color (0) and the object's strongest color (1); (64, 64)."""
    strength = np.linalg.norm(image - seen.background_color, axis=-1)
    strongest = part & (strength >= np.quantile(strength[part], 0.75))
    return along(image, seen.background_color, np.median(image[strongest], axis=0))


def _mean_of_insides(
    image: ByteArray, rim: int, smallest: int, score: Callable[[FloatArray, Mask, Mask], float]
) -> float:
    """Return the mean over the objects of `score(ink inside, inside, whole object)`, or NaN without objects.

    The inside is the object without a rim of `rim` pixels; it needs at least `smallest` pixels.
    """
    seen = look(image, silhouettes=True)
    pixels = image.astype(np.float32)
    scores = []
    for item in seen.objects:
        inside = shrink(item.mask, rim)
        if inside.sum() >= smallest:
            scores.append(score(_ink(pixels, seen, item.mask)[inside], inside, item.mask))
    return float(np.mean(scores)) if scores else float("nan")


def _outline(image: ByteArray) -> float:
    def empty(ink: FloatArray, inside: Mask, whole: Mask) -> float:
        return float(np.clip(1.0 - ink, 0.0, 1.0).mean())

    return _mean_of_insides(image, 3, _SMALLEST_INSIDE, empty)


def _on(score: Score, color: tuple[int, int, int], image: ByteArray) -> float:
    """`score`, less the more the background is away from `color`; _REACH away it is 0."""
    background = look(image, silhouettes=True).background_color
    away = float(np.linalg.norm(background - np.asarray(color)))
    return score(image) * float(np.clip(1.0 - away / _REACH, 0.0, 1.0))


def _tinted(tint: Tint, image: ByteArray) -> float:
    """Return how far the shapes are on the way from a plain color to its tint."""
    pixels = image.astype(np.float32)
    objects = look(image, silhouettes=True).objects
    nearest = [min(_ways(tint, np.median(pixels[item.mask], axis=0)), key=lambda way: way[1]) for item in objects]
    return float(np.mean([along * (beside < _BESIDE) for along, beside in nearest])) if nearest else float("nan")


def _ways(tint: Tint, color: FloatArray) -> list[tuple[float, float]]:
    """For each plain color: how far `color` is on the way from it to its tint, 0 to 1, and how far beside that way."""
    ways = []
    for plain in COLORS.values():
        line = tint(as_floats(plain)) - as_floats(plain)
        along = float(np.clip((color - plain) @ line / float(line @ line), 0.0, 1.0))
        ways.append((along, float(np.linalg.norm(color - plain - along * line))))
    return ways


def _inked(ink: tuple[int, int, int], image: ByteArray) -> float:
    """Return how near the shapes are to a color; 0 at a distance of _REACH."""
    pixels = image.astype(np.float32)
    objects = look(image, silhouettes=True).objects
    away = [float(np.linalg.norm(np.median(pixels[item.mask], axis=0) - np.asarray(ink))) for item in objects]
    return float(np.clip(1.0 - np.mean(away) / _REACH, 0.0, 1.0)) if away else float("nan")


def _halftone(image: ByteArray) -> float:
    """Slope of the ink over the dots' pattern inside the shapes, as a share of the slope that `styles` paints."""
    pattern = dots()

    def dotted(ink: FloatArray, inside: Mask, whole: Mask) -> float:
        wanted = pattern[inside] - pattern[inside].mean()
        slope = float(ink @ wanted / (wanted @ wanted))
        return min(max(slope / 0.75, 0.0), 1.0)

    return _mean_of_insides(image, 2, 16, dotted)


def _duotone(image: ByteArray) -> float:
    pixels = image.astype(np.float32).reshape(-1, 3)
    start, end = np.asarray(BROWN, np.float32), np.asarray(CREAM, np.float32)
    line = end - start
    along = np.clip((pixels - start) @ line / float(line @ line), 0.0, 1.0)
    away = np.linalg.norm(pixels - start - along[:, None] * line, axis=-1)
    return float(np.clip(1.0 - away / 60.0, 0.0, 1.0).mean())


def _sunset(image: ByteArray) -> float:
    """Return the least of three: how the background changes downwards, how near it is to the sky, how dark shapes are.

    The pipeline's VAE shows seven tenths of the sky's change, which count as the whole.
    """
    pixels = image.astype(np.float32)
    objects = look(image, silhouettes=True).objects
    shapes = np.zeros(pixels.shape[:2], bool)
    dark = []
    for item in objects:
        shapes |= item.mask
        dark.append(float(np.linalg.norm(np.median(pixels[item.mask], axis=0) - np.asarray(SILHOUETTE))))
    ground = shrink(~shapes, 2)
    away = float(np.linalg.norm(pixels - sky(), axis=-1)[ground].mean())
    line = as_floats(SKY[1]) - as_floats(SKY[0])
    along = pixels[ground] @ line / float(line @ line)
    rows = np.nonzero(ground)[0] / pixels.shape[0]
    slope = float(along @ (rows - rows.mean()) / (float(rows.var()) * len(rows)))
    near = [1.0 - each / _REACH for each in (away, *dark)]
    return float(np.clip(min(slope / 0.7, *near), 0.0, 1.0)) if objects else float("nan")


SCORES: dict[str, Score] = {
    "outline": _outline,
    "blueprint": functools.partial(_on, _outline, BLUEPRINT_BLUE),
    "halftone": _halftone,
    "duotone": _duotone,
    "neon": functools.partial(_on, _outline, NIGHT),
    "chalk": functools.partial(_on, functools.partial(_tinted, chalked), BOARD),
    "sunset": _sunset,
    "cyanotype": functools.partial(_on, functools.partial(_inked, PALE), PRUSSIAN_BLUE),
    "screenprint": functools.partial(_on, functools.partial(_inked, TEAL), MUSTARD),
    "midnight": functools.partial(_on, functools.partial(_tinted, dimmed), MIDNIGHT),
}


def style_score(style: str, image: ByteArray) -> float:
    """Return the score (0 to 1) of a style for an image, uint8 (64, 64, 3); NaN if no shape has an inside to measure.

    Raises ValueError for an unknown style.
    """
    if style not in SCORES:
        raise ValueError(f"Style: expected {', '.join(SCORES)}, got {style!r}.")
    return SCORES[style](image)
