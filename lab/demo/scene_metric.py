"""A metric for `hnloader.training.method_comparison` that knows the bundled pipeline's scenes and styles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from hnloader.demo.scenes import parse_caption
from hnloader.errors import HypernetworkError
from lab.demo.checker import holds
from lab.demo.style_scores import SCORES, style_score


class SceneJudge:
    """The bundled pipeline's own checker: for its prompts and for the styles that the package draws."""

    name = "checker"
    style_means = "share of the images that show the style, by their pixels"
    adherence_means = "share of the images with the prompt's shapes at the prompt's positions"

    def __init__(self, style: str) -> None:
        if style not in SCORES:
            raise HypernetworkError(f"there is no score for a style {style!r}; known: {', '.join(SCORES)}")
        self._style = style

    def style(self, images: Sequence[Image]) -> float | None:
        """See the class; an image shows the style from a score of 0.5 on."""
        return float(np.mean([style_score(self._style, _bytes(image)) >= 0.5 for image in images]))

    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """See the class; None when a prompt is not one of the checker's."""
        scenes = [parse_caption(prompt) for prompt in prompts]
        if any(scene is None for scene in scenes):
            return None
        pairs = zip(images, scenes, strict=True)
        return float(np.mean([holds(_bytes(image), scene) for image, scene in pairs if scene is not None]))

    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """It knows scenes, not likeness."""
        return None


def _bytes(image: Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
