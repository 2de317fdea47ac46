"""Values of the image settings."""

from __future__ import annotations

import math

import pytest

from hnloader.errors import SettingsError
from hnloader.ui.page_host import ImageRequest
from hnloader.ui.pages.fields import MOST_STEPS, ImageValues, whole


def values(**changes: object) -> ImageValues:
    given = {"negative": "", "steps": 20, "guidance": 7.0, "sampler": None, "width": 0, "height": 0}
    return ImageValues(**{**given, **changes})


def test_zero_and_default_leave_the_choice_to_the_model() -> None:
    request = values(sampler="model default", width=0, height=None).request("a cat", 7)
    assert request == ImageRequest("a cat", seed=7, guidance=7.0)


@pytest.mark.parametrize("size", [(4097, 8), (8, 10**9), (-8, 8), (math.nan, 8), (8, math.inf)])
def test_image_sizes_are_bounded(size: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match="4,096"):
        values(width=size[0], height=size[1]).request()


@pytest.mark.parametrize("steps", [0, -1, MOST_STEPS + 1, math.nan, None])
def test_steps_are_bounded(steps: float | None) -> None:
    with pytest.raises(SettingsError, match="Sampling steps"):
        values(steps=steps).request()


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400])
def test_a_whole_number_is_finite(value: float) -> None:
    with pytest.raises(SettingsError, match="Seed"):
        whole(value, "Seed")
