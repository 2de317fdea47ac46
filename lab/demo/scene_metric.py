"""A metric for `hnloader.training.method_comparison`, for the scenes and styles of the bundled pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from hnloader.errors import HypernetworkError
from hnloader.training.metrics import Metric
from lab.demo.checker import holds
from lab.demo.scene_captions import parse_caption
from lab.demo.style_scores import SCORES, style_score


class SceneMetric(Metric):
    """The share of images with a drawn style, and with the shapes and positions of the prompt."""

    name = "checker"

    def __init__(self, style: str) -> None:
        if style not in SCORES:
            raise HypernetworkError(f"Style: expected {', '.join(SCORES)}, got {style!r}.")
        self._style = style

    def style(self, images: Sequence[Image]) -> float | None:
        """Return the share of images with a style score of at least 0.5."""
        return float(np.mean([style_score(self._style, _bytes(image)) >= 0.5 for image in images]))

    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """Return the share of images with the shapes and positions of their prompts; None for unknown prompts."""
        scenes = [parse_caption(prompt) for prompt in prompts]
        if any(scene is None for scene in scenes):
            return None
        pairs = zip(images, scenes, strict=True)
        return float(np.mean([holds(_bytes(image), scene) for image, scene in pairs if scene is not None]))


def _bytes(image: Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
