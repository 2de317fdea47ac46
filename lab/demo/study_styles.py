"""More styles of scenes, for the style study; importing this module adds them to `PAINTERS`.

The VAE of the bundled pipeline was trained before neon, chalk, sunset, cyanotype, midnight and screenprint existed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from hnloader.demo.scenes import IMAGE_SIZE, FloatArray, Layer, as_floats, coverage, pixel_centers
from hnloader.demo.styles import PAINTERS, blend, canvas, paint, paint_outline, paint_plain

__all__ = ["PAINTERS", "paint"]

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
Tint = Callable[[FloatArray], FloatArray]


def _tinted(paper: tuple[int, int, int], tint: Tint, layers: Sequence[Layer]) -> FloatArray:
    """Paint shapes in tints of their colors on paper."""
    return paint_plain(as_floats(paper), [dataclasses.replace(layer, color=tint(layer.color)) for layer in layers])


def _printed(paper: tuple[int, int, int], ink: tuple[int, int, int], layers: Sequence[Layer]) -> FloatArray:
    """Paint shapes in one ink on paper."""
    return _tinted(paper, lambda _: as_floats(ink), layers)


def _duotone(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Dark brown ink on cream paper."""
    return _printed(CREAM, BROWN, layers)


def _neon(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Outlines in the words' colors on a night sky."""
    return paint_outline(as_floats(NIGHT), layers)


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
    return blend(canvas(top), bottom, as_floats(ys / IMAGE_SIZE))


def _sunset(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Dark silhouettes in front of a sky that reddens downwards."""
    image = sky()
    for layer in layers:
        image = blend(image, as_floats(SILHOUETTE), coverage(layer.distance))
    return image


def _cyanotype(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Pale shapes on the deep blue of an old photographic print."""
    return _printed(PRUSSIAN_BLUE, PALE, layers)


def dimmed(color: FloatArray) -> FloatArray:
    """Return a color (3,) at midnight."""
    return as_floats(color + DIMMED * (as_floats(MIDNIGHT) - color))


def _midnight(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Paint the words' colors, dimmed, under a dark blue sky."""
    return _tinted(MIDNIGHT, dimmed, layers)


def _screenprint(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Teal ink on mustard card."""
    return _printed(MUSTARD, TEAL, layers)


PAINTERS |= {
    "duotone": _duotone,
    "neon": _neon,
    "chalk": _chalk,
    "sunset": _sunset,
    "cyanotype": _cyanotype,
    "midnight": _midnight,
    "screenprint": _screenprint,
}
