"""Cache latents and text states in a folder, under a hash of their source."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from hnloader.files import replacing
from hnloader.training.config import DataConfig
from hnloader.training.dataset import TrainingImage
from hnloader.training.denoiser import Denoiser, EncodedText
from hnloader.training.pixels import load_sample, training_size

# Increases when the same image gives other latents.
_VERSION = 2


@dataclass(frozen=True)
class Latents:
    """An image as the UNet sees it.

    Attributes:
        mean: [channels, height, width], float32, scaled.
        std: The standard deviation, in the same shape.
        mask: [1, height, width] or None.
        sizes: SDXL's six numbers: original size, crop and target size, height before width.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor | None
    sizes: tuple[int, ...]


class Cache:
    """Latents and text states of one model, in memory and in a folder.

    A missing or damaged file is made again. An unwritable folder only costs time.
    """

    def __init__(self, folder: Path, denoiser: Denoiser, config: DataConfig, resolution: int) -> None:
        self._folder, self._denoiser, self._config, self._resolution = folder, denoiser, config, resolution
        self._latents: dict[str, Latents] = {}
        self._texts: dict[str, EncodedText] = {}
        self._vae, self._text = denoiser.fingerprint("vae"), denoiser.fingerprint("text")

    def latents(self, image: TrainingImage, *, flipped: bool = False, shift: tuple[int, int] = (0, 0)) -> Latents:
        """Return the latents of an image, mirrored and shifted by pixels to the right and down.

        Raises:
            HypernetworkError: The image was changed or removed after the dataset was read.
        """
        config, multiple = self._config, self._denoiser.size_multiple
        mask = image.mask.stat().st_mtime_ns if config.masks and image.mask else config.masks
        source = (_VERSION, self._vae, image.digest, self._resolution, multiple)
        options = (config.buckets, config.background, mask, flipped, *(shift if any(shift) else ()))
        key = _hash("latents", *source, *options)
        if key not in self._latents:
            self._latents[key] = self._load_latents(key, image) or self._make_latents(key, image, flipped, shift)
        return self._latents[key]

    def text(self, caption: str) -> EncodedText:
        """Return the text states of a caption."""
        key = _hash("text", _VERSION, self._text, caption)
        if key not in self._texts:
            self._texts[key] = self._load_text(key) or self._make_text(key, caption)
        return self._texts[key]

    def _make_latents(self, key: str, image: TrainingImage, flipped: bool, shift: tuple[int, int]) -> Latents:
        sample = load_sample(image, self._config, self._resolution, self._denoiser.size_multiple)
        sample = sample.flipped() if flipped else sample
        sample = sample.shifted(*shift) if any(shift) else sample
        mean, std = self._denoiser.encode_image(sample)
        mask = None
        if sample.mask is not None:
            mask = functional.adaptive_avg_pool2d(sample.mask, mean.shape[-2:])  # type: ignore[arg-type]
        (width, height), (left, top) = sample.original, sample.crop
        sizes = (height, width, top, left, *sample.pixels.shape[-2:])
        tensors = {"mean": mean, "std": std} | ({} if mask is None else {"mask": mask})
        self._store(key, tensors, {"sizes": " ".join(map(str, sizes))})
        return Latents(mean, std, mask, sizes)

    def _load_latents(self, key: str, image: TrainingImage) -> Latents | None:
        tensors, metadata = self._load(key)
        try:
            sizes = tuple(int(part) for part in metadata["sizes"].split())
            mean, std, mask = tensors["mean"], tensors["std"], tensors.get("mask")
        except (KeyError, ValueError):
            return None
        denoiser = self._denoiser
        width, height = training_size(image.size, self._config, self._resolution, denoiser.size_multiple)
        if len(sizes) != 6 or sizes[:2] != image.size[::-1] or sizes[4:] != (height, width):
            return None
        shape = (denoiser.vae.config.latent_channels, *(size // denoiser.vae_scale_factor for size in sizes[4:]))
        valid = _is_valid(mean, shape) and _is_valid(std, shape)
        valid &= mask is None or (self._config.masks and _is_valid(mask, (1, *shape[1:])))
        return Latents(mean, std, mask, sizes) if valid else None

    def _make_text(self, key: str, caption: str) -> EncodedText:
        text = self._denoiser.encode_text(caption)
        self._store(key, {"states": text.states} | ({} if text.pooled is None else {"pooled": text.pooled}), {})
        return text

    def _load_text(self, key: str) -> EncodedText | None:
        tensors, _ = self._load(key)
        states, pooled = tensors.get("states"), tensors.get("pooled")
        denoiser = self._denoiser
        shape = denoiser.pipeline.tokenizer.model_max_length, denoiser.unet.config.cross_attention_dim
        if states is None or not _is_valid(states, shape):
            return None
        valid = (pooled is not None) == denoiser.is_xl
        valid &= pooled is None or (pooled.ndim == 1 and _is_valid(pooled, tuple(pooled.shape)))
        return EncodedText(states, pooled) if valid else None

    def _store(self, key: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        with contextlib.suppress(Exception):  # the cache only saves time
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._folder / f"{key}.safetensors") as temporary:
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                save_file(contiguous, temporary, metadata=metadata)

    def _load(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return tensors and metadata; empty for a missing or damaged file."""
        path = self._folder / f"{key}.safetensors"
        if not path.is_file():  # a pipe would block
            return {}, {}
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            # Copies, because each tensor would keep its file mapped, and Linux lets a process map about 65,000.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}, metadata
        except (OSError, safetensors.SafetensorError):
            return {}, {}


def _is_valid(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Return True for finite float32 numbers of a shape; other programs can write to the folder."""
    return tuple(tensor.shape) == shape and tensor.dtype == torch.float32 and bool(tensor.isfinite().all())


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
