"""Sampler and size of images, as Generate and Compare ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.prompt import is_finite
from hnloader.ui.compat import make

if TYPE_CHECKING:
    from hnloader.ui.page_host import Generator

_DEFAULT = "the model's own"
# Whoever sends requests by hand is not held by what the components allow.
MOST_STEPS = 100
MOST_PIXELS = 4096  # a side
# Bytes of a saved image, so far as they have to find room.
IMAGE_SIZE = 8 << 20


def sampler_and_size(generator: Generator) -> tuple[Any, Any, Any]:
    """The components for sampler, width and height; `asked` reads their values."""
    sampler = make("Dropdown", label="Sampler", choices=[_DEFAULT, *generator.samplers], value=_DEFAULT)
    with make("Row"):
        width, height = (
            make("Number", label=label, info="0: the model's own", value=0, precision=0, minimum=0, min_width=90)
            for label in ("Width", "Height")
        )
    return sampler, width, height


def steps(elem_id: str) -> Any:
    """The component for the sampling steps."""
    return make("Slider", label="Steps", value=20, minimum=1, maximum=MOST_STEPS, step=1, elem_id=elem_id)


def whole(value: float | None, what: str) -> int:
    """Return the whole number in a field, 0 where it is empty. Raises HypernetworkError for NaN and infinity."""
    if not is_finite(value or 0):
        raise HypernetworkError(f"{what} is {value}. Write a whole number.")
    return int(value or 0)


def asked(sampler: str | None, width: float | None, height: float | None) -> dict[str, Any]:
    """The fields of `ImageRequest` that the components stand for. Raises HypernetworkError for sizes without end."""
    for side in (width, height):
        if not 0 <= (side or 0) <= MOST_PIXELS:
            raise HypernetworkError(f"A side of an image has at most {MOST_PIXELS:,} pixels, not {side:,}.")
    return {
        "sampler": None if sampler == _DEFAULT else sampler,
        "width": int(width or 0) or None,
        "height": int(height or 0) or None,
    }
