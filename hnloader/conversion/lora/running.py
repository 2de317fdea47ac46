"""Running the model that a LoRA is made for: a pipeline of diffusers, or a program that has the model in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Denoiser(Protocol):
    """A whole model, text encoder included, whose contexts can be sampled while it makes images."""

    @property
    def name(self) -> str:
        """What a file says that the contexts come from."""
        ...

    @property
    def unet(self) -> nn.Module:
        """In the layout of diffusers or of the original code."""
        ...

    def encode(self, prompt: str) -> Tensor:
        """The text contexts of the prompt and of the empty one, [2, tokens, width]: guidance runs both."""
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
        """Make an image within `watched`, and call `step_done` with the number of each step that is done, from 1.

        Where `step_done` raises, the exception is let through.
        """
        ...


class DiffusersDenoiser:
    """A pipeline of diffusers."""

    name = "pipeline"

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @property
    def unet(self) -> nn.Module:
        """The pipeline's."""
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
