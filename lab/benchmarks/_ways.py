"""Apply hypernetworks in the ways that are compared: hnloader's, and plain versions of other programs'."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import hnloader
from hnloader.attention import find_sites
from hnloader.network import SIDES, Hypernetwork, SideName

Way: TypeAlias = "Callable[[nn.Module, Sequence[Hypernetwork]], object]"
Hook: TypeAlias = "Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]"
Forward: TypeAlias = "Callable[[Tensor], Tensor]"
Buffers: TypeAlias = "dict[tuple[int, int, int], Tensor]"
LORA_RANK = 16
STRENGTH = 0.8
_BLOCK_ROWS = 1024  # 1024 rows of 1280 values are 5 MB


def bare(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> None:
    """Leave the model unchanged."""


def ours(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> hnloader.Attachment:
    """Attach with hnloader and its defaults, on a webui's model as the extension does."""
    return hnloader.attach(model, list(hypernetworks), STRENGTH, fold=getattr(model, "plain_linears", True))


def ours_exact(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> hnloader.Attachment:
    """Attach with hnloader and the float32 rounding of the original programs."""
    return hnloader.attach(model, list(hypernetworks), STRENGTH, exact=True)


def ours_in_window(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> hnloader.Attachment:
    """Attach with hnloader for a part of the sampling that includes all steps of `Subject.step`."""
    return hnloader.attach(model, list(hypernetworks), STRENGTH, start=0.1, end=0.9)


def live_hooks(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> None:
    """Register the simplest hooks: before each `to_k` and `to_v`, run the side in the model's dtype."""

    def hook_with(chain: Sequence[nn.Module]) -> Hook:
        def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (context,) = args
            for module in chain:
                context = context + STRENGTH * module(context)
            return (context,)

        return hook

    cast = _cast(hypernetworks, model, next(model.parameters()).dtype)
    hook_projections(model, lambda width, side: hook_with(_chain(cast, width, side)))


def hook_projections(model: nn.Module, hook_for: Callable[[int, SideName], Hook]) -> None:
    """Register `hook_for(width, side)` before every `to_k` and `to_v`."""
    for site in find_sites(model):
        layer: Any = site.module
        layer.to_k.register_forward_pre_hook(hook_for(site.width, "k"))
        layer.to_v.register_forward_pre_hook(hook_for(site.width, "v"))


def webui(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> None:
    """Compute as AUTOMATIC1111's webui does: both contexts of a layer, in float32, cast back after each file."""

    def applied(chain: Sequence[nn.Module], context: Tensor) -> Tensor:
        for module in chain:
            wide = context.float()
            context = (wide + module(wide) * STRENGTH).to(context.dtype)
        return context

    def hook_both(layer: Any, k: Sequence[nn.Module], v: Sequence[nn.Module]) -> None:
        waiting: list[Tensor] = []

        def before_k(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            changed = applied(k, args[0])
            waiting.append(applied(v, args[0]))
            return (changed,)

        layer.to_k.register_forward_pre_hook(before_k)
        layer.to_v.register_forward_pre_hook(lambda _, args: (waiting.pop(),))

    cast = _cast(hypernetworks, model, torch.float32)
    for site in find_sites(model):
        hook_both(site.module, _chain(cast, site.width, "k"), _chain(cast, site.width, "v"))


def arithmetic(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> None:
    """Add only what no exact way can avoid, and remove what it can: the lower bound of a step.

    In self-attention, files with activations cost their products, which are written into buffers. Keys and values of
    the text cost nothing, not even their projections. The output is the bare model's.
    """
    cast = _cast(hypernetworks, model, next(model.parameters()).dtype)
    affine = all(each.architecture is not None and each.architecture.affine for each in cast)
    buffers: Buffers = {}
    for site in find_sites(model):
        for side in SIDES:
            layer = site.module.get_submodule(f"to_{side}")
            modules = [module for chain in _chain(cast, site.width, side) for module in chain.children()]
            if site.kind == "cross":
                layer.forward = _returning_the_first(layer.forward)
            elif modules and not affine:
                layer.forward = _after_products(layer.forward, modules, buffers)


def _returning_the_first(forward: Forward) -> Forward:
    outputs: list[Tensor] = []

    def stored(context: Tensor) -> Tensor:
        if not outputs:
            outputs.append(forward(context))
        return outputs[0]

    return stored


def _after_products(forward: Forward, modules: Sequence[nn.Module], buffers: Buffers) -> Forward:
    """Return a forward that first runs the modules, on a CPU in blocks of rows that stay in its cache."""

    def products(values: Tensor) -> None:
        for place, module in enumerate(modules):
            if isinstance(module, nn.Linear):
                key = (place, values.shape[0], module.out_features)
                if key not in buffers:
                    buffers[key] = values.new_empty(key[1:])
                values = torch.mm(values, module.weight.t(), out=buffers[key])
            elif isinstance(module, nn.ReLU):
                values.relu_()
            elif isinstance(module, nn.LayerNorm):
                values = module(values)

    def changed(context: Tensor) -> Tensor:
        rows = context.flatten(0, -2)
        for block in rows.split(_BLOCK_ROWS) if rows.device.type == "cpu" else (rows,):
            products(block)
        return forward(context)

    return changed


def lora(model: nn.Module, hypernetworks: Sequence[Hypernetwork]) -> None:
    """Add a LoRA to every `to_k` and `to_v` with peft, the usual alternative to a hypernetwork."""
    from peft import LoraConfig

    config = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["to_k", "to_v"], init_lora_weights="gaussian"
    )
    model.add_adapter(config)  # type: ignore[operator]


def _cast(hypernetworks: Sequence[Hypernetwork], model: nn.Module, dtype: torch.dtype) -> list[Hypernetwork]:
    """Return copies on the model's device, which all layers of a width share."""
    device = next(model.parameters()).device
    return [copy.deepcopy(each).to(device=device, dtype=dtype) for each in hypernetworks]


def _chain(hypernetworks: Sequence[Hypernetwork], width: int, side: SideName) -> list[nn.Module]:
    """Return the Sequential modules of one side, in order."""
    sides: list[Any] = [each.side(width, side) for each in hypernetworks if width in each.widths]
    return [each.linear for each in sides]


class Attaching:
    """Attaches with hnloader when called, and keeps the attachment."""

    attachment: hnloader.Attachment

    def __init__(self, model: object, hypernetworks: Sequence[Hypernetwork], *, fold: bool = True) -> None:
        self._model, self._hypernetworks, self._fold = model, list(hypernetworks), fold

    def __call__(self) -> None:
        self.attachment = hnloader.attach(self._model, self._hypernetworks, STRENGTH, fold=self._fold)


def plans(attachment: hnloader.Attachment) -> str:
    """Return the plans of an attachment, such as `self fold, cross cache`. The model must have run once."""
    found: dict[str, dict[str, None]] = {}
    for row in attachment.explain().rows:
        found.setdefault(row.kind, {})[row.plan] = None
    return ", ".join(f"{kind} {' + '.join(names)}" for kind, names in sorted(found.items(), reverse=True))
