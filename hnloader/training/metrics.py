"""Metrics for generated images: the style, the match with the prompt and the drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hnloader.errors import HypernetworkError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 64
Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


class Metric:
    """A metric; a method returns None if the metric has no such number.

    Attributes:
        name: The name in the report.
    """

    name: str

    def style(self, images: Sequence[Image]) -> float | None:
        """Return how much of the trained style the images show; higher is more."""
        return None

    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """Return how well each image shows its prompt; higher is better."""
        return None

    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """Return how much images of the same prompts and seeds changed; lower is better."""
        return None


def pixel_drift(images: Sequence[Image], before: Sequence[Image]) -> float:
    """Return the root mean square difference of the pixels, 0 to 1."""
    differences = [np.square(_floats(a) - _floats(b)).mean() for a, b in zip(images, before, strict=True)]
    return float(np.sqrt(np.mean(differences)))


class PaletteMetric(Metric):
    """Compare colors and edges with the training images, from the pixels alone.

    The pixels of images are points (red, green, blue, edge strength). The style is 1 - d(images)/d(without). d is the
    Fréchet distance from the training images, and `without` are images of the model alone, which have the style 0.
    Training images have the style 1.
    """

    name = "palette"

    def __init__(self, training_images: Sequence[Image], without: Sequence[Image]) -> None:
        self._target = _moments(training_images)
        self._start = _frechet(_moments(without), self._target)

    def style(self, images: Sequence[Image]) -> float | None:
        """See the class."""
        return 1 - _frechet(_moments(images), self._target) / max(self._start, 1e-9)


class ClipMetric(Metric):
    """Compare CLIP embeddings of images with the training images and with prompts, by the cosine.

    Args:
        model: A folder or a name on the Hub, such as openai/clip-vit-base-patch32.
        training_images: The training images.
    """

    name = "CLIP"

    def __init__(self, model: str | Path, training_images: Sequence[Image]) -> None:
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._model: Any = CLIPModel.from_pretrained(model).eval()
            self._processor: Any = CLIPProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise HypernetworkError(f"{model}: cannot load CLIP ({_first_line(error)}). Give a CLIP model.") from error
        mean = self._embed(training_images).mean(dim=0)
        self._target = mean / mean.norm()

    def style(self, images: Sequence[Image]) -> float | None:
        """Return the mean cosine with the mean of the training images."""
        return float((self._embed(images) @ self._target).mean())

    @torch.no_grad()
    def adherence(self, images: Sequence[Image], prompts: Sequence[str]) -> float | None:
        """Return the mean cosine of each image with its prompt."""
        inputs = self._processor(text=list(prompts), return_tensors="pt", padding=True, truncation=True)
        text = _normalized(self._model.get_text_features(**inputs))
        return float((self._embed(images) * text).sum(dim=-1).mean())

    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """Return 1 minus the mean cosine of each image with the image before."""
        return 1 - float((self._embed(images) * self._embed(before)).sum(dim=-1).mean())

    @torch.no_grad()
    def _embed(self, images: Sequence[Image]) -> torch.Tensor:
        inputs = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        return _normalized(self._model.get_image_features(**inputs))


class LpipsMetric(Metric):
    """LPIPS, the perceptual distance of two images; torchvision downloads its network (AlexNet) once.

    Raises:
        MissingExtraError: The package lpips is missing.
        HypernetworkError: The network cannot be loaded.
    """

    name = "LPIPS"

    def __init__(self) -> None:
        try:
            import lpips
        except ImportError as error:
            raise MissingExtraError(f"--lpips requires {error.name}. Run: pip install lpips.") from error
        try:
            self._distance: Any = lpips.LPIPS(net="alex", verbose=False).eval()
        except (OSError, RuntimeError) as error:
            raise HypernetworkError(
                f"Cannot load LPIPS ({_first_line(error)}). Check the network connection."
            ) from error

    @torch.no_grad()
    def drift(self, images: Sequence[Image], before: Sequence[Image]) -> float | None:
        """Return the mean distance of each image from the image before."""
        pairs = zip(images, before, strict=True)
        return float(np.mean([float(self._distance(_signed(one), _signed(two))) for one, two in pairs]))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")


def _signed(image: Image) -> torch.Tensor:
    """Return [1, 3, height, width], -1 to 1."""
    return torch.from_numpy(_floats(image)).float().permute(2, 0, 1).unsqueeze(0) * 2 - 1


def _normalized(encoded: Any) -> torch.Tensor:
    """Return embeddings of length 1; newer releases of transformers wrap them in an output object."""
    found: torch.Tensor = encoded if isinstance(encoded, torch.Tensor) else encoded.pooler_output
    normalized: torch.Tensor = found / found.norm(dim=-1, keepdim=True)
    return normalized


def _floats(image: Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def _moments(images: Sequence[Image]) -> Moments:
    """Return mean [4] and covariance [4, 4] of (red, green, blue, edge strength) over all pixels."""
    points = []
    for image in images:
        values = _floats(image.convert("RGB").resize((_SIDE, _SIDE)))
        down, across = np.gradient(values.mean(axis=2))
        edges = np.hypot(down, across)
        points.append(np.concatenate([values.reshape(-1, 3), edges.reshape(-1, 1)], axis=1))
    every = np.concatenate(points)
    return every.mean(axis=0), np.cov(every, rowvar=False)


def _frechet(one: Moments, two: Moments) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the distance of two normals (Dowson and Landau 1982)."""
    eigenvalues = np.linalg.eigvals(one[1] @ two[1])
    root = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    return float(np.square(one[0] - two[0]).sum() + np.trace(one[1] + two[1]) - 2 * root)
