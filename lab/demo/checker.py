"""Describe an image from its pixels alone, and compare it with a scene.

The background is the color of the frame's edge; pixels of other colors form connected objects. The shape is found by
overlap: every shape of `hnloader.demo.scenes` is drawn at the object's centroid with the object's area, and the one
that overlaps best is the answer, or none if even that overlaps badly. Color, size and position are the nearest known
ones, or none if they are too far away.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hnloader.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    POSITIONS,
    RADII,
    SHAPES,
    ByteArray,
    FloatArray,
    Placement,
    Scene,
    SceneObject,
    coverage,
    signed_distance,
)

Mask = NDArray[np.bool_]

ATTRIBUTES = ("count", "shape", "color", "size", "position", "background")

# RGB distances (0 to 441): what counts as different from the background, and how far a color may be from its name.
_DIFFERENT = 45.0
_COLOR_LIMIT = 75.0
# Pixels: how far an object may be from its position, and the smallest area that is an object.
_POSITION_LIMIT = 7.0
_SMALLEST_OBJECT = 20
# A radius may be off by this share; the least overlap of a shape.
_SIZE_LIMIT = 0.3
_OVERLAP_LIMIT = 0.72
# Area of a shape with radius 1, by the polygons of `scenes`.
_UNIT_AREA = {
    "circle": math.pi,
    "square": (2 * 0.88) ** 2,
    "triangle": 0.75 * math.sqrt(3) * 1.15**2,
    "star": 5 * 1.16 * 0.51 * math.sin(math.pi / 5),
}
_ANGLES = tuple(math.radians(degrees) for degrees in (-5.0, 0.0, 5.0))


@dataclass(frozen=True)
class SeenObject:
    """The description of one object; None for what is unclear. `mask` is bool (64, 64)."""

    shape: str | None
    color: str | None
    size: str | None
    position: str | None
    overlap: float
    mask: Mask


@dataclass(frozen=True)
class Seen:
    """All objects of an image and the name of its background (None: not a known one)."""

    objects: tuple[SeenObject, ...]
    background: str | None
    background_color: FloatArray


@dataclass(frozen=True)
class Verdict:
    """The attributes that an image gets right; with two objects, in both."""

    count: bool
    shape: bool
    color: bool
    size: bool
    position: bool
    background: bool

    @property
    def right(self) -> bool:
        """True if the image shows exactly the scene."""
        return all(getattr(self, attribute) for attribute in ATTRIBUTES)


def background_color(image: ByteArray) -> FloatArray:
    """Median color (3,) of the two outermost rows and columns."""
    edge = np.concatenate([image[:2], image[-2:], image[:, :2].swapaxes(0, 1), image[:, -2:].swapaxes(0, 1)])
    median: FloatArray = np.median(edge.reshape(-1, 3), axis=0).astype(np.float32)
    return median


def along(image: FloatArray, background: FloatArray, color: FloatArray) -> FloatArray:
    """Return the place of each pixel, (64, 64), on the way from the background (0) to a color (1)."""
    way = color - background
    place: FloatArray = ((image - background) @ way / max(float(way @ way), 1.0)).astype(np.float32)
    return place


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    size = mask.shape[0]
    shifts = itertools.product(range(3), repeat=2)
    grown: Mask = np.logical_or.reduce([padded[down : down + size, right : right + size] for down, right in shifts])
    return grown


def shrink(mask: Mask, pixels: int) -> Mask:
    """Take `pixels` off every edge of a mask (square neighborhood)."""
    outside = ~mask
    for _ in range(pixels):
        outside = _grown(outside)
    return ~outside


def _region(mask: Mask, start: tuple[int, int]) -> Mask:
    """Return the 4-connected part of `mask` that contains `start`."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    found[start] = True
    waiting = deque([start])
    while waiting:
        row, column = waiting.popleft()
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= near[0] < height and 0 <= near[1] < width and mask[near] and not found[near]:
                found[near] = True
                waiting.append(near)
    return found


def solid(mask: Mask) -> Mask:
    """Close gaps of up to 4 pixels and fill what is enclosed: the silhouette of an outline, of dots or of stripes."""
    padded = np.pad(mask, 4)
    closed = shrink(_grown(_grown(padded)), 2)
    outside = _region(~closed, (0, 0))
    return ~outside[4:-4, 4:-4]


def _objects(mask: Mask) -> list[Mask]:
    """Return the connected parts, largest first. A part of half the image or more is two that touch, and is cut."""
    rest = mask.copy()
    parts: list[Mask] = []
    middle = IMAGE_SIZE // 2
    while rest.any():
        row, column = np.unravel_index(int(np.argmax(rest)), rest.shape)
        part = _region(rest, (int(row), int(column)))
        rest &= ~part
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        pieces = [part]
        for axis, extent in enumerate((rows, columns)):
            if extent[-1] - extent[0] > middle:
                half = np.indices(part.shape)[axis] < middle
                pieces = [piece & side for piece in pieces for side in (half, ~half)]
        parts.extend(piece for piece in pieces if piece.sum() >= _SMALLEST_OBJECT)
    return sorted(parts, key=lambda part: -int(part.sum()))


def _nearest(color: FloatArray, names: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(color - np.asarray(known))) for name, known in names.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] < _COLOR_LIMIT else None


def _best_shape(share: FloatArray, x: float, y: float) -> tuple[str, float, float]:
    """Return the shape that overlaps best with `share` (64, 64), its radius, and the overlap (0 to 1)."""
    best = ("", 0.0, 0.0)
    for shape in SHAPES:
        radius = math.sqrt(float(share.sum()) / _UNIT_AREA[shape])
        for angle in (0.0,) if shape == "circle" else _ANGLES:
            template = coverage(signed_distance(shape, Placement(x, y, radius, angle)))
            overlap = float(np.minimum(share, template).sum() / np.maximum(share, template).sum())
            if overlap > best[2]:
                best = (shape, radius, overlap)
    return best


def _identify(image: FloatArray, part: Mask, background: FloatArray, silhouette: bool) -> SeenObject:
    around = _grown(part)
    core = part if silhouette or not shrink(part, 1).any() else shrink(part, 1)
    color = np.median(image[core], axis=0).astype(np.float32)
    if silhouette:
        share = part.astype(np.float32)
    else:
        # Position of each pixel's color between background (0) and object (1): undoes the antialiasing.
        share = np.clip(along(image, background, color), 0.0, 1.0)
        share = np.where(around, share, 0.0).astype(np.float32)
    total = max(float(share.sum()), 1e-6)
    centers = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    x, y = float((share.sum(0) * centers).sum() / total), float((share.sum(1) * centers).sum() / total)
    shape, radius, overlap = _best_shape(share, x, y)
    away = {position: math.hypot(x - px, y - py) for position, (px, py) in POSITIONS.items()}
    position = min(away, key=away.__getitem__)
    off = {size: abs(radius / known - 1.0) for size, known in RADII.items()}
    size = min(off, key=off.__getitem__)
    return SeenObject(
        shape=shape if overlap > _OVERLAP_LIMIT else None,
        color=_nearest(color, COLORS),
        size=size if off[size] < _SIZE_LIMIT else None,
        position=position if away[position] < _POSITION_LIMIT else None,
        overlap=overlap,
        mask=part,
    )


def look(image: ByteArray, silhouettes: bool = False) -> Seen:
    """Describe an image.

    Args:
        image: uint8 (64, 64, 3), RGB.
        silhouettes: Use filled outlines instead of colors, for images in a style (outline, dots, stripes).

    Raises:
        ValueError: another shape or dtype.
    """
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(f"Image: expected uint8 ({IMAGE_SIZE}, {IMAGE_SIZE}, 3), got {image.dtype} {image.shape}.")
    background = background_color(image)
    pixels = image.astype(np.float32)
    mask: Mask = np.linalg.norm(pixels - background, axis=-1) > _DIFFERENT
    if silhouettes:
        mask = solid(mask)
    objects = tuple(_identify(pixels, part, background, silhouettes) for part in _objects(mask))
    return Seen(objects, _nearest(background, BACKGROUNDS), background)


def _pairings(seen: Seen, scene: Scene) -> list[list[tuple[SceneObject, SeenObject]]]:
    """Every way to match the scene's objects with as many seen ones."""
    count = len(scene.objects)
    return [list(zip(scene.objects, chosen, strict=True)) for chosen in itertools.permutations(seen.objects[:3], count)]


def compare(seen: Seen, scene: Scene) -> Verdict:
    """Compare a description with a scene, with the matching of objects that gets the most right."""

    def verdict_of(pairs: list[tuple[SceneObject, SeenObject]]) -> Verdict:
        def both(attribute: str) -> bool:
            return bool(pairs) and all(getattr(a, attribute) == getattr(b, attribute) for a, b in pairs)

        return Verdict(
            count=len(seen.objects) == len(scene.objects),
            shape=both("shape"),
            color=both("color"),
            size=both("size"),
            position=both("position"),
            background=seen.background == scene.background,
        )

    verdicts = [verdict_of(pairs) for pairs in _pairings(seen, scene)] or [verdict_of([])]
    return max(verdicts, key=lambda verdict: sum(getattr(verdict, attribute) for attribute in ATTRIBUTES))


def check(image: ByteArray, scene: Scene) -> Verdict:
    """Compare a plain image, uint8 (64, 64, 3), with a scene."""
    return compare(look(image), scene)


def holds(image: ByteArray, scene: Scene) -> bool:
    """Return True if shapes and positions match the scene, in any style."""
    verdict = compare(look(image, silhouettes=True), scene)
    return verdict.count and verdict.shape and verdict.position
