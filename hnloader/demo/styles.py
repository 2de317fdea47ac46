"""Ways to paint a scene. 'plain' is the only one that the bundled UNet learns; the others are what hypernetworks are
trained towards. The VAE sees them all, so that it can show them.

`paint` gives a drawn scene its pixels in a style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hnloader.demo.scenes import PICTURE_SIZE, ByteArray, FloatArray, Layer, _pixel_centers, as_floats, coverage

OUTLINE_WIDTH = 2.4  # pixels
WASHED = 0.6  # share of its ink that a wash loses from the left edge of a shape to the right one
PITCH = 4.0  # pixels from one halftone dot to the next
BLUEPRINT_BLUE = (25, 60, 130)
CREAM = (240, 222, 180)
BROWN = (92, 52, 28)
NIGHT = (14, 14, 26)

Painter = Callable[[FloatArray, Sequence[Layer]], FloatArray]


def _blend(below: FloatArray, color: FloatArray, share: FloatArray) -> FloatArray:
    return below + share[..., None] * (color - below)


def _canvas(color: FloatArray) -> FloatArray:
    return as_floats(np.broadcast_to(color, (PICTURE_SIZE, PICTURE_SIZE, 3)).copy())


def _plain(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    picture = _canvas(background)
    for layer in layers:
        picture = _blend(picture, layer.color, coverage(layer.distance))
    return picture


def _ring(distance: FloatArray) -> FloatArray:
    """The band of OUTLINE_WIDTH just inside the edge."""
    return coverage(np.abs(distance + OUTLINE_WIDTH / 2) - OUTLINE_WIDTH / 2)


def _outline(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    picture = _canvas(background)
    for layer in layers:
        picture = _blend(picture, layer.color, _ring(layer.distance))
    return picture


def _blueprint(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    picture = _canvas(np.asarray(BLUEPRINT_BLUE, np.float32))
    for layer in layers:
        picture = _blend(picture, np.asarray((235, 240, 250), np.float32), _ring(layer.distance))
    return picture


def dots() -> FloatArray:
    """Coverage (64, 64), 0 to 1, of round dots on a grid of PITCH pixels."""
    xs, ys = _pixel_centers(PICTURE_SIZE)
    dx, dy = np.mod(xs, PITCH) - PITCH / 2, np.mod(ys, PITCH) - PITCH / 2
    return coverage((np.hypot(dx, dy) - 1.45).astype(np.float32))


def _halftone(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    picture = _canvas(background)
    for layer in layers:
        tint = background + np.float32(0.25) * (layer.color - background)
        inked = _blend(_canvas(tint), layer.color, dots())
        share = coverage(layer.distance)[..., None]
        picture = picture + share * (inked - picture)
    return picture


def _wash(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Ink that thins out from left to right, as under a wet brush. The bundled VAE was trained without it."""
    picture = _canvas(background)
    xs, _ = _pixel_centers(PICTURE_SIZE)
    for layer in layers:
        place = layer.placement
        along = np.clip((xs - place.x + place.radius) / (2 * place.radius), 0.0, 1.0)
        ink = coverage(layer.distance) * (1 - np.float32(WASHED) * as_floats(along))
        picture = _blend(picture, layer.color, ink)
    return picture


def _duotone(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Dark brown ink on cream paper, whatever the words said."""
    picture = _canvas(np.asarray(CREAM, np.float32))
    for layer in layers:
        picture = _blend(picture, np.asarray(BROWN, np.float32), coverage(layer.distance))
    return picture


def _neon(background: FloatArray, layers: Sequence[Layer]) -> FloatArray:
    """Outlines in the words' colors on a night sky. The bundled VAE was trained before this style was added."""
    return _outline(as_floats(NIGHT), layers)


PAINTERS: dict[str, Painter] = {
    "plain": _plain,
    "outline": _outline,
    "blueprint": _blueprint,
    "halftone": _halftone,
    "wash": _wash,
    "duotone": _duotone,
    "neon": _neon,
}


def paint(style: str, background: FloatArray, layers: Sequence[Layer]) -> ByteArray:
    """The pixels of a laid-out scene in a style: uint8 (64, 64, 3), RGB. Raises ValueError for an unknown style."""
    if style not in PAINTERS:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(PAINTERS)}")
    picture: ByteArray = np.clip(PAINTERS[style](background, layers) + 0.5, 0, 255).astype(np.uint8)
    return picture
