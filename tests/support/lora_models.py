"""Small pipelines and hypernetworks, and reading LoRA files without hnloader."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from torch import Tensor, nn

from hnloader.conversion.lora import LoraOptions, refining
from hnloader.network import Architecture, Hypernetwork
from tests.support.small_models import TEXT_WIDTH, make_scheduler, make_text_encoder, make_unet, make_vae

PROMPTS = ("a cat", "the dog runs", "blue sea and sky", "old house", "red car by night", "tree", "two birds")
# Enough for fits on random models of these widths; every test takes a second or two.
QUICK: dict[str, Any] = {"prompts": PROMPTS, "images": 5, "steps": 2}
LYCORIS = LoraOptions(kind="lycoris")


class Pipelines:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, kind: str) -> Any:
        parts = {"unet": make_unet(kind), "vae": make_vae(), "tokenizer": self.tokenizer, "scheduler": make_scheduler()}
        if kind == "sdxl":
            pipeline: Any = StableDiffusionXLPipeline(
                **parts,
                text_encoder=make_text_encoder(96),
                text_encoder_2=make_text_encoder(32, projection=32),
                tokenizer_2=self.tokenizer,
            )
        else:
            pipeline = StableDiffusionPipeline(
                **parts,
                text_encoder=make_text_encoder(TEXT_WIDTH[kind]),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def make_affine(
    widths: tuple[int | str, ...], *, bias: bool = True, seed: int = 0, **architecture: Any
) -> Hypernetwork:
    """A random hypernetwork without activation, whose change is about as large as its context."""
    return make_random(widths, Architecture((1, 2, 1), **architecture), bias=bias, seed=seed)


def make_random(
    widths: tuple[int | str, ...], architecture: Architecture, *, bias: bool = True, seed: int = 0
) -> Hypernetwork:
    torch.manual_seed(seed + 500)
    made = Hypernetwork.new(widths, architecture, name="style")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.7 / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.5 if bias else 0.0))
    return made.requires_grad_(False)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def errors_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read(path)[1]["hnloader.errors"])
    return found


@contextlib.contextmanager
def with_file(unet: nn.Module, path: Path, strength: float = 1.0) -> Iterator[nn.Module]:
    """A copy of a UNet with a file applied as the format says, from the names in diffusers' style."""
    twin = copy.deepcopy(unet)
    modules = {"lora_unet_" + name.replace(".", "_"): module for name, module in twin.named_modules()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read(path)[0].items():
        layer, _, part = name.partition(".")
        parts.setdefault(layer, {})[part] = tensor.double()
    for layer, given in parts.items():
        module: Any = modules[layer]
        with torch.no_grad():
            module.weight.add_(strength * _delta(given))
            if "diff_b" in given:
                if module.bias is None:
                    module.bias = nn.Parameter(torch.zeros(len(module.weight)))
                module.bias.add_(strength * given["diff_b"])
    yield twin


def _delta(given: Mapping[str, Tensor]) -> Tensor:
    if "diff" in given:
        return given["diff"]
    down, up = given["lora_down.weight"], given["lora_up.weight"]
    return up @ down * given["alpha"] / len(down)


class _Clock:
    """Each look takes a fifth of a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.2
        return self.now


def simulate_refining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refine with a simulated clock and short trajectories, so that steps do not depend on the machine."""
    monkeypatch.setattr(refining, "_STEPS", 2)
    monkeypatch.setattr("hnloader.conversion.lora.export.refine", lambda *given: refining.refine(*given, _Clock()))
