"""Evaluate images of a style by their pixels: whether they show the style, and whether they keep the prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hnloader.demo.scenes import COLORS, ByteArray, FloatArray, Scene, as_floats
from lab.demo.checker import Mask, look, shrink
from lab.demo.study_styles import chalked, dimmed
from lab.demo.subjects import Subject

# From this score on an image counts as showing the style; plain images have about 0, painted ones about 1.
SHOWN = 0.5
# RGB distance: thin lines are washed out by antialiasing more than the surfaces of plain images.
_COLOR_LIMIT = 110.0


@dataclass(frozen=True)
class Coloring:
    """The colors of the prompt in a style.

    Attributes:
        tint: what it makes of a color (3,).
        filled: the color is in the inside of the shapes; else it is what stands out from the background.
    """

    tint: Callable[[FloatArray], FloatArray]
    filled: bool


# The other styles leave no colors.
COLORINGS = {
    "chalk": Coloring(chalked, filled=True),
    "midnight": Coloring(dimmed, filled=True),
    "neon": Coloring(as_floats, filled=False),
    "outline": Coloring(as_floats, filled=False),
}
# RGB distance between the nearest two of a style's colors, below which it leaves no colors.
_LEAST_DISTANCE = 40.0


@dataclass(frozen=True)
class Row:
    """Images of one style made in one way.

    Attributes:
        way: "hypernetwork 0.5", "lora 1", "embedding", ...; "drawn, VAE" is the drawn scenes through the pipeline's
            VAE and back: what could be reached at best.
        shown: share of the images that show the style.
        held: share that shows the prompt's shape and position, and its color where the style leaves it.
        score: mean style score, 0 to 1.
    """

    style: str
    way: str
    shown: float
    held: float
    score: float


def coloring_of(subject: Subject) -> Coloring | None:
    """Return the colors of the prompt in a style, or None if it leaves none."""
    if subject.style is None:
        return COLORINGS.get(subject.name)
    tints = [subject.style.inked(as_floats(color)) for color in COLORS.values()]
    nearest = min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(tints, 2))
    return Coloring(subject.style.inked, filled=not subject.style.outline) if nearest >= _LEAST_DISTANCE else None


def evaluate(subject: Subject, way: str, scenes: Sequence[Scene], images: Sequence[ByteArray]) -> Row:
    """Evaluate images of scenes by their pixels."""
    pairs = list(zip(images, scenes, strict=True))
    scores = [subject.score(image, scene) for image, scene in pairs]
    coloring = coloring_of(subject) if way != "without" else None
    held = [_holds(image, scene, coloring) for image, scene in pairs]
    shown = [score >= SHOWN for score in scores]
    return Row(subject.name, way, float(np.mean(shown)), float(np.mean(held)), float(np.mean(scores)))


def _holds(image: ByteArray, scene: Scene, coloring: Coloring | None) -> bool:
    """Return True if each object has its shape, position and color."""
    seen = look(image, silhouettes=True)
    if len(seen.objects) != len(scene.objects):
        return False
    for wanted in scene.objects:
        found = next((item for item in seen.objects if item.position == wanted.position), None)
        if found is None or found.shape != wanted.shape:
            return False
        if coloring is not None and _color(image, found.mask, seen.background_color, coloring) != wanted.color:
            return False
    return True


def _color(image: ByteArray, mask: Mask, background: FloatArray, coloring: Coloring) -> str | None:
    """Return the name of the color of an object, or None if it is close to none."""
    pixels = image.astype(np.float32)
    if coloring.filled:
        inside = shrink(mask, 3)
        color = np.median(pixels[inside if inside.any() else mask], axis=0)
    else:
        strength = np.linalg.norm(pixels - background, axis=-1)
        color = np.median(pixels[mask & (strength >= np.quantile(strength[mask], 0.7))], axis=0)
    away = {name: float(np.linalg.norm(color - coloring.tint(as_floats(value)))) for name, value in COLORS.items()}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < _COLOR_LIMIT else None
