"""The webui's own model for conversion to LoRA: no second copy in memory, and no diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.errors import HypernetworkError
from hnloader.families import family_list
from hnloader.ui import ImageRequest

from .generator import WebuiGenerator
from .hosts.protocol import RunsModel


class WebuiDenoiser:
    """See `hnloader.conversion.lora.model_runner.Denoiser`. Each call is one job, and other jobs run in between."""

    def __init__(self, host: RunsModel, generator: WebuiGenerator) -> None:
        self._host, self._generator = host, generator
        self._unet: nn.Module | None = None
        self.name = f"{host.name}'s webui"

    @property
    def unet(self) -> nn.Module:
        """The UNet of the checkpoint that is selected at the first access."""
        if self._unet is None:
            with self._host.turn(lambda: None):
                self._host.load()
                self._unet = self._host.unet()
        if self._unet is None:
            raise HypernetworkError(f"No {family_list()} model is loaded. Select a checkpoint.")
        return self._unet

    def encode(self, prompt: str) -> Tensor:
        """See the protocol."""
        unet = self.unet  # takes its own turn
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
        """Require the same model within a turn: contexts of two models do not fit together."""
        self._host.load()
        if self._host.unet() is not unet:
            raise HypernetworkError("Another checkpoint was selected during the conversion. Convert again.")
        yield
