"""Measure a style of `hnloader.demo.random_styles` in an image from its pixels: 0 (far away) to 1 (as drawn)."""

from __future__ import annotations

import math

import numpy as np

from hnloader.demo.random_styles import RandomStyle
from hnloader.demo.scenes import BACKGROUNDS, COLORS, POSITIONS, ByteArray, FloatArray, Scene, as_floats
from lab.demo.checker import Mask, look, shrink

# RGB distance from the color of a style at which the score is 0; as in `style_scores`.
_REACH = 120.0
# An inside of fewer pixels says nothing of an outline.
_SMALLEST_INSIDE = 6


def random_style_score(style: RandomStyle, image: ByteArray, scene: Scene) -> float:
    """Return the score (0 to 1): that of the ground, times that of the ink, times how empty an outline is."""
    pixels = image.astype(np.float32)
    seen = look(image, silhouettes=True)
    if not seen.objects:
        return 0.0
    ground = style.ground(as_floats(BACKGROUNDS[scene.background]))
    shapes: Mask = np.logical_or.reduce([item.mask for item in seen.objects])
    around = shrink(~shapes, 2)
    score = _near(np.linalg.norm(pixels - ground, axis=-1)[around].mean())
    parts = []
    for item in seen.objects:
        rows, columns = np.nonzero(item.mask)
        center = float(columns.mean()), float(rows.mean())
        wanted = min(scene.objects, key=lambda each: math.dist(center, POSITIONS[each.position]))
        parts.append(_inked(style, pixels, ground, item.mask, as_floats(COLORS[wanted.color])))
    return score * float(np.mean(parts))


def _inked(style: RandomStyle, pixels: FloatArray, ground: FloatArray, mask: Mask, color: FloatArray) -> float:
    ink = style.inked(color)
    inside = shrink(mask, 3)
    if not style.outline:
        core = shrink(mask, 1) if shrink(mask, 1).any() else mask
        return _near(float(np.linalg.norm(np.median(pixels[core], axis=0) - ink)))
    away = np.linalg.norm(pixels - ground, axis=-1)
    strongest = mask & (away >= np.quantile(away[mask], 0.75))
    near = _near(float(np.linalg.norm(np.median(pixels[strongest], axis=0) - ink)))
    if inside.sum() < _SMALLEST_INSIDE:
        return near
    line = ink - ground[inside]
    along = ((pixels[inside] - ground[inside]) * line).sum(-1) / np.maximum((line * line).sum(-1), 1.0)
    return near * float(np.clip(1.0 - along, 0.0, 1.0).mean())


def _near(distance: float) -> float:
    return float(np.clip(1.0 - distance / _REACH, 0.0, 1.0))
