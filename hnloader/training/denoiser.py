"""The frozen Stable Diffusion model: text to states, images to latents, latents to a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.training.fingerprints import fingerprint
from hnloader.training.pixels import Sample
from hnloader.training.recompute import recompute_activations


@dataclass(frozen=True)
class EncodedText:
    """A caption as the UNet takes it.

    Attributes:
        states: [tokens, width], for cross-attention.
        pooled: [width], the summary of SDXL's second encoder, or None.
    """

    states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Batch:
    """The input of one prediction, on the device of the model.

    Attributes:
        latents: [batch, channels, height, width], scaled for the UNet.
        noise: The same shape.
        timesteps: [batch], whole numbers.
        states: [batch, tokens, width].
        pooled: [batch, width] or None.
        sizes: [batch, 6] or None: SDXL's original size, crop and target size, height before width.
        masks: [batch, 1, height, width] at the size of the latents, or None.
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
        pipeline: A diffusers pipeline of Stable Diffusion 1, 2 or XL. Its weights are frozen.
        offload: Names of parts ("vae", "text_encoder", ...) that stay in CPU memory between uses. Latents and text
            states are computed once, so that the memory of the GPU is for the UNet.
    """

    def __init__(self, pipeline: Any, offload: Sequence[str] = ()) -> None:
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for part in self._parts():
            part.requires_grad_(False)
            part.eval()
        config = pipeline.scheduler.config
        self.prediction_type: str = config.get("prediction_type", "epsilon")
        self.alphas_cumprod: Tensor = _alphas_cumprod(config)
        self.is_xl: bool = getattr(pipeline, "text_encoder_2", None) is not None
        self._offload = tuple(name for name in offload if getattr(pipeline, name, None) is not None)
        self._loaded: set[str] = set(self._offload)
        self._unload(self._offload)

    @contextlib.contextmanager
    def loaded(self, *names: str) -> Iterator[None]:
        """Move offloaded parts (default: all) to the device of the UNet while this is active."""
        needed = [name for name in names or self._offload if name in self._offload and name not in self._loaded]
        for name in needed:
            _move(getattr(self.pipeline, name), self.device)
            self._loaded.add(name)
        try:
            yield
        finally:
            self._unload(needed)

    def _unload(self, names: Iterable[str]) -> None:
        for name in names:
            _move(getattr(self.pipeline, name), torch.device("cpu"))
            self._loaded.discard(name)

    def _parts(self) -> list[Any]:
        names = ("unet", "vae", "text_encoder", "text_encoder_2")
        return [part for name in names if (part := getattr(self.pipeline, name, None)) is not None]

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        device: torch.device = next(iter(self.unet.parameters())).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the UNet."""
        dtype: torch.dtype = next(iter(self.unet.parameters())).dtype
        return dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per value of a latent, in each direction."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """Image sizes are multiples of this, for whole latents at every level of the UNet."""
        return self.vae_scale_factor * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """Side of the square images that the model was made for, in pixels."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.vae_scale_factor

    def encode_text(self, caption: str, *, trained: bool = False) -> EncodedText:
        """Encode a caption: float32 on the CPU, with gradients if `trained`."""
        given: dict[str, Any] = {
            "prompt": caption,
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        with self.loaded("text_encoder", "text_encoder_2"), torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            encoded = self.pipeline.encode_prompt(**given)
        pooled = encoded[2][0].float().cpu() if self.is_xl else None
        return EncodedText(encoded[0][0].float().cpu(), pooled)

    @torch.no_grad()
    def encode_image(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents: [channels, height, width], float32 on the CPU, scaled."""
        vae = self.vae
        with self.loaded("vae"), self._float32_vae():
            pixels = sample.pixels.unsqueeze(0).to(self.device, next(iter(vae.parameters())).dtype)
            found = vae.encode(pixels).latent_dist
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scale = vae.config.scaling_factor
        return ((found.mean[0].float() - shift) * scale).cpu(), (found.std[0].float() * scale).cpu()

    @contextlib.contextmanager
    def _float32_vae(self) -> Iterator[None]:
        """Use a VAE in float32 if its config asks for that: SDXL's first one gives NaN in float16."""
        before = next(iter(self.vae.parameters())).dtype
        if before != torch.float16 or not getattr(self.vae.config, "force_upcast", False):
            yield
            return
        # Its own `to` warns that images may differ.
        nn.Module.to(self.vae, torch.float32)
        try:
            yield
        finally:
            nn.Module.to(self.vae, before)

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the prediction of the UNet and its target: float32 [batch, channels, height, width]."""
        alphas = self.alphas_cumprod.to(batch.latents.device)[batch.timesteps].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
        extra = {}
        if self.is_xl:
            assert batch.pooled is not None
            assert batch.sizes is not None
            extra["added_cond_kwargs"] = {
                "text_embeds": batch.pooled.to(self.dtype),
                "time_ids": batch.sizes.to(self.dtype),
            }
        with recompute_activations(self.unet):
            output = self.unet(noisy.to(self.dtype), batch.timesteps, batch.states.to(self.dtype), **extra)
        prediction = output.sample.float()
        if self.prediction_type == "v_prediction":
            return prediction, alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * batch.latents
        return prediction, batch.latents if self.prediction_type == "sample" else batch.noise

    def losses(self, batch: Batch, snr_gamma: float = 0.0) -> Tensor:
        """Return the loss of each sample, [batch]: the mean squared error, weighted by mask and min-SNR."""
        prediction, target = self.predict(batch)
        error = functional.mse_loss(prediction, target, reduction="none")
        if batch.masks is None:
            losses = error.mean(dim=(1, 2, 3))
        else:
            # An empty mask counts as a full one.
            weight = torch.where(batch.masks.amax(dim=(1, 2, 3), keepdim=True) > 0, batch.masks, 1.0)
            losses = (error.mean(dim=1, keepdim=True) * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
        return losses * self._snr_weights(batch.timesteps, snr_gamma) if snr_gamma else losses

    def _snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Return min(SNR, gamma)/SNR for epsilon, /(SNR + 1) for v: Hang et al. 2023, equation 8 and its v form."""
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alphas / (1 - alphas)
        capped = snr.clamp(max=gamma)
        if self.prediction_type == "v_prediction":
            return capped / (snr + 1)
        return capped / snr.clamp(min=1e-8) if self.prediction_type == "epsilon" else capped

    def fingerprint(self, part: str) -> str:
        """Return a hash of a few values of each tensor of a part: "unet", "vae" or "text"."""
        own = {"unet": self.unet, "vae": self.vae}
        parts = [own[part]] if part in own else [each for each in self._parts() if each not in own.values()]
        return fingerprint(parts)


def _move(part: nn.Module, device: torch.device) -> None:
    part.to(device)


def _alphas_cumprod(config: Any) -> Tensor:
    """Return the scheduler's cumulative alphas, [timesteps], float32."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(config)
    alphas: Tensor = scheduler.alphas_cumprod
    # A schedule that ends in pure noise has a ratio of zero, which only v-prediction can be trained with.
    return alphas.clamp(min=0.0, max=1 - 1e-6).float()
