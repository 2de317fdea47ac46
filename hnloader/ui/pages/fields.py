"""Image settings that Generate and Compare share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hnloader.errors import SettingsError
from hnloader.prompt import is_finite
from hnloader.ui.compat import make
from hnloader.ui.page_host import EXAMPLE_PROMPT, ImageRequest

if TYPE_CHECKING:
    from hnloader.ui.page_host import Generator, Host

__all__ = ["IMAGE_SIZE", "MOST_STEPS", "ImageValues", "SettingFields", "example_prompt", "slider", "textbox", "whole"]

_DEFAULT = "model default"
# Checked again in the handlers: a hand-made request can hold any value.
MOST_STEPS = 100
_MOST_PIXELS = 4096  # a side
# Bytes to reserve on the disk for a saved image.
IMAGE_SIZE = 8 << 20


@dataclass(frozen=True)
class ImageValues:
    """Values of the shared settings, in the order of `SettingFields.inputs`."""

    negative: str | None
    steps: float | None
    guidance: float | None
    sampler: str | None
    width: float | None
    height: float | None

    def request(self, prompt: str = "", seed: int = 0) -> ImageRequest:
        """Return the image that the values describe. Raises SettingsError."""
        steps = whole(self.steps, "Sampling steps")
        if not 1 <= steps <= MOST_STEPS:
            raise SettingsError(f"Sampling steps: expected 1 to {MOST_STEPS}, got {steps:,}. Choose fewer or more.")
        for name, side in (("Width", self.width), ("Height", self.height)):
            if not 0 <= (side or 0) <= _MOST_PIXELS:
                raise SettingsError(f"{name}: expected at most {_MOST_PIXELS:,} pixels, got {side:,}.")
        return ImageRequest(
            prompt,
            self.negative or "",
            seed,
            steps,
            guidance=self.guidance,
            width=int(self.width or 0) or None,
            height=int(self.height or 0) or None,
            sampler=None if self.sampler == _DEFAULT else self.sampler,
        )


class SettingFields:
    """Components of the shared settings. Each method adds some to the open layout."""

    def __init__(self, generator: Generator, elem_id: str) -> None:
        self._generator, self._elem_id = generator, elem_id

    def negative_prompt(self) -> None:
        """Add the negative prompt."""
        hint = "Describe what to avoid"
        self.negative = textbox("Negative prompt", f"{self._elem_id}-negative", max_lines=3, placeholder=hint)

    def sampling(self) -> None:
        """Add sampling steps and CFG scale."""
        guidance = self._generator.default_guidance
        with make("Row"):
            self.steps = slider("Sampling steps", f"{self._elem_id}-steps", 20, (1, MOST_STEPS, 1))
            span, shown = (1, 20, 0.5), guidance is not None
            self.guidance = slider("CFG scale", f"{self._elem_id}-cfg", guidance or 7.0, span, visible=shown)

    def sampler_and_size(self) -> None:
        """Add sampler, width and height."""
        choices = [_DEFAULT, *self._generator.samplers]
        self.sampler = make("Dropdown", label="Sampler", choices=choices, value=_DEFAULT)
        with make("Row"):
            self.width, self.height = (
                make("Number", label=label, info="0: model default", value=0, precision=0, minimum=0, min_width=90)
                for label in ("Width", "Height")
            )

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `ImageValues` takes."""
        return [self.negative, self.steps, self.guidance, self.sampler, self.width, self.height]


def textbox(label: str, elem_id: str, max_lines: int = 1, **options: Any) -> Any:
    """Make a text field that grows up to `max_lines`."""
    return make("Textbox", label=label, elem_id=elem_id, max_lines=max_lines, **{"lines": 1, **options})


def slider(label: str, elem_id: str, value: float, span: tuple[float, float, float], **options: Any) -> Any:
    """Make a slider; `span` is minimum, maximum and step."""
    low, high, step = span
    return make("Slider", label=label, elem_id=elem_id, value=value, minimum=low, maximum=high, step=step, **options)


def example_prompt(host: Host) -> str:
    """Return an example that suits the first model."""
    return EXAMPLE_PROMPT if host.models is None else host.models.defaults(host.models.models()[0]).prompt


def whole(value: float | None, name: str) -> int:
    """Return the whole number in a field, 0 for an empty one. Raises SettingsError for NaN and infinity."""
    if not is_finite(value or 0):
        raise SettingsError(f"{name}: expected a whole number, got {value}.")
    return int(value or 0)
