"""A metric for `hnloader.training.comparison` that knows the bundled pipeline's scenes and styles."""

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
    style_means = "share of the pictures that show the style, by their pixels"
    adherence_means = "share of the pictures with the prompt's shapes at the prompt's positions"

    def __init__(self, style: str) -> None:
        if style not in SCORES:
            raise HypernetworkError(f"there is no score for a style {style!r}; known: {', '.join(SCORES)}")
        self._style = style

    def style(self, pictures: Sequence[Image]) -> float | None:
        """See the class; a picture shows the style from a score of 0.5 on."""
        return float(np.mean([style_score(self._style, _bytes(picture)) >= 0.5 for picture in pictures]))

    def adherence(self, pictures: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """See the class; None when a prompt is not one of the checker's."""
        scenes = [parse_caption(prompt) for prompt in prompts]
        if any(scene is None for scene in scenes):
            return None
        pairs = zip(pictures, scenes, strict=True)
        return float(np.mean([holds(_bytes(picture), scene) for picture, scene in pairs if scene is not None]))

    def drift(self, pictures: Sequence[Image], before: Sequence[Image]) -> float | None:
        """It knows scenes, not likeness."""
        return None


def _bytes(picture: Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)
