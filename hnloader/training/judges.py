"""Figures for images: how much of the style they show, whether they show the prompt, how far they drifted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hnloader.errors import HypernetworkError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 64


class Judge(Protocol):
    """Gives figures; None where it has none of that kind.

    Attributes:
        name: what the report calls it.
        style_means, adherence_means: what its figures mean, in a sentence.
    """

    name: str
    style_means: str
    adherence_means: str

    def style(self, images: Sequence[Image]) -> float | None:
        """How much of the trained style the images show; more is more."""

    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """How well each image shows its prompt; more is better."""

    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """How far images of the same prompts and seeds moved; less is better."""


def drift(images: Sequence[Image], before: Sequence[Image]) -> float:
    """Root mean square difference of images of the same prompts and seeds, 0 to 1 (of the full range)."""
    differences = [np.square(_floats(a) - _floats(b)).mean() for a, b in zip(images, before, strict=True)]
    return float(np.sqrt(np.mean(differences)))


class PaletteJudge:
    """Compares colors and edges with those of the training images; it needs nothing but the pixels.

    Each image becomes a cloud of (red, green, blue, edge strength); the figure is 1 - d(images)/d(without),
    d being the Fréchet distance of the clouds' means and covariances from those of the training images, and
    `without` the model's own images. 0: as without what was trained; 1: as the training images.
    """

    name = "palette"
    style_means = "how far colors and edges moved from the model's own (0) to those of the training images (1)"
    adherence_means = ""

    def __init__(self, trained_on: Sequence[Image], without: Sequence[Image]) -> None:
        self._wanted = _cloud(trained_on)
        self._start = _frechet(_cloud(without), self._wanted)

    def style(self, images: Sequence[Image]) -> float | None:
        """See the class."""
        return 1 - _frechet(_cloud(images), self._wanted) / max(self._start, 1e-9)

    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """Pixels alone do not tell."""
        return None

    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """The function `drift` says it for all."""
        return None


class ClipJudge:
    """CLIP, by transformers: likeness to the training images, and of images to prompts.

    Args:
        model: a folder or a name on the hub, such as openai/clip-vit-base-patch32.
        trained_on: the training images.
    """

    name = "CLIP"
    style_means = "cosine of the images' CLIP embeddings with the mean of the training images'"
    adherence_means = "mean cosine of each image's CLIP embedding with its prompt's"

    def __init__(self, model: str | Path, trained_on: Sequence[Image]) -> None:
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._model: Any = CLIPModel.from_pretrained(model).eval()
            self._processor: Any = CLIPProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise HypernetworkError(f"the CLIP model {model} cannot be loaded: {str(error).splitlines()[0]}") from error
        self._wanted = self._of_images(trained_on).mean(dim=0)

    @torch.no_grad()
    def style(self, images: Sequence[Image]) -> float | None:
        """See the class."""
        wanted = self._wanted / self._wanted.norm()
        return float((self._of_images(images) @ wanted).mean())

    @torch.no_grad()
    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """See the class."""
        inputs = self._processor(text=list(prompts), return_tensors="pt", padding=True, truncation=True)
        encoded = self._model.get_text_features(**inputs)
        text = _features(encoded)
        return float((self._of_images(images) * text).sum(dim=-1).mean())

    @torch.no_grad()
    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """One minus the mean cosine of each image's embedding with that of the image before."""
        return 1 - float((self._of_images(images) * self._of_images(before)).sum(dim=-1).mean())

    @torch.no_grad()
    def _of_images(self, images: Sequence[Image]) -> torch.Tensor:
        inputs = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        return _features(self._model.get_image_features(**inputs))


class LpipsJudge:
    """LPIPS, by the package of its authors: how different people find two images.

    Its network (AlexNet) comes from torchvision, which downloads it once.

    Raises:
        HypernetworkError: the package is not installed, or its network cannot be had.
    """

    name = "LPIPS"
    style_means = ""
    adherence_means = ""

    def __init__(self) -> None:
        try:
            import lpips
        except ImportError as error:
            raise MissingExtraError(f"--lpips needs the package {error.name}: pip install lpips") from error
        try:
            self._distance: Any = lpips.LPIPS(net="alex", verbose=False).eval()
        except (OSError, RuntimeError) as error:
            raise HypernetworkError(f"the network of LPIPS cannot be loaded: {str(error).splitlines()[0]}") from error

    def style(self, images: Sequence[Image]) -> float | None:
        """Likeness of images of different things says little of a style."""
        return None

    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """It knows no words."""
        return None

    @torch.no_grad()
    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """The mean distance of each image from the image before."""
        pairs = zip(images, before, strict=True)
        return float(np.mean([float(self._distance(_signed(one), _signed(two))) for one, two in pairs]))


def _signed(image: Image) -> torch.Tensor:
    """[1, 3, height, width], -1 to 1."""
    return torch.from_numpy(_floats(image)).float().permute(2, 0, 1).unsqueeze(0) * 2 - 1


def _features(encoded: Any) -> torch.Tensor:
    """The embeddings at length 1; newer transformers put them into an output object."""
    found: torch.Tensor = encoded if isinstance(encoded, torch.Tensor) else encoded.pooler_output
    normalized: torch.Tensor = found / found.norm(dim=-1, keepdim=True)
    return normalized


def _floats(image: Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def _cloud(images: Sequence[Image]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [4] and covariance [4, 4] of (red, green, blue, edge strength) over all pixels."""
    points = []
    for image in images:
        small = image.convert("RGB").resize((_SIDE, _SIDE))
        values = _floats(small)
        down, across = np.gradient(values.mean(axis=2))
        edges = np.hypot(down, across)
        points.append(np.concatenate([values.reshape(-1, 3), edges.reshape(-1, 1)], axis=1))
    every = np.concatenate(points)
    return every.mean(axis=0), np.cov(every, rowvar=False)


def _frechet(
    one: tuple[NDArray[np.float64], NDArray[np.float64]], two: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> float:
    """Distance of two normal distributions: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); Dowson and Landau 1982."""
    eigenvalues = np.linalg.eigvals(one[1] @ two[1])
    root = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    return float(np.square(one[0] - two[0]).sum() + np.trace(one[1] + two[1]) - 2 * root)
