"""Train on images: the model is a diffusers pipeline, and a batch is images at random timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from hnloader.attention import find_sites
from hnloader.pipelines import Model
from hnloader.training.adapters import Adapter
from hnloader.training.batches import BatchMaker
from hnloader.training.cache import Cache
from hnloader.training.captions import Captioner
from hnloader.training.config import Config, Method
from hnloader.training.dataset import Dataset
from hnloader.training.denoiser import Denoiser
from hnloader.training.embedding_adapter import EmbeddingAdapter
from hnloader.training.hypernetwork_adapter import HypernetworkAdapter
from hnloader.training.image_report import images_section, previews_section
from hnloader.training.lora_adapter import LoraAdapter
from hnloader.training.pixels import training_size
from hnloader.training.previews import render_previews, save_previews, save_strengths, tile_previews
from hnloader.training.run_folder import run_folder
from hnloader.training.sampler import BatchSampler, split
from hnloader.training.task import Task, resolved
from hnloader.units import counted

if TYPE_CHECKING:
    from PIL.Image import Image

# Without validation images, the loss before and after the training is that of this number of training images.
_SUBSTITUTES = 2

_ADAPTERS: dict[Method, Callable[[Config, Denoiser], Adapter]] = {
    "hypernetwork": lambda config, denoiser: HypernetworkAdapter(config, denoiser.unet),
    "embedding": EmbeddingAdapter,
    "lora": lambda config, denoiser: LoraAdapter(config, denoiser.unet),
}


class ImageTask(Task):
    """Images with captions, and a Stable Diffusion model.

    Args:
        config: Checked settings.
        denoiser: The model.
        dataset: The images.
        model: The name and the hash of the model, for the metadata of the output.

    Attributes:
        images: The training images.
        validation_images: The validation images.
    """

    data_name = "images"

    def __init__(self, config: Config, denoiser: Denoiser, dataset: Dataset, model: Model) -> None:
        config = resolved(config, find_sites(denoiser.unet))
        self.config, self.denoiser, self.dataset, self.model = config, denoiser, dataset, model
        # Before any hooks: they change the names of the UNet's weights.
        self.model_hash, self.data_hash = denoiser.fingerprint("unet"), dataset.fingerprint()
        self.device, self.dtype = denoiser.device, denoiser.dtype
        self._plain: list[Image] | None = None
        self.adapter = _ADAPTERS[config.method](config, denoiser)
        self._set_up_data()
        self.notes = tuple(dataset.remarks(config.data))  # the captions were checked

    def _set_up_data(self) -> None:
        config, denoiser, images = self.config, self.denoiser, self.dataset.images
        multiple = denoiser.size_multiple
        resolution = max((config.data.resolution or denoiser.resolution) // multiple, 1) * multiple
        num_vectors = len(self.adapter.parameters[0]) if config.method == "embedding" else 0
        self.captioner = Captioner(config, denoiser.pipeline.tokenizer, num_vectors)
        self.captioner.check(self.dataset)
        training, validation = split(len(images), config.data.validation_split, config.seed)
        self.images = [images[index] for index in training]
        self.validation_images = [images[index] for index in validation]
        self.cache = Cache(run_folder(Path(config.output)) / "cache", denoiser, config.data, resolution)
        encode = self.adapter.texts if isinstance(self.adapter, EmbeddingAdapter) else None
        self.batches = BatchMaker(config, denoiser, self.cache, self.captioner, encode)
        sizes = [training_size(image.size, config.data, resolution, multiple) for image in self.images]
        self.sampler = BatchSampler(sizes, config.batch_size, config.data.repeats, config.seed)

    @property
    def has_validation(self) -> bool:
        """See `Task`."""
        return bool(self.validation_images)

    @property
    def amount(self) -> str:
        """See `Task`."""
        return counted(len(self.dataset.images), "image")

    def loss(self, index: int) -> Tensor:
        """See `Task`."""
        draws = self.sampler[index]
        batch = self.batches.training(draws, self.images)
        loss = self.denoiser.losses(batch, self.config.snr_gamma).mean()
        if not self.config.prior.weight:
            return loss
        other = self.batches.prior(batch, draws)
        with torch.no_grad(), self.adapter.disabled():
            target, _ = self.denoiser.predict(other)
        prediction, _ = self.denoiser.predict(other)
        return loss + self.config.prior.weight * functional.mse_loss(prediction, target)

    def validation_loss(self) -> float:
        """See `Task`; always at the same noise and timesteps."""
        losses: list[float] = []
        for index, image in enumerate(self.validation_images or self.images[:_SUBSTITUTES]):
            for batch in self.batches.validation(image, index):
                losses.append(float(self.denoiser.losses(batch, self.config.snr_gamma).mean()))
        return sum(losses) / len(losses)

    def preview(self, folder: Path, step: int) -> Sequence[Image]:
        """See `Task`."""
        prompts = self.preview_prompts
        with self.denoiser.loaded():
            images = self._rendered(prompts, 1.0)
            strengths = self.config.previews.strengths if self.adapter.has_strength else ()
            grid = {each: images if each == 1 else self._rendered(prompts, each) for each in dict.fromkeys(strengths)}
        save_previews(images, folder, step)
        tile_previews(folder, prompts)
        if grid:
            save_strengths(grid, folder, step, prompts)
        return images

    def _rendered(self, prompts: Sequence[str], strength: float) -> list[Image]:
        """Return an image of each prompt. Those at strength 0 never change."""
        if strength != 0 or self._plain is None:
            made = render_previews(self.denoiser.pipeline, self.adapter, prompts, self.config.previews, strength)
            if strength != 0:
                return made
            self._plain = made
        return self._plain

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """The prompts of the settings, else captions, those of the validation images first."""
        config, previews = self.config, self.config.previews
        images = [*self.validation_images, *self.images]
        captions = dict.fromkeys(self.captioner(image, 0) for image in images)
        prompts = previews.prompts or tuple(captions)[: previews.count]
        name = config.placeholder_token if config.method == "embedding" else config.name
        return tuple(prompt.replace("{name}", name) for prompt in prompts)

    def report(self, folder: Path) -> Iterator[str]:
        """See `Task`."""
        yield from previews_section(folder)
        yield images_section(self.dataset, self.validation_images)
