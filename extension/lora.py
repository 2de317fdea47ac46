"""The webui's own model, run for LoRA conversion: no second copy in memory, and no diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.errors import HypernetworkError
from hnloader.ui import ImageRequest

from .generator import WebuiGenerator
from .runtime import Extension


class WebuiDenoiser:
    """See `hnloader.conversion.lora.model_runner.Denoiser`. Each call is a job of the webui; others go between them."""

    def __init__(self, extension: Extension, generator: WebuiGenerator) -> None:
        self._host, self._generator = extension.host, generator
        self._unet: nn.Module | None = None
        self.name = f"{extension.host.name}'s webui"

    @property
    def unet(self) -> nn.Module:
        """Of the checkpoint that is chosen at the first call, which is loaded then."""
        if self._unet is None:
            with self._host.turn(lambda: None):
                self._host.load()
                self._unet = self._host.unet()
        if self._unet is None:
            raise HypernetworkError("No Stable Diffusion 1, 2 or XL model is loaded. Choose one at the top.")
        return self._unet

    def encode(self, prompt: str) -> Tensor:
        """See the protocol."""
        unet = self.unet  # which takes a turn of its own
        with self._host.turn(lambda: None), self._with(unet), torch.inference_mode(False):
            return self._host.encode([prompt, ""]).detach().float().clone()

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
        """See the protocol."""

        unet = self.unet

        @contextmanager
        def ready() -> Iterator[None]:
            with self._with(unet), watched:
                yield

        request = ImageRequest(prompt, seed=seed, steps=steps, guidance=guidance)
        self._generator.run(request, lambda step, _: step_done(step), ready)

    @contextmanager
    def _with(self, unet: nn.Module) -> Iterator[None]:
        """Within a turn: what was sampled so far would not fit to the contexts of another model."""
        self._host.load()
        if self._host.unet() is not unet:
            raise HypernetworkError("Another checkpoint was chosen meanwhile. Convert again.")
        yield
