"""Measure how clean an image of the bundled pipeline is: plain backgrounds, straight and sharp edges.

`lab.demo.checker` says whether an image shows its prompt; this says how well it is drawn. Each shape of the prompt is
drawn again at the place, size and angle that fit the image best, and the image is compared with that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hnloader.demo.scenes import (
    BACKGROUNDS,
    POSITIONS,
    RADII,
    ByteArray,
    FloatArray,
    Placement,
    Scene,
    SceneObject,
    as_floats,
    coverage,
    pixel_centers,
    signed_distance,
)
from lab.demo.checker import Mask, along, background_color

# Pixels around a fitted shape that belong to it; smears begin farther away.
_MARGIN = 3.0
# Steps of the fit, halved until they are small: pixels for place and radius, radians for the angle.
_STEPS = {"x": 2.0, "y": 2.0, "radius": 1.0, "angle": math.radians(6)}
_HALVINGS = 5


@dataclass(frozen=True)
class Cleanness:
    """Flaws of one image, or their means over several; 0 is perfect.

    Attributes:
        drift: Distance of the background from the color of its name (RGB, 0 to 441). Drawn scenes have about 5.
        smear: Distance of the pixels of the background from its median, at the 99th percentile (RGB, 0 to 441).
        wobble: Mean distance of the edges from those of the fitted shape, in pixels.
        blur: Pixels per pixel of edge that are neither background nor object, beyond those of the fitted shape.
    """

    drift: float
    smear: float
    wobble: float
    blur: float


def cleanness(image: ByteArray, scene: Scene) -> Cleanness:
    """Compare an image, uint8 (64, 64, 3), with its scene."""
    pixels = as_floats(image)
    ground = background_color(image)
    distances, wobbles, blurs = [], [], []
    for item in scene.objects:
        ink = _ink(pixels, ground, item)
        distance = _fitted(ink, item)
        distances.append(distance)
        drawn = coverage(distance)
        near = np.abs(distance) < 2 * _MARGIN
        edge = max(float((np.abs(distance) < 0.5).sum()), 1.0)
        wobbles.append(float(np.abs(ink - drawn)[near].sum()) / edge)
        blurs.append((_between(ink, near) - _between(drawn, near)) / edge)
    around: Mask = np.logical_and.reduce([distance > _MARGIN for distance in distances])
    away = np.linalg.norm(pixels - np.median(pixels[around], axis=0), axis=-1)[around]
    drift = float(np.linalg.norm(np.median(pixels[around], axis=0) - BACKGROUNDS[scene.background]))
    return Cleanness(drift, float(np.quantile(away, 0.99)), float(np.mean(wobbles)), float(np.mean(blurs)))


def mean_cleanness(images: Sequence[ByteArray], scenes: Sequence[Scene]) -> Cleanness:
    """Return the means over images."""
    each = [dataclasses.astuple(cleanness(image, scene)) for image, scene in zip(images, scenes, strict=True)]
    return Cleanness(*(float(value) for value in np.mean(each, axis=0)))


def _between(share: FloatArray, near: Mask) -> float:
    return float(((share > 0.1) & (share < 0.9) & near).sum())


def _ink(pixels: FloatArray, ground: FloatArray, item: SceneObject) -> FloatArray:
    """Return how far each pixel is on the way from the background (0) to the color of the object (1), (64, 64)."""
    xs, ys = pixel_centers(len(pixels))
    x, y = POSITIONS[item.position]
    middle = np.hypot(xs - x, ys - y) < RADII[item.size] / 3
    share = along(pixels, ground, np.median(pixels[middle], axis=0))
    reach = np.hypot(xs - x, ys - y) < 1.5 * RADII[item.size]
    return as_floats(np.where(reach, np.clip(share, 0.0, 1.0), 0.0))


def _fitted(ink: FloatArray, item: SceneObject) -> FloatArray:
    """Return the signed distance of the shape that overlaps best with `ink`."""
    x, y = POSITIONS[item.position]
    best = Placement(x, y, RADII[item.size], 0.0)
    least = _difference(ink, item, best)
    for halving in range(_HALVINGS):
        improved = True
        while improved:
            improved = False
            for field, step in _STEPS.items():
                for sign in (1, -1):
                    moved = getattr(best, field) + sign * step / 2**halving
                    other = dataclasses.replace(best, **{field: moved})
                    difference = _difference(ink, item, other)
                    if difference < least:
                        best, least, improved = other, difference, True
    return signed_distance(item.shape, best)


def _difference(ink: FloatArray, item: SceneObject, placement: Placement) -> float:
    return float(np.abs(ink - coverage(signed_distance(item.shape, placement))).sum())
