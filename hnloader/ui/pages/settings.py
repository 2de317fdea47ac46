"""Sampler and size of pictures, as Generate and Compare ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hnloader.ui.compat import make

if TYPE_CHECKING:
    from hnloader.ui.host import Generator

_DEFAULT = "the model's own"


def sampler_and_size(generator: Generator) -> tuple[Any, Any, Any]:
    """The components for sampler, width and height; `asked` reads their values."""
    sampler = make("Dropdown", label="Sampler", choices=[_DEFAULT, *generator.samplers], value=_DEFAULT)
    with make("Row"):
        width, height = (
            make("Number", label=label, info="0: the model's own", value=0, precision=0, minimum=0, min_width=90)
            for label in ("Width", "Height")
        )
    return sampler, width, height


def asked(sampler: str | None, width: float | None, height: float | None) -> dict[str, Any]:
    """The fields of `PictureRequest` that the components stand for."""
    return {
        "sampler": None if sampler == _DEFAULT else sampler,
        "width": int(width or 0) or None,
        "height": int(height or 0) or None,
    }
