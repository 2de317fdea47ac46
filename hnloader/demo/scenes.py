"""Scenes that the program draws itself: the images and captions of the bundled pipeline.

A scene is one or two shapes on a plain background. Everything about it follows from its words (shape, color, size,
position, background) and from a seed, which moves, turns and tints it a little. Images are 64 x 64 RGB, antialiased.

Shapes are drawn from signed distances (pixels, negative inside), so that a style (`hnloader.demo.styles`) can use the
distance to the edge too.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Split = Literal["train", "held_out"]

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

_HELD_OUT_SHARE = 0.22


@dataclass(frozen=True)
class SceneObject:
    """One shape and its words."""

    shape: str
    color: str
    size: str
    position: str

    def phrase(self) -> str:
        """The words, e.g. 'a large red circle at the top left'."""
        where = "in the center" if self.position == "center" else f"at the {self.position}"
        return f"a {self.size} {self.color} {self.shape} {where}"


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background."""

    objects: tuple[SceneObject, ...]
    background: str

    def caption(self) -> str:
        """All words, e.g. 'a large red circle at the top left on a white background'."""
        return " and ".join(item.phrase() for item in self.objects) + f" on a {self.background} background"


@dataclass(frozen=True)
class Placement:
    """Where and how large a shape is drawn: center and radius in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Layer:
    """One drawn object before it gets its pixels: its signed distance (64, 64) and its RGB color (0 to 255)."""

    distance: FloatArray
    color: FloatArray
    placement: Placement


def as_floats(values: object) -> FloatArray:
    """`values` as a float32 array."""
    return np.asarray(values, dtype=np.float32)


@lru_cache(maxsize=4)
def pixel_centers(size: int) -> tuple[FloatArray, FloatArray]:
    """Return the x and the y of the center of each pixel."""
    axis = np.arange(size, dtype=np.float32) + np.float32(0.5)
    xs, ys = np.meshgrid(axis, axis)
    return xs, ys


def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """The polygon of a shape for radius 1, y pointing down, its centroid at the origin."""
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
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def signed_distance(shape: str, placement: Placement, size: int = IMAGE_SIZE) -> FloatArray:
    """Distance of every pixel center to the shape's edge in pixels, negative inside; float32 (size, size)."""
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
    """Antialiased share (0 to 1) of each pixel on the negative side of a signed distance."""
    return as_floats(np.clip(0.5 - distance, 0.0, 1.0))


def lay_out(scene: Scene, rng: np.random.Generator) -> tuple[FloatArray, list[Layer]]:
    """The background color (3,) and the layers of a scene, moved, turned and tinted a little by `rng`."""
    wander = 2.0 if len(scene.objects) == 1 else 1.0
    background = np.asarray(BACKGROUNDS[scene.background], np.float32) + rng.uniform(-5, 5, 3).astype(np.float32)
    layers = []
    for item in scene.objects:
        x, y = POSITIONS[item.position]
        x += float(rng.uniform(-wander, wander))
        y += float(rng.uniform(-wander / 2, wander))
        radius = RADII[item.size] * float(rng.uniform(0.94, 1.04))
        # Kept in the frame: the tallest shape reaches 1.16 radii from its center.
        reach = 1.16 * radius
        x, y = (min(max(center, reach), IMAGE_SIZE - reach) for center in (x, y))
        placement = Placement(x, y, radius, math.radians(float(rng.uniform(-6, 6))))
        color = np.asarray(COLORS[item.color], np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)
        layers.append(Layer(signed_distance(item.shape, placement), color, placement))
    return background, layers


def is_held_out(item: SceneObject, background: str) -> bool:
    """Whether this combination of words is kept from training (about 22 % of all 960)."""
    words = "|".join((item.shape, item.color, item.size, item.position, background))
    digest = hashlib.sha256(words.encode()).digest()
    return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32


def combinations(split: Split) -> Iterator[tuple[SceneObject, str]]:
    """Every (object, background) of one split, in a fixed order."""
    for shape, color, size, position, background in itertools.product(SHAPES, COLORS, SIZES, POSITIONS, BACKGROUNDS):
        item = SceneObject(shape, color, size, position)
        if is_held_out(item, background) == (split == "held_out"):
            yield item, background


@lru_cache(maxsize=2)
def _by_background(split: Split) -> dict[str, tuple[SceneObject, ...]]:
    groups: dict[str, list[SceneObject]] = {background: [] for background in BACKGROUNDS}
    for item, background in combinations(split):
        groups[background].append(item)
    return {background: tuple(items) for background, items in groups.items()}


def random_scene(rng: np.random.Generator, objects: int = 1, split: Split = "train") -> Scene:
    """A scene all of whose objects belong to `split`; two objects stand in different corners."""
    background = tuple(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    pool = _by_background(split)[background]
    if objects == 1:
        return Scene((pool[int(rng.integers(len(pool)))],), background)
    pool = tuple(item for item in pool if item.position in CORNERS)
    first = pool[int(rng.integers(len(pool)))]
    others = [item for item in pool if item.position != first.position]
    return Scene((first, others[int(rng.integers(len(others)))]), background)


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """`count` different scenes from words that training never combined; every fourth has two objects."""
    rng = np.random.default_rng(seed)
    scenes: dict[str, Scene] = {}
    for _ in range(count * 200):
        if len(scenes) == count:
            break
        scene = random_scene(rng, objects=2 if len(scenes) % 4 == 3 else 1, split="held_out")
        scenes.setdefault(scene.caption(), scene)
    if len(scenes) < count:
        raise ValueError(f"only {len(scenes)} different held-out scenes were found; asked for {count}")
    return list(scenes.values())


_PHRASE = re.compile(rf"a ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) (?:at|in) the ([a-z ]+)")


def parse_caption(caption: str) -> Scene | None:
    """The scene whose `Scene.caption` this is; None when it is no such caption."""
    words, on, background = caption.removesuffix(" background").rpartition(" on a ")
    found = [_PHRASE.fullmatch(phrase) for phrase in words.split(" and ")]
    if not on or background not in BACKGROUNDS or not 1 <= len(found) <= 2:
        return None
    objects = [SceneObject(match[3], match[2], match[1], match[4]) for match in found if match is not None]
    scene = Scene(tuple(objects), background)
    return scene if scene.caption() == caption and all(item.position in POSITIONS for item in objects) else None


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene as training shows it: now and then a word is left out or spelled the British way."""
    phrases = []
    for item in scene.objects:
        phrase = item.phrase()
        if rng.random() < 0.08:
            phrase = phrase.replace(f"{item.size} ", "")
        if rng.random() < 0.04:
            phrase = phrase.split(" at the ")[0].split(" in the ")[0]
        phrases.append(phrase)
    caption = " and ".join(phrases)
    if rng.random() > 0.08:
        caption += f" on a {scene.background} background"
    if rng.random() < 0.2:
        caption = caption.replace("gray", "gray").replace("center", "centre")
    return caption
