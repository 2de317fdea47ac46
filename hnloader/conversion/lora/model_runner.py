"""Run the model that a LoRA is made for: a pipeline of diffusers, or a program that has the model in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Denoiser", "DiffusersDenoiser"]


class Denoiser(Protocol):
    """A whole model with its text encoder, whose contexts can be sampled during denoising."""

    @property
    def name(self) -> str:
        """The source of the contexts, as the file states it."""
        ...

    @property
    def unet(self) -> nn.Module:
        """The UNet, in the layout of diffusers or of the original code."""
        ...

    def encode(self, prompt: str) -> Tensor:
        """Return the text contexts of the prompt and of the empty prompt [2, tokens, width]: guidance runs both."""
        ...

    def denoise(
        self,
        prompt: str,
        *,
        seed: int,
        steps: int,
        guidance: float,
        watched: AbstractContextManager[Any],
        step_done: Callable[[int], None],
    ) -> None:
        """Denoise an image within `watched` and call `step_done` after each step with its number, from 1.

        Exceptions of `step_done` pass through.
        """
        ...


class DiffusersDenoiser:
    """A pipeline of diffusers."""

    name = "pipeline"

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @property
    def unet(self) -> nn.Module:
        """The UNet of the pipeline."""
        unet: nn.Module = self._pipeline.unet
        return unet

    def encode(self, prompt: str) -> Tensor:
        """See `Denoiser`."""
        with torch.no_grad():
            found = self._pipeline.encode_prompt(
                prompt=prompt,
                device=self._pipeline.unet.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
                negative_prompt=None,
            )
        return torch.cat(found[:2])  # (prompt, negative prompt, ...)

    def denoise(
        self,
        prompt: str,
        *,
        seed: int,
        steps: int,
        guidance: float,
        watched: AbstractContextManager[Any],
        step_done: Callable[[int], None],
    ) -> None:
        """See `Denoiser`."""

        def at_step_end(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step_done(step + 1)
            return tensors

        with watched, torch.no_grad():
            self._pipeline(
                prompt,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                callback_on_step_end=at_step_end,
                callback_on_step_end_tensor_inputs=[],
            )
