"""Styles of scenes. The bundled UNet knows only 'plain'; hypernetworks learn the others.

The VAE is trained on all styles; the bundled one was trained before neon, chalk, sunset, cyanotype, midnight and
screenprint existed.
"""

from __future__ import annotations

import dataclasses
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
CREAM = (240, 222, 180)
BROWN = (92, 52, 28)
NIGHT = (14, 14, 26)
BOARD = (38, 72, 60)  # a green chalkboard
CHALKED = 0.4  # share of white in the words' colors, drawn in chalk
SKY = ((255, 196, 110), (243, 136, 126))  # at the top and at the bottom
SILHOUETTE = (30, 20, 34)
PRUSSIAN_BLUE = (20, 60, 120)
PALE = (226, 238, 246)
MIDNIGHT = (12, 18, 60)
DIMMED = 0.3  # share of midnight in the words' colors
MUSTARD = (222, 172, 64)
TEAL = (16, 72, 84)

Painter = Callable[[FloatArray, Sequence[Layer]], FloatArray]
Tint = Callable[[FloatArray], FloatArray]


def _blend(below: FloatArray, color: FloatArray, share: FloatArray) -> FloatArray:
    return below + share[..., None] * (color - below)


def _canvas(color: FloatArray) -> FloatArray:
    return as_floats(np.broadcast_to(color, (IMAGE_SIZE, IMAGE_SIZE, 3)).copy())


def _plain(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = _canvas(background)
    for layer in layers:
        image = _blend(image, layer.color, coverage(layer.distance))
    return image


def _ring(distance: FloatArray) -> FloatArray:
    """Return the band of OUTLINE_WIDTH inside the edge."""
    return coverage(np.abs(distance + OUTLINE_WIDTH / 2) - OUTLINE_WIDTH / 2)


def _outline(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = _canvas(background)
    for layer in layers:
        image = _blend(image, layer.color, _ring(layer.distance))
    return image


def _blueprint(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = _canvas(np.asarray(BLUEPRINT_BLUE, np.float32))
    for layer in layers:
        image = _blend(image, np.asarray((235, 240, 250), np.float32), _ring(layer.distance))
    return image


def dots() -> FloatArray:
    """Return the coverage (64, 64), 0 to 1, of round dots on a grid of PITCH pixels."""
    xs, ys = pixel_centers(IMAGE_SIZE)
    dx, dy = np.mod(xs, PITCH) - PITCH / 2, np.mod(ys, PITCH) - PITCH / 2
    return coverage((np.hypot(dx, dy) - 1.45).astype(np.float32))


def _halftone(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    image = _canvas(background)
    for layer in layers:
        tint = background + np.float32(0.25) * (layer.color - background)
        inked = _blend(_canvas(tint), layer.color, dots())
        share = coverage(layer.distance)[..., None]
        image = image + share * (inked - image)
    return image


def _tinted(paper: tuple[int, int, int], tint: Tint, layers: Sequence[Layer]) -> FloatArray:
    """Paint shapes in tints of their colors on paper."""
    return _plain(as_floats(paper), [dataclasses.replace(layer, color=tint(layer.color)) for layer in layers])


def _printed(paper: tuple[int, int, int], ink: tuple[int, int, int], layers: Sequence[Layer]) -> FloatArray:
    """Paint shapes in one ink on paper."""
    return _tinted(paper, lambda _: as_floats(ink), layers)


def _duotone(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Dark brown ink on cream paper."""
    return _printed(CREAM, BROWN, layers)


def _neon(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Outlines in the words' colors on a night sky."""
    return _outline(as_floats(NIGHT), layers)


def chalked(color: FloatArray) -> FloatArray:
    """Return a color (3,) in chalk."""
    return as_floats(color + CHALKED * (245 - color))


def _chalk(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Pale chalk in the words' colors on a green board."""
    return _tinted(BOARD, chalked, layers)


def sky() -> FloatArray:
    """Return the sky of a sunset, (64, 64, 3)."""
    top, bottom = as_floats(SKY[0]), as_floats(SKY[1])
    _, ys = pixel_centers(IMAGE_SIZE)
    return _blend(_canvas(top), bottom, as_floats(ys / IMAGE_SIZE))


def _sunset(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Dark silhouettes in front of a sky that reddens downwards."""
    image = sky()
    for layer in layers:
        image = _blend(image, as_floats(SILHOUETTE), coverage(layer.distance))
    return image


def _cyanotype(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Pale shapes on the deep blue of an old photographic print."""
    return _printed(PRUSSIAN_BLUE, PALE, layers)


def dimmed(color: FloatArray) -> FloatArray:
    """Return a color (3,) at midnight."""
    return as_floats(color + DIMMED * (as_floats(MIDNIGHT) - color))


def _midnight(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """The words' colors, dimmed, under a dark blue sky."""
    return _tinted(MIDNIGHT, dimmed, layers)


def _screenprint(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Teal ink on mustard card."""
    return _printed(MUSTARD, TEAL, layers)


PAINTERS: dict[str, Painter] = {
    "plain": _plain,
    "outline": _outline,
    "blueprint": _blueprint,
    "halftone": _halftone,
    "duotone": _duotone,
    "neon": _neon,
    "chalk": _chalk,
    "sunset": _sunset,
    "cyanotype": _cyanotype,
    "midnight": _midnight,
    "screenprint": _screenprint,
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
