"""A Stable Diffusion model as training needs it: text to states, images to latents, latents to a loss."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.attention.sites import find_sites
from hnloader.training.lean import lean_graph
from hnloader.training.pixels import Sample


@dataclass(frozen=True)
class Text:
    """What the text encoders make of a caption.

    Attributes:
        states: [tokens, width], what cross-attention receives.
        pooled: [width], the second encoder's summary; SDXL only.
    """

    states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Batch:
    """What one prediction needs; all on the model's device.

    Attributes:
        latents: [batch, channels, height, width], scaled as the UNet wants them.
        noise: of the same shape.
        timesteps: [batch], whole numbers.
        states: [batch, tokens, width].
        pooled: [batch, width] or None.
        sizes: [batch, 6], SDXL's original size, crop and target size, height before width; or None.
        masks: [batch, 1, height, width] at the latents' size, or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    states: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    masks: Tensor | None = None


class Denoiser:
    """The frozen model.

    Args:
        pipeline: a diffusers pipeline of Stable Diffusion 1, 2 or XL. Its weights are frozen.
        aside: names of parts ("vae", "text_encoder", ...) that lie in the computer's memory while they are not
            used: latents and text states are computed once, and the graphics card's memory is for the UNet.
    """

    def __init__(self, pipeline: Any, aside: Sequence[str] = ()) -> None:
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for part in self._parts():
            part.requires_grad_(False)
            part.eval()
        config = pipeline.scheduler.config
        self.predicts: str = config.get("prediction_type", "epsilon")
        self.alphas: Tensor = _alphas(config)
        self.is_xl: bool = getattr(pipeline, "text_encoder_2", None) is not None
        self._aside = tuple(name for name in aside if getattr(pipeline, name, None) is not None)
        self._awake: set[str] = set(self._aside)
        self._put_aside(self._aside)

    @contextlib.contextmanager
    def awake(self, *names: str) -> Iterator[None]:
        """While this holds, these parts (all, where none is named) are where the UNet is."""
        woken = [name for name in names or self._aside if name in self._aside and name not in self._awake]
        for name in woken:
            _move(getattr(self.pipeline, name), self.device)
            self._awake.add(name)
        try:
            yield
        finally:
            self._put_aside(woken)

    def _put_aside(self, names: Iterable[str]) -> None:
        for name in names:
            _move(getattr(self.pipeline, name), torch.device("cpu"))
            self._awake.discard(name)

    def _parts(self) -> list[Any]:
        names = ("unet", "vae", "text_encoder", "text_encoder_2")
        return [part for name in names if (part := getattr(self.pipeline, name, None)) is not None]

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        device: torch.device = next(iter(self.unet.parameters())).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """In which the UNet's weights are."""
        dtype: torch.dtype = next(iter(self.unet.parameters())).dtype
        return dtype

    @property
    def widths(self) -> tuple[int, ...]:
        """The context widths of the UNet's attention layers, rising."""
        return tuple(sorted({site.width for site in find_sites(self.unet)}))

    @property
    def resolution(self) -> int:
        """Pixels of the side of the square images that the model was made for."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.grain_of_latents

    @property
    def grain_of_latents(self) -> int:
        """Pixels per value of a latent, in each direction."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def latent_channels(self) -> int:
        """Channels of an image's latents."""
        return int(self.vae.config.latent_channels)

    @property
    def text_shape(self) -> tuple[int, int]:
        """Shape of a caption's states: tokens and width."""
        return int(self.pipeline.tokenizer.model_max_length), int(self.unet.config.cross_attention_dim)

    @property
    def grain(self) -> int:
        """Sizes of images are multiples of this: whole latents at every level of the UNet."""
        halvings = len(self.unet.config.block_out_channels) - 1
        return self.grain_of_latents * int(2**halvings)

    def encode_text(self, caption: str, *, trained: bool = False) -> Text:
        """What the text encoders make of a caption: float32 on the CPU; where it is trained, with gradients."""
        given: dict[str, Any] = {
            "prompt": caption,
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        with self.awake("text_encoder", "text_encoder_2"), torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            encoded = self.pipeline.encode_prompt(**given)
        pooled = encoded[2][0].float().cpu() if self.is_xl else None
        return Text(encoded[0][0].float().cpu(), pooled)

    @torch.no_grad()
    def encode_image(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the image's latents, [channels, height, width], float32 on the CPU, scaled."""
        vae = self.vae
        with self.awake("vae"), self._wide_vae():
            pixels = sample.pixels.unsqueeze(0).to(self.device, next(iter(vae.parameters())).dtype)
            found = vae.encode(pixels).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scale = vae.config.scaling_factor
        return ((found.mean[0].float() - shift) * scale).cpu(), (found.std[0].float() * scale).cpu()

    @contextlib.contextmanager
    def _wide_vae(self) -> Iterator[None]:
        """SDXL's first VAE gives NaN in float16, and says so; in float32 and back, its weights are the same."""
        before = next(iter(self.vae.parameters())).dtype
        if before != torch.float16 or not getattr(self.vae.config, "force_upcast", False):
            yield
            return
        # Not by its own `to`, which warns that its images may differ.
        nn.Module.to(self.vae, torch.float32)
        try:
            yield
        finally:
            nn.Module.to(self.vae, before)

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the UNet says, and what it should say; float32 [batch, channels, height, width]."""
        alphas = self.alphas.to(batch.latents.device)[batch.timesteps].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
        extra = {}
        if self.is_xl:
            assert batch.pooled is not None
            assert batch.sizes is not None
            extra["added_cond_kwargs"] = {
                "text_embeds": batch.pooled.to(self.dtype),
                "time_ids": batch.sizes.to(self.dtype),
            }
        with lean_graph(self.unet):
            found = self.unet(noisy.to(self.dtype), batch.timesteps, batch.states.to(self.dtype), **extra)
        said = found.sample.float()
        if self.predicts == "v_prediction":
            return said, alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * batch.latents
        return said, batch.latents if self.predicts == "sample" else batch.noise

    def losses(self, batch: Batch, min_snr: float = 0.0) -> Tensor:
        """The loss of each sample, [batch]: the mean squared error, weighted by mask and by min-SNR."""
        said, wanted = self.predict(batch)
        error = functional.mse_loss(said, wanted, reduction="none")
        if batch.masks is not None:
            # The mean over what counts; a sample whose mask is empty counts as a whole.
            weight = torch.where(batch.masks.amax(dim=(1, 2, 3), keepdim=True) > 0, batch.masks, 1.0)
            losses = (error.mean(dim=1, keepdim=True) * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
        else:
            losses = error.mean(dim=(1, 2, 3))
        return losses * self._snr_weight(batch.timesteps, min_snr) if min_snr else losses

    def _snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma)/SNR for noise, /(SNR + 1) for v: Hang et al. 2023, equation 8 and its v form."""
        alphas = self.alphas.to(timesteps.device)[timesteps]
        ratio = alphas / (1 - alphas)
        capped = ratio.clamp(max=gamma)
        if self.predicts == "v_prediction":
            return capped / (ratio + 1)
        return capped / ratio.clamp(min=1e-8) if self.predicts == "epsilon" else capped

    def fingerprint(self, part: str) -> str:
        """Which weights a part ("unet", "vae", "text") has: a hash over a few values of each of its tensors."""
        own = {"unet": self.unet, "vae": self.vae}
        parts = [own[part]] if part in own else [each for each in self._parts() if each not in own.values()]
        total = hashlib.sha256()
        for module in parts:
            for name, tensor in module.state_dict().items():
                total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                total.update(tensor.flatten()[:16].float().cpu().numpy().tobytes())
        return total.hexdigest()[:16]


def token_counter(tokenizer: Any) -> tuple[Callable[[str], int], int]:
    """How many tokens a tokenizer makes of a text, and how many of them the text encoder reads."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    # One each for the beginning and the end.
    return count, int(tokenizer.model_max_length) - 2


def _move(part: nn.Module, device: torch.device) -> None:
    part.to(device)


def _alphas(config: Any) -> Tensor:
    """The scheduler's cumulated alphas, [timesteps], float32; its formulas are those of the training."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(config)
    alphas: Tensor = scheduler.alphas_cumprod
    # A schedule that ends in pure noise makes the ratio zero, which only v-prediction can be trained with.
    return alphas.clamp(min=0.0, max=1 - 1e-6).float()
