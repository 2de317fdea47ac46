"""Contexts of a model's attention layers: samples and their second moments.

Contexts are sampled with the hypernetworks applied, because they change the input of later layers. Prompts are split
three ways: most for fitting, some for choosing rank and ridge, and the rest, which the fit never sees, for measuring
the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hnloader.attention import attachments
from hnloader.attention.layout import AttentionSite, find_sites
from hnloader.conversion.lora.base_model import BaseModel
from hnloader.conversion.lora.layer_names import diffusers_name
from hnloader.conversion.lora.lora_chain import Chain
from hnloader.conversion.lora.model_runner import Denoiser
from hnloader.errors import HypernetworkError, ModelError
from hnloader.network import SIDES, SideName

__all__ = [
    "ROLES",
    "Layer",
    "Moments",
    "Progress",
    "Role",
    "Sampling",
    "Statistics",
    "random_contexts",
    "random_inputs",
    "running_modules",
    "sample",
]

Role = Literal["fit", "validation", "test"]
# Roles of consecutive prompts, repeated. The length is the least number of prompts.
ROLES: tuple[Role, ...] = ("fit", "fit", "validation", "fit", "test")

TOKENS = 256  # random tokens per sequence of a self-attention layer
KEPT_SEQUENCES = 32  # per layer, for each of the roles "validation" and "test"
KEPT_TOKENS = 32

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling, see `LoraOptions`; the prompts are read."""

    prompts: tuple[str, ...]
    images: int = 10
    steps: int = 8
    seed: int = 0
    guidance: float = 5.0

    def __post_init__(self) -> None:
        if len(set(self.prompts)) < len(ROLES):
            raise HypernetworkError(f"Found {len(set(self.prompts))} different prompts. Give at least {len(ROLES)}.")
        if self.images < len(ROLES) or self.steps < 1:
            raise HypernetworkError(
                f"Found {self.images} images of {self.steps} steps. Give at least {len(ROLES)} images of 1 step."
            )


@dataclass
class Moments:
    """Sums over the contexts c of a layer and the chain's additions a to them, in float64.

    The `inner` sums use c and a minus their mean over the tokens of a sequence: the part of keys that attention sees
    (see `fitting`).

    Attributes:
        count: Number of tokens.
        c, cc, inner_cc: Sums of c [width] and of c c^T [width, width].
        a, ac, inner_ac: Sums of a [width] and of a c^T [width, width], for each side that needs a fit.
    """

    count: int
    c: Tensor
    cc: Tensor
    inner_cc: Tensor
    a: dict[SideName, Tensor] = field(default_factory=dict)
    ac: dict[SideName, Tensor] = field(default_factory=dict)
    inner_ac: dict[SideName, Tensor] = field(default_factory=dict)


class Layer:
    """Samples of one attention layer, or of several that share their contexts."""

    def __init__(self, site: AttentionSite, chain: Chain) -> None:
        self.site, self.chain = site, chain
        zeros = torch.zeros(site.width, site.width, dtype=torch.float64)
        self.moments = Moments(0, zeros[0].clone(), zeros.clone(), zeros.clone())
        self._fitted_sides = [side for side in SIDES if chain.affine(site, side) is None and chain.links(site, side)]
        for side in self._fitted_sides:
            self.moments.a[side] = zeros[0].clone()
            self.moments.ac[side] = zeros.clone()
            self.moments.inner_ac[side] = zeros.clone()
        self.kept: dict[Role, list[Tensor]] = {"validation": [], "test": []}
        self._generator = torch.Generator().manual_seed(site.index)

    def add(self, contexts: Tensor, role: Role) -> None:
        """Add contexts [sequences, tokens, width]."""
        contexts = contexts.float().cpu()
        if role != "fit":
            room = KEPT_SEQUENCES - len(self.kept[role])
            for sequence in contexts[:room]:
                tokens = torch.randperm(len(sequence), generator=self._generator)[:KEPT_TOKENS]
                self.kept[role].append(sequence[tokens])
            return
        c = contexts.double()
        inner = (c - c.mean(1, keepdim=True)).flatten(0, 1)
        flat = c.flatten(0, 1)
        moments = self.moments
        moments.count += len(flat)
        moments.c += flat.sum(0)
        moments.cc += flat.T @ flat
        moments.inner_cc += inner.T @ inner
        for side in self._fitted_sides:
            a = self.chain.change(self.site, side, contexts)
            moments.a[side] += a.sum((0, 1))
            moments.ac[side] += a.flatten(0, 1).T @ flat
            moments.inner_ac[side] += (a - a.mean(1, keepdim=True)).flatten(0, 1).T @ inner

    def samples(self, role: Role) -> list[Tensor]:
        """Return the kept sequences [tokens, width] in float32. Raises HypernetworkError."""
        if not self.kept[role]:
            raise HypernetworkError(f"{self.site.name}: the model never ran this layer. Give a model that uses it.")
        return self.kept[role]


@dataclass(frozen=True)
class Statistics:
    """The sampled contexts of every layer that the chain changes, and a description of their source."""

    layers: dict[int, Layer]
    description: str

    def of(self, site: AttentionSite) -> Layer:
        """Return the samples of a site."""
        return self.layers[site.index]


def sample(base: BaseModel, chain: Chain, sampling: Sampling, progress: Progress) -> Statistics:
    """Run the base model with the chain applied and sample the contexts of its attention layers.

    A whole model denoises images; text contexts are its encodings of all prompts. A UNet alone runs on random latents
    and random text contexts.

    Raises:
        ModelError: The model cannot be loaded.
        HypernetworkError: Hypernetworks are attached to the model.
    """
    denoiser = base.denoiser()
    unet = base.runnable()[1] if denoiser is None else denoiser.unet
    if attachments(unet):
        raise HypernetworkError("Hypernetworks are attached to the model. Detach them before the export.")
    observed = _Observed(unet, base, chain, sampling.seed)
    if denoiser is None:
        _run_unet(unet, observed, sampling, progress)
        description = (
            f"UNet alone: {sampling.images * sampling.steps} passes on random latents with random text contexts "
            "(independent, variance 1); real text contexts were not available"
        )
    else:
        _encode_prompts(denoiser, observed, sampling)
        _denoise(denoiser, observed, sampling, progress)
        description = (
            f"{denoiser.name}: text contexts of {len(sampling.prompts)} prompts and of the empty one, half each; "
            f"self-attention contexts of {sampling.images} images at {sampling.steps} steps, seeds from "
            f"{sampling.seed}, guidance {sampling.guidance:g}, with the hypernetworks applied"
        )
    return Statistics(observed.layers, description)


def random_contexts(sites: Sequence[AttentionSite], chain: Chain, seed: int) -> Statistics:
    """Return random contexts to measure an exact export on, without running a model."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for site in _changed(sites, chain):
        layer = Layer(site, chain)
        layer.add(torch.randn(4, 32, site.width, generator=generator), "test")
        layers[site.index] = layer
    return Statistics(layers, "random contexts (independent, variance 1): an exact export needs no others")


def _changed(sites: Sequence[AttentionSite], chain: Chain) -> Iterator[AttentionSite]:
    return (site for site in sites if any(chain.links(site, side) for side in SIDES))


def running_modules(unet: nn.Module, base: BaseModel, sites: Sequence[AttentionSite]) -> dict[str, nn.Module]:
    """Return the attention layers of a running UNet by their names in diffusers; raise ModelError if a site lacks."""
    modules = {diffusers_name(site.name, base.layers) or site.name: site.module for site in find_sites(unet)}
    if missing := [site.name for site in sites if site.name not in modules]:
        raise ModelError(f"{missing[0]}: missing in the model that runs. Give {base.name} itself.")
    return modules


class _Observed:
    """Hooks that apply the chain at the attention layers of a UNet and pass their contexts to `Layer`s."""

    def __init__(self, unet: nn.Module, base: BaseModel, chain: Chain, seed: int) -> None:
        self.chain = chain
        self.role: Role = "fit"
        self._generator = torch.Generator().manual_seed(seed)
        # Text contexts are the same in all cross-attention layers, so layers with the same chain share samples.
        self.texts: dict[object, Layer] = {}
        self.layers: dict[int, Layer] = {}
        for site in _changed(base.sites, chain):
            if site.kind == "self":
                self.layers[site.index] = Layer(site, chain)
                continue
            links = (site.width, *(chain.links(site, side) for side in SIDES))
            if links not in self.texts:
                self.texts[links] = Layer(site, chain)
            self.layers[site.index] = self.texts[links]
        changed = list(_changed(base.sites, chain))
        modules = running_modules(unet, base, changed)
        self._sites = [(site, modules[site.name]) for site in changed]

    def add_text(self, contexts: Tensor, role: Role) -> None:
        """Add text contexts [sequences, tokens, width] to all cross-attention layers."""
        for layer in self.texts.values():
            layer.add(contexts, role)

    def __enter__(self) -> _Observed:
        self._handles = []
        for site, module in self._sites:
            for side in SIDES:
                projection: Any = getattr(module, f"to_{side}")
                self._handles.append(projection.register_forward_pre_hook(self._hook(site, side)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, site: AttentionSite, side: SideName) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def run(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            context = inputs[0]
            if side == "k" and site.kind == "self":
                tokens = torch.randperm(context.shape[1], generator=self._generator)[:TOKENS]
                # Some programs sample in inference mode, whose tensors cannot be fitted to.
                with torch.inference_mode(False), torch.no_grad():
                    self.layers[site.index].add(context[:, tokens.to(context.device)], self.role)
            return self.chain.apply(site, side, context), *inputs[1:]

        return run


def _encode_prompts(denoiser: Denoiser, observed: _Observed, sampling: Sampling) -> None:
    if observed.texts:
        for index, prompt in enumerate(sampling.prompts):
            observed.add_text(denoiser.encode(prompt), ROLES[index % len(ROLES)])


def _denoise(denoiser: Denoiser, observed: _Observed, sampling: Sampling, progress: Progress) -> None:
    total = sampling.images * sampling.steps
    for index in range(sampling.images):
        observed.role = ROLES[index % len(ROLES)]

        def step_done(step: int, index: int = index) -> None:
            progress(index * sampling.steps + step, total, "Sampling contexts")

        denoiser.denoise(
            sampling.prompts[index % len(sampling.prompts)],
            seed=sampling.seed + index,
            steps=sampling.steps,
            guidance=sampling.guidance,
            watched=observed,
            step_done=step_done,
        )


def _run_unet(unet: Any, observed: _Observed, sampling: Sampling, progress: Progress) -> None:
    generator = torch.Generator().manual_seed(sampling.seed)
    total = sampling.images * sampling.steps
    for index in range(sampling.images):
        observed.role = ROLES[index % len(ROLES)]
        for step in range(sampling.steps):
            inputs = random_inputs(unet, 999 - 1000 * step // sampling.steps, generator)
            observed.add_text(inputs["encoder_hidden_states"], observed.role)
            with observed, torch.no_grad():
                unet(**inputs)
            progress(index * sampling.steps + step + 1, total, "Sampling contexts")


def random_inputs(unet: Any, timestep: int, generator: torch.Generator) -> dict[str, Any]:
    """Return inputs of a UNet of diffusers: random latents and random text contexts."""
    config = unet.config

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    contexts, size = random(2, 77, config.cross_attention_dim), config.sample_size
    inputs: dict[str, Any] = {
        "sample": random(2, config.in_channels, size, size),
        "timestep": torch.tensor(timestep, device=unet.device),
        "encoder_hidden_states": contexts,
    }
    if config.addition_embed_type == "text_time":
        pixels = size * 8
        time_ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 2)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": random(2, pooled),
            "time_ids": time_ids.to(unet.device, unet.dtype),
        }
    return inputs
