"""How strongly a picture has a style, 0 (plain) to 1 (as drawn in that style), measured on its pixels.

Each score looks for one property that plain pictures lack:

- outline: the inside of the shapes has the background's color,
- blueprint: the same, and the background is blueprint blue,
- halftone: the inside of the shapes repeats a grid of dots,
- wash: the inside of the shapes loses ink from left to right,
- duotone: all colors lie between dark brown and cream,
- neon: as outline, and the background is the night's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from hnloader.demo.checker import Mask, Seen, look, shrink
from hnloader.demo.scenes import ByteArray, FloatArray, as_floats
from hnloader.demo.styles import BLUEPRINT_BLUE, BROWN, CREAM, NIGHT, WASHED, dots

Score = Callable[[ByteArray], float]

# An inside of fewer pixels says nothing of an outline.
_SMALLEST_INSIDE = 6


def _ink(picture: FloatArray, seen: Seen, part: Mask) -> FloatArray:
    """Each pixel's place between the background's color (0) and the object's strongest color (1); (64, 64)."""
    difference = picture - seen.background_color
    strength = np.linalg.norm(difference, axis=-1)
    strongest = part & (strength >= np.quantile(strength[part], 0.75))
    direction = np.median(picture[strongest], axis=0) - seen.background_color
    return as_floats(difference @ direction / max(float(direction @ direction), 1.0))


def _mean_of_insides(
    picture: ByteArray, rim: int, smallest: int, score: Callable[[FloatArray, Mask, Mask], float]
) -> float:
    """The mean over the objects of `score(ink inside, inside, whole object)`; NaN where there is none to look into.

    The inside is the object without a rim of so many pixels, and counts from `smallest` pixels on.
    """
    seen = look(picture, silhouettes=True)
    pixels = picture.astype(np.float32)
    scores = []
    for item in seen.objects:
        inside = shrink(item.mask, rim)
        if inside.sum() >= smallest:
            scores.append(score(_ink(pixels, seen, item.mask)[inside], inside, item.mask))
    return float(np.mean(scores)) if scores else float("nan")


def _outline(picture: ByteArray) -> float:
    def empty(ink: FloatArray, inside: Mask, whole: Mask) -> float:
        return float(np.clip(1.0 - ink, 0.0, 1.0).mean())

    return _mean_of_insides(picture, 3, _SMALLEST_INSIDE, empty)


def _outline_on(color: tuple[int, int, int], reach: float, picture: ByteArray) -> float:
    """The outline's score, less the more the background is away from `color`; `reach` away it is 0."""
    background = look(picture, silhouettes=True).background_color
    away = float(np.linalg.norm(background - np.asarray(color)))
    return _outline(picture) * float(np.clip(1.0 - away / reach, 0.0, 1.0))


def _halftone(picture: ByteArray) -> float:
    """Slope of the ink over the dots' pattern inside the shapes, as a share of the slope that `styles` paints."""
    pattern = dots()

    def dotted(ink: FloatArray, inside: Mask, whole: Mask) -> float:
        wanted = pattern[inside] - pattern[inside].mean()
        slope = float(ink @ wanted / (wanted @ wanted))
        return min(max(slope / 0.75, 0.0), 1.0)

    return _mean_of_insides(picture, 2, 16, dotted)


def _wash(picture: ByteArray) -> float:
    """Ink that is lost from the left edge of the shapes to the right one, as a share of what `styles` paints."""

    def thinned(ink: FloatArray, inside: Mask, whole: Mask) -> float:
        columns = np.flatnonzero(whole.any(0))
        place = np.nonzero(inside)[1] / float(columns[-1] - columns[0])
        # Of a shape in one color the ink is the same everywhere: the slope is 0.
        slope = float(ink @ (place - place.mean()) / max(float(place.var()) * len(place), 1e-6))
        return min(max(-slope / WASHED, 0.0), 1.0)

    return _mean_of_insides(picture, 2, 16, thinned)


def _duotone(picture: ByteArray) -> float:
    pixels = picture.astype(np.float32).reshape(-1, 3)
    start, end = np.asarray(BROWN, np.float32), np.asarray(CREAM, np.float32)
    line = end - start
    along = np.clip((pixels - start) @ line / float(line @ line), 0.0, 1.0)
    away = np.linalg.norm(pixels - start - along[:, None] * line, axis=-1)
    return float(np.clip(1.0 - away / 60.0, 0.0, 1.0).mean())


SCORES: dict[str, Score] = {
    "outline": _outline,
    "blueprint": functools.partial(_outline_on, BLUEPRINT_BLUE, 120.0),
    "halftone": _halftone,
    "wash": _wash,
    "duotone": _duotone,
    "neon": functools.partial(_outline_on, NIGHT, 120.0),
}


def style_score(style: str, picture: ByteArray) -> float:
    """The score (0 to 1) of a style for a picture, uint8 (64, 64, 3); NaN if no shape has an inside to measure.

    Raises ValueError for an unknown style.
    """
    if style not in SCORES:
        raise ValueError(f"no score for style {style!r}; known: {', '.join(SCORES)}")
    return SCORES[style](picture)
