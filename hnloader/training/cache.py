"""Latents and text states, computed once and kept on disk under a hash of what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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
from hnloader.training.denoiser import Denoiser, Text
from hnloader.training.pixels import bucket, moved, prepare

# Goes up whenever the same image would give other latents.
_VERSION = 2


@dataclass(frozen=True)
class Latents:
    """An image as the UNet sees it.

    Attributes:
        mean, deviation: [channels, height, width], float32, scaled: the latents are drawn from these.
        mask: [1, height, width] or None.
        sizes: SDXL's six numbers: original size, crop, target size, each height before width.
    """

    mean: Tensor
    deviation: Tensor
    mask: Tensor | None
    sizes: tuple[int, ...]


class Cache:
    """Latents and text states of one model, in a folder.

    A file that is missing or damaged is made again. Where nothing can be written, everything still works from
    memory.
    """

    def __init__(self, folder: Path, denoiser: Denoiser, config: DataConfig, resolution: int) -> None:
        self._folder, self._denoiser, self._config, self._resolution = folder, denoiser, config, resolution
        self._latents: dict[str, Latents] = {}
        self._texts: dict[str, Text] = {}
        self._vae, self._text = denoiser.fingerprint("vae"), denoiser.fingerprint("text")

    def latents(self, image: TrainingImage, *, flipped: bool = False, shift: tuple[int, int] = (0, 0)) -> Latents:
        """The image's latents, mirrored, and moved by so many pixels to the right and down.

        Raises:
            OSError, ValueError: the image was changed or removed since it was looked at.
        """
        config = self._config
        grain = self._denoiser.grain
        mask = image.mask.stat().st_mtime_ns if config.masks and image.mask else config.masks
        parts = (_VERSION, self._vae, image.digest, self._resolution, grain, config.buckets, config.background, mask)
        key = _hash("latents", *parts, flipped, *(shift if any(shift) else ()))
        if key not in self._latents:
            self._latents[key] = self._stored_latents(key, image) or self._made_latents(key, image, flipped, shift)
        return self._latents[key]

    def text(self, caption: str) -> Text:
        """What the text encoders make of a caption."""
        key = _hash("text", _VERSION, self._text, caption)
        if key not in self._texts:
            self._texts[key] = self._stored_text(key) or self._made_text(key, caption)
        return self._texts[key]

    def _made_latents(self, key: str, image: TrainingImage, flipped: bool, shift: tuple[int, int]) -> Latents:
        sample = prepare(image, self._config, self._resolution, self._denoiser.grain)
        if flipped:
            mask = None if sample.mask is None else sample.mask.flip(-1)
            sample = type(sample)(sample.pixels.flip(-1), mask, sample.original, sample.crop)
        if any(shift):
            sample = moved(sample, *shift)
        mean, deviation = self._denoiser.encode_image(sample)
        small = None
        if sample.mask is not None:
            small = functional.adaptive_avg_pool2d(sample.mask, mean.shape[-2:])  # type: ignore[arg-type]
        (width, height), (left, top) = sample.original, sample.crop
        sizes = (height, width, top, left, *sample.pixels.shape[-2:])
        tensors = {"mean": mean, "deviation": deviation}
        if small is not None:
            tensors["mask"] = small
        self._store(key, tensors, {"sizes": " ".join(map(str, sizes))})
        return Latents(mean, deviation, small, sizes)

    def _stored_latents(self, key: str, image: TrainingImage) -> Latents | None:
        found = self._load(key)
        if found is None:
            return None
        tensors, metadata = found
        try:
            sizes = tuple(int(part) for part in metadata["sizes"].split())
            mean, deviation, mask = tensors["mean"], tensors["deviation"], tensors.get("mask")
        except (KeyError, ValueError):
            return None
        width, height = self._resolution, self._resolution
        if self._config.buckets:
            width, height = bucket(image.size, self._resolution, self._denoiser.grain)
        if len(sizes) != 6 or sizes[:2] != image.size[::-1] or sizes[4:] != (height, width):
            return None
        shape = (self._denoiser.latent_channels, *(size // self._denoiser.grain_of_latents for size in sizes[4:]))
        sound = _is_sound(mean, shape) and _is_sound(deviation, shape)
        sound &= mask is None or (self._config.masks and _is_sound(mask, (1, *shape[1:])))
        return Latents(mean, deviation, mask, sizes) if sound else None

    def _made_text(self, key: str, caption: str) -> Text:
        text = self._denoiser.encode_text(caption)
        tensors = {"states": text.states} | ({} if text.pooled is None else {"pooled": text.pooled})
        self._store(key, tensors, {})
        return text

    def _stored_text(self, key: str) -> Text | None:
        found = self._load(key)
        if found is None or "states" not in found[0]:
            return None
        states, pooled = found[0]["states"], found[0].get("pooled")
        shape = self._denoiser.text_shape
        sound = _is_sound(states, shape) and (pooled is not None) == self._denoiser.is_xl
        sound &= pooled is None or (pooled.ndim == 1 and _is_sound(pooled, tuple(pooled.shape)))
        return Text(states, pooled) if sound else None

    def _store(self, key: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        save = _saver({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._folder / f"{key}.safetensors") as temporary:
                save(temporary)
        except Exception:  # a cache that cannot be written only costs time
            return

    def _load(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        path = self._folder / f"{key}.safetensors"
        if not path.is_file():  # a pipe would wait for its writer
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), metadata
        except (OSError, safetensors.SafetensorError):
            return None


def _is_sound(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Return True for finite numbers of this shape; the folder is open to everybody."""
    return tuple(tensor.shape) == shape and tensor.dtype == torch.float32 and bool(tensor.isfinite().all())


def _saver(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path, metadata=metadata)


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
