"""Drawn scenes: the images and captions of the bundled pipeline.

A scene is one or two shapes on a plain background. Its words (shape, color, size, position, background) and a seed
determine it; the seed moves, turns and tints it a little. Images are 64 x 64 RGB, antialiased.

Shapes are drawn from signed distances (pixels, negative inside), which the styles (`hnloader.demo.styles`) use, too.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Split = Literal["train", "validation"]

IMAGE_SIZE = 64

SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 210, 40),
    "purple": (140, 50, 180),
    "orange": (245, 130, 25),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (192, 192, 192),
    "cyan": (170, 230, 240),
}
# Centers in pixels as (x, y).
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (17.0, 17.0),
    "top right": (47.0, 17.0),
    "bottom left": (17.0, 47.0),
    "bottom right": (47.0, 47.0),
    "center": (32.0, 32.0),
}
CORNERS = tuple(position for position in POSITIONS if position != "center")
RADII = {"small": 9.5, "large": 13.5}

_VALIDATION_SHARE = 0.22


@dataclass(frozen=True)
class SceneObject:
    """One shape and its words."""

    shape: str
    color: str
    size: str
    position: str

    def phrase(self) -> str:
        """Return the words, such as 'a large red circle at the top left'."""
        where = "in the center" if self.position == "center" else f"at the {self.position}"
        return f"a {self.size} {self.color} {self.shape} {where}"


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background."""

    objects: tuple[SceneObject, ...]
    background: str

    def caption(self) -> str:
        """Return all words, such as 'a large red circle at the top left on a white background'."""
        return " and ".join(item.phrase() for item in self.objects) + f" on a {self.background} background"


@dataclass(frozen=True)
class Placement:
    """Place of a shape: center and radius in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Layer:
    """A shape without pixels: its signed distance (64, 64) and its RGB color (0 to 255)."""

    distance: FloatArray
    color: FloatArray
    placement: Placement


def as_floats(values: object) -> FloatArray:
    """Return values as a float32 array."""
    return np.asarray(values, dtype=np.float32)


@lru_cache(maxsize=4)
def pixel_centers(size: int) -> tuple[FloatArray, FloatArray]:
    """Return the x and the y of the center of each pixel."""
    axis = np.arange(size, dtype=np.float32) + np.float32(0.5)
    xs, ys = np.meshgrid(axis, axis)
    return xs, ys


def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """Return the polygon of a shape with radius 1, y pointing down, its centroid at the origin."""
    if shape == "square":
        return ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88))
    if shape == "triangle":
        turns = [-0.5 * math.pi + step * 2 * math.pi / 3 for step in range(3)]
        return tuple((1.15 * math.cos(turn), 1.15 * math.sin(turn)) for turn in turns)
    if shape == "star":
        points = []
        for step in range(10):
            radius = 1.16 if step % 2 == 0 else 0.51
            turn = -0.5 * math.pi + step * math.pi / 5
            points.append((radius * math.cos(turn), radius * math.sin(turn)))
        return tuple(points)
    raise ValueError(f"Shape: expected {', '.join(SHAPES)}, got {shape!r}.")


def signed_distance(shape: str, placement: Placement, size: int = IMAGE_SIZE) -> FloatArray:
    """Return the distance of every pixel to the edge of a shape, negative inside; float32 (size, size), in pixels."""
    xs, ys = pixel_centers(size)
    xs, ys = xs - np.float32(placement.x), ys - np.float32(placement.y)
    if shape == "circle":
        return as_floats(np.hypot(xs, ys) - placement.radius)
    cosine, sine = math.cos(placement.angle), math.sin(placement.angle)
    corners = [
        (placement.radius * (cosine * x - sine * y), placement.radius * (sine * x + cosine * y))
        for x, y in _corners(shape)
    ]
    nearest = np.full_like(xs, np.inf)
    inside = np.zeros(xs.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = bx - ax, by - ay
        along = np.clip(((xs - ax) * dx + (ys - ay) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        nearest = np.minimum(nearest, (xs - ax - along * dx) ** 2 + (ys - ay - along * dy) ** 2)
        if dy != 0.0:
            # Even-odd rule: a ray to the right crosses this edge.
            inside ^= ((ay > ys) != (by > ys)) & (xs < ax + (ys - ay) * (dx / dy))
    distance = np.sqrt(nearest)
    return as_floats(np.where(inside, -distance, distance))


def coverage(distance: FloatArray) -> FloatArray:
    """Return the antialiased share (0 to 1) of each pixel inside a signed distance."""
    return as_floats(np.clip(0.5 - distance, 0.0, 1.0))


def lay_out(scene: Scene, rng: np.random.Generator) -> tuple[FloatArray, list[Layer]]:
    """Return the background color (3,) and the layers of a scene; `rng` moves, turns and tints them a little."""
    wander = 2.0 if len(scene.objects) == 1 else 1.0
    background = np.asarray(BACKGROUNDS[scene.background], np.float32) + rng.uniform(-5, 5, 3).astype(np.float32)
    layers = []
    for item in scene.objects:
        x, y = POSITIONS[item.position]
        x += float(rng.uniform(-wander, wander))
        y += float(rng.uniform(-wander / 2, wander))
        radius = RADII[item.size] * float(rng.uniform(0.94, 1.04))
        # Within the frame: the tallest shape reaches 1.16 radii from its center.
        reach = 1.16 * radius
        x, y = (min(max(center, reach), IMAGE_SIZE - reach) for center in (x, y))
        placement = Placement(x, y, radius, math.radians(float(rng.uniform(-6, 6))))
        color = np.asarray(COLORS[item.color], np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)
        layers.append(Layer(signed_distance(item.shape, placement), color, placement))
    return background, layers


def is_validation(item: SceneObject, background: str) -> bool:
    """Return True for the words that are not trained on, about 22 % of all 960 combinations."""
    words = "|".join((item.shape, item.color, item.size, item.position, background))
    digest = hashlib.sha256(words.encode()).digest()
    return int.from_bytes(digest[:4], "big") < _VALIDATION_SHARE * 2**32


def combinations(split: Split) -> Iterator[tuple[SceneObject, str]]:
    """Yield every (object, background) of a split in a fixed order."""
    for shape, color, size, position, background in itertools.product(SHAPES, COLORS, SIZES, POSITIONS, BACKGROUNDS):
        item = SceneObject(shape, color, size, position)
        if is_validation(item, background) == (split == "validation"):
            yield item, background


@lru_cache(maxsize=2)
def _by_background(split: Split) -> dict[str, tuple[SceneObject, ...]]:
    groups: dict[str, list[SceneObject]] = {background: [] for background in BACKGROUNDS}
    for item, background in combinations(split):
        groups[background].append(item)
    return {background: tuple(items) for background, items in groups.items()}


def random_scene(rng: np.random.Generator, objects: int = 1, split: Split = "train") -> Scene:
    """Return a scene with objects of a split; two objects are in different corners."""
    background = tuple(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    pool = _by_background(split)[background]
    if objects == 1:
        return Scene((pool[int(rng.integers(len(pool)))],), background)
    pool = tuple(item for item in pool if item.position in CORNERS)
    first = pool[int(rng.integers(len(pool)))]
    others = [item for item in pool if item.position != first.position]
    return Scene((first, others[int(rng.integers(len(others)))]), background)
