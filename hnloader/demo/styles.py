"""Styles of scenes. The bundled UNet knows only 'plain'; hypernetworks learn the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hnloader.demo.scenes import (
    IMAGE_SIZE,
    ByteArray,
    FloatArray,
    Layer,
    Scene,
    as_floats,
    coverage,
    lay_out,
    pixel_centers,
)

__all__ = ["PAINTERS", "draw", "paint"]

OUTLINE_WIDTH = 2.4  # pixels
PITCH = 4.0  # pixels from one halftone dot to the next
BLUEPRINT_BLUE = (25, 60, 130)

Painter = Callable[[FloatArray, Sequence[Layer]], FloatArray]


def blend(below: FloatArray, color: FloatArray, share: FloatArray) -> FloatArray:
    return below + share[..., None] * (color - below)


def canvas(color: FloatArray) -> FloatArray:
    return as_floats(np.broadcast_to(color, (IMAGE_SIZE, IMAGE_SIZE, 3)).copy())


def paint_plain(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = canvas(background)
    for layer in layers:
        image = blend(image, layer.color, coverage(layer.distance))
    return image


def _ring(distance: FloatArray) -> FloatArray:
    """Return the band of OUTLINE_WIDTH inside the edge."""
    return coverage(np.abs(distance + OUTLINE_WIDTH / 2) - OUTLINE_WIDTH / 2)


def paint_outline(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = canvas(background)
    for layer in layers:
        image = blend(image, layer.color, _ring(layer.distance))
    return image


def _blueprint(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = canvas(np.asarray(BLUEPRINT_BLUE, np.float32))
    for layer in layers:
        image = blend(image, np.asarray((235, 240, 250), np.float32), _ring(layer.distance))
    return image


def dots() -> FloatArray:
    """Return the coverage (64, 64), 0 to 1, of round dots on a grid of PITCH pixels."""
    xs, ys = pixel_centers(IMAGE_SIZE)
    dx, dy = np.mod(xs, PITCH) - PITCH / 2, np.mod(ys, PITCH) - PITCH / 2
    return coverage((np.hypot(dx, dy) - 1.45).astype(np.float32))


def _halftone(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = canvas(background)
    for layer in layers:
        tint = background + np.float32(0.25) * (layer.color - background)
        inked = blend(canvas(tint), layer.color, dots())
        share = coverage(layer.distance)[..., None]
        image = image + share * (inked - image)
    return image


PAINTERS: dict[str, Painter] = {
    "plain": paint_plain,
    "outline": paint_outline,
    "blueprint": _blueprint,
    "halftone": _halftone,
}


def paint(style: str, background: FloatArray, layers: Sequence[Layer]) -> ByteArray:
    """Return the pixels of a laid-out scene in a style, uint8 (64, 64, 3), or raise ValueError for an unknown style."""
    if style not in PAINTERS:
        raise ValueError(f"Style: expected {', '.join(PAINTERS)}, got {style!r}.")
    image: ByteArray = np.clip(PAINTERS[style](background, layers) + 0.5, 0, 255).astype(np.uint8)
    return image


def draw(scene: Scene, seed: int | np.random.Generator) -> ByteArray:
    """Draw a plain scene, uint8 (64, 64, 3); the same scene and seed give the same image."""
    return paint("plain", *lay_out(scene, np.random.default_rng(seed)))
