"""A small UNet that calls patches as ComfyUI's does, with copies of its options and a sampler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

SELF_WIDTHS, TEXT_WIDTH = (32, 64), 64
SIGMAS = (10.0, 6.0, 3.0, 1.0, 0.0)


class CrossAttention(nn.Module):
    def __init__(self, width: int, context_width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


class BasicTransformerBlock(nn.Module):
    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, width), CrossAttention(width, text_width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        x = x + self._attention("attn1", self.norm1(x), None, options)
        return x + self._attention("attn2", self.norm2(x), context, options)

    def _attention(self, name: str, x: Tensor, context: Tensor | None, options: dict[str, Any]) -> Tensor:
        layer = getattr(self, name)
        patches = options.get("patches", {}).get(f"{name}_patch", [])
        extra = {key: value for key, value in options.items() if key not in ("patches", "patches_replace")}
        k = v = x if context is None else context
        for patch in patches:
            x, k, v = patch(x, k, v, extra)
        replaced = options.get("patches_replace", {}).get(name, {}).get(options["block"])
        if replaced is None:
            return layer(x, k, v)
        return layer.to_out(replaced(layer.to_q(x), layer.to_k(k), layer.to_v(v), extra))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, text_width: int, depth: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(width, text_width) for _ in range(depth))

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        for index, block in enumerate(self.transformer_blocks):
            options["block_index"] = index
            rows = block(rows, context, options)
        return rows.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Conv2d):
    pass


class UNetModel(nn.Module):
    """Two levels with the widths 32 and 64; the second has two transformer blocks."""

    def __init__(self, text_width: int = TEXT_WIDTH) -> None:
        super().__init__()
        small, large = SELF_WIDTHS

        def block(width_in: int, width: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList([nn.Conv2d(width_in, width, 1), SpatialTransformer(width, text_width, depth)])

        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(4, small, 1)]),
                block(small, small, 1),
                nn.ModuleList([Downsample(small, small, 2, stride=2)]),
                block(small, large, 2),
            ]
        )
        self.middle_block = block(large, large, 1)
        self.output_blocks = nn.ModuleList([block(large, large, 1), block(large, small, 1)])
        self.out = nn.ConvTranspose2d(small, 4, 2, stride=2)

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        for section, blocks in (
            ("input", self.input_blocks),
            ("middle", [self.middle_block]),
            ("output", self.output_blocks),
        ):
            for number, modules in enumerate(blocks):
                options["block"] = (section, number)
                for module in modules:
                    x = module(x, context, options) if isinstance(module, SpatialTransformer) else module(x)
        return self.out(x)


class BaseModel(nn.Module):
    """The owner of `apply_model`: the UNet, its configuration, and the schedule of the noise."""

    def __init__(self, unet: nn.Module, name: str = "SD15", **config: object) -> None:
        super().__init__()
        self.diffusion_model = unet
        self.model_config = type(name, (), {"unet_config": config})()
        self.model_sampling = SimpleNamespace(percent_to_sigma=lambda percent: 12.0 * (1 - percent))
        self.current_patcher: Any = None
        self.control: dict[str, list[Any]] | None = None  # of a ControlNet

    def apply_model(self, x: Tensor, sigma: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        from comfy.patcher_extension import WrappersMP, wrapped

        run = wrapped(WrappersMP.APPLY_MODEL, self._apply_model, self, options)
        return run(x, sigma, None, context, self.control, options)

    def _apply_model(self, x: Tensor, t: Tensor, concat: None, context: Tensor, control: Any, options: dict) -> Tensor:
        dtype = next(self.diffusion_model.parameters()).dtype
        return self.diffusion_model(x.to(dtype), context.to(dtype), dict(options)).to(x.dtype)


class ModelPatcher:
    """A model with options. Copies share the weights, and copy the options deeply."""

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.object_patches: dict[str, Any] = {}
        self.hook_backup: dict[str, Tensor] = {}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = {
            kind: {key: list(each) for key, each in keyed.items()} for kind, keyed in self.wrappers.items()
        }
        other.hook_backup = self.hook_backup
        return other

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))

    def set_model_patch(self, patch: Any, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_replacement(self, replacement: Any, name: str, block: tuple[str, int]) -> None:
        options = self.model_options["transformer_options"]
        options.setdefault("patches_replace", {}).setdefault(name, {})[block] = replacement

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def patches_to(self, target: Any) -> None:
        for patches in self.model_options["transformer_options"].get("patches", {}).values():
            patches[:] = [each.to(target) if hasattr(each, "to") else each for each in patches]


class Guider:
    """One run: it copies the options, so that they end with it."""

    def __init__(self, patcher: ModelPatcher, conds: Sequence[tuple[Tensor, Any]]) -> None:
        self.model_patcher, self.conds = patcher, conds
        self.model_options: dict[str, Any] = {}

    def sample(self, noise: Tensor, sigmas: Tensor) -> Tensor:
        from comfy.patcher_extension import WrappersMP, wrapped

        patcher = self.model_patcher
        options = dict(patcher.model_options["transformer_options"])
        self.model_options = {"transformer_options": {**options, "wrappers": patcher.wrappers}}
        try:
            return wrapped(WrappersMP.OUTER_SAMPLE, self._run, self, self.model_options["transformer_options"])(
                noise, sigmas
            )
        finally:
            self.model_options = {}

    def _run(self, noise: Tensor, sigmas: Tensor) -> Tensor:
        for target in (torch.device("cpu"), torch.float8_e4m3fn):
            self.model_patcher.patches_to(target)
        model = self.model_patcher.model
        model.current_patcher = self.model_patcher
        x = noise
        for sigma in sigmas[:-1]:
            found = []
            for context, hooks in self.conds:
                options = {**self.model_options["transformer_options"], "sigmas": sigma[None], "sample_sigmas": sigmas}
                for hook in hooks.hooks if hooks is not None else ():
                    options = _merged(hook.transformers_dict, options)
                found.append(model.apply_model(x, sigma[None], context, options))
            x = x - 0.1 * sum(found)
        return x


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries, and append lists."""
    merged = dict(first)
    for key, value in second.items():
        if isinstance(value, dict):
            merged[key] = _merged(merged.get(key, {}), value)
        elif isinstance(value, list):
            merged[key] = [*merged.get(key, []), *value]
        else:
            merged[key] = value
    return merged


def make_model(name: str = "SD15", dtype: torch.dtype = torch.float32, **config: object) -> ModelPatcher:
    """Return a model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ModelPatcher(BaseModel(UNetModel(), name, **config).to(dtype).eval().requires_grad_(False))


def text(seed: int, tokens: int = 7) -> Tensor:
    return torch.randn(1, tokens, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


def sample(patcher: ModelPatcher, *conds: tuple[Tensor, Any], side: int = 4, steps: int = 4) -> Tensor:
    """Return the result of a few steps, by default for one text."""
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(5))
    sigmas = torch.tensor(SIGMAS[: steps + 1])
    with torch.inference_mode():
        return Guider(patcher, conds or [(text(1), None)]).sample(noise, sigmas)
