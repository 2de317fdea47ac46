"""Projections with the affine end of a chain folded into their matrix.

A fold is a second matrix beside that of the module: K = (Wk (I + s A)) c + (bk + s Wk a). The module's parameters never
change, so nothing has to be restored, and `state_dict`, training and saving see the originals. The cost is one copy of
each projection with a fold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.affine import AffineMap
from hnloader.attention.hooks import SideHook
from hnloader.attention.plans import SidePlan, Signature
from hnloader.attention.stages import HALF, stretch_map
from hnloader.network import Hypernetwork

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Values of a weight that are compared at each call, to notice changes that torch does not count: `weight.data += x`.
SAMPLES = 256
# The same for each parameter of a hypernetwork on the CPU.
OWN_SAMPLES = 32
# A weight that changes more often while attached is being trained or merged; folding it again would not pay.
MOST_CHANGES = 8
# The rounding of a fold may grow by this factor when new strengths are worked into it.
MOST_GROWTH = 32.0
# Contexts that check a fold.
PROBES = 8


# By the plan and the weight's dtype and device; all sites of a plan share a stretch.
Maps: TypeAlias = "dict[tuple[SidePlan, torch.dtype, torch.device], _Stretch]"
# The module's parameters; the hypernetworks that are folded, by part; their strengths.
Key: TypeAlias = "tuple[object, object, tuple[tuple[float, ...], ...]]"


@dataclass(frozen=True)
class Fold:
    """A matrix with a chain folded into it.

    Attributes:
        plans: Plan of each part, None for a part that stays (the queries).
        weight: [outputs, inputs], of the module's dtype.
        bias: [outputs], of the module's dtype.
        key: Identity of the values that it was made from.
        samples: Values of the module's weight and bias.
        growth: Rounding relative to a new fold.
    """

    plans: tuple[SidePlan | None, ...]
    weight: Tensor
    bias: Tensor
    key: Key
    samples: tuple[Sample, ...]
    growth: float = 1.0

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return (self.weight.numel() + self.bias.numel()) * self.weight.element_size()

    def changed(self) -> bool:
        """Return True if the samples of the module's values differ now."""
        return any(sample.changed() for sample in self.samples)


class Projection:
    """The forward of a `to_k`, `to_v`, `to_qkv` or `to_kv` that is a plain Linear.

    Attributes:
        module: The projection.
        owned: True if this forward applies the hypernetworks, False if the hooks do.
        fold: The present fold.
        why_not: Reason against a fold, empty if it may have one.
    """

    def __init__(self, module: nn.Module, parts: Sequence[SideHook | None]) -> None:
        self.module = module
        self.parts = tuple(parts)
        self.owned = False
        self.fold: Fold | None = None
        self.why_not = ""
        self._asleep: Fold | None = None  # kept while a window is closed
        self._changes = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Linear.forward
        """Compute `nn.Linear.forward` of the module, with the hypernetworks if `owned`."""
        module = self.module
        if not self.owned:
            unchanged: Tensor = type(module).forward(module, input)
            return unchanged
        weight: Tensor = module.weight  # type: ignore[assignment]
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        fold = self.fold
        if fold is None or not _fits(fold, input, weight):
            contexts = [input if part is None else part.apply(input) for part in self.parts]
        else:
            weight, bias = fold.weight, fold.bias
            contexts = [input if plan is None else plan.before_fold(input) for plan in fold.plans]
        if len(contexts) == 1:
            return functional.linear(contexts[0], weight, bias)
        if all(context is contexts[0] for context in contexts):
            return functional.linear(contexts[0], weight, bias)
        count = len(contexts)
        biases = [None] * count if bias is None else bias.chunk(count)
        parts = zip(contexts, weight.chunk(count), biases, strict=True)
        return torch.cat([functional.linear(context, w, b) for context, w, b in parts], dim=-1)

    def check(self, model_moves: str) -> None:
        """Set `why_not`; `model_moves` is the reason why the model's weights move between devices, if any."""
        unsteady = "its weight keeps changing" if self._changes > MOST_CHANGES else ""
        self.why_not = model_moves or _why_not(self.module) or unsteady

    def refresh(self, maps: Maps) -> None:
        """Fold according to the present plans, or drop the fold."""
        plans = tuple(None if part is None else part.plan for part in self.parts)
        if not self.owned or self.why_not:
            self.fold = self._asleep = None
            return
        if not any(plan is not None and plan.foldable for plan in plans):
            self._asleep, self.fold = self.fold or self._asleep, None
            return
        old, key = self.fold or self._asleep, _key(self.module, plans)
        self._asleep = None
        with torch.inference_mode(False), torch.no_grad():
            if old is not None and old.key[0] == key[0] and not old.changed():
                if old.key == key:
                    self.fold = replace(old, plans=plans)
                    return
                self.fold = _rescaled(old, key, plans, self.module)
                if self.fold is not None:
                    return
            self.fold = None  # free its memory before making another
            del old
            try:
                fold = _make(self.module, plans, key, maps)
                self.why_not = _too_rough(fold, self.module, maps)
            except (MemoryError, torch.cuda.OutOfMemoryError):
                self.why_not = "the memory does not hold a copy of its weight"
            self.fold = None if self.why_not else fold

    def count_replacement(self) -> None:
        """Count a change if the module has other parameters than the fold was made from."""
        if self.fold is not None and self.fold.key[0] != versions(self.module._parameters.values()):
            self._changes += 1

    def count_change(self) -> None:
        """Count a change if the weight's values changed in a way that torch does not count."""
        if self.fold is not None and self.fold.changed():
            self._changes += 1

    def forget(self) -> None:
        """Drop the fold; `refresh` makes it again."""
        self.fold = self._asleep = None

    def __getstate__(self) -> dict[str, object]:
        """Copy no fold: another program's wrapper of the module's forward may hold this."""
        return {**self.__dict__, "owned": False, "fold": None, "_asleep": None}


class Sample:
    """Some values of a weight, to notice changes that torch does not count, such as `weight.data += delta`.

    peft merges a LoRA in this way. That changes nearly all values of a weight, so some are enough.
    """

    def __init__(self, weight: Tensor, count: int = SAMPLES) -> None:
        step = weight.numel() // count | 1  # odd, so that it passes through all columns
        self.view = weight.detach().view(-1)[::step]
        self.values = self.view.clone()

    def changed(self) -> bool:
        """Return True if the weight has other values now."""
        return not torch.equal(self.view, self.values)


class Watch:
    """Samples of many tensors, compared at once for each device and dtype."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[Sample]] = {}
        for sample in samples:
            groups.setdefault((sample.values.device, sample.values.dtype), []).append(sample)
        self._groups = [
            ([sample.view for sample in samples], torch.cat([sample.values for sample in samples]))
            for samples in groups.values()
        ]

    def changed(self) -> bool:
        """Return True if a tensor has other values now."""
        return any(not torch.equal(torch.cat(views), values) for views, values in self._groups)


def watch_folds(projections: Iterable[Projection]) -> Watch:
    """Watch the weights of all folds."""
    return Watch(sample for each in projections if each.fold is not None for sample in each.fold.samples)


def watch_hypernetworks(hypernetworks: Iterable[Hypernetwork]) -> Watch:
    """Watch parameters on the CPU, where comparing is fast, except parameters in training, which are never kept."""
    parameters = [parameter for each in hypernetworks for parameter in each.parameters()]
    return Watch(
        Sample(parameter, OWN_SAMPLES)
        for parameter in parameters
        if parameter.device.type == "cpu" and not parameter.requires_grad and parameter.is_contiguous()
    )


def _fits(fold: Fold, input: Tensor, weight: Tensor) -> bool:  # noqa: A002
    """Return True if the fold can replace the weight: no gradients are recorded, and all is on one device."""
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return False
    return input.device == fold.weight.device


def moves_weights(modules: Iterable[dict[str, Any]]) -> str:
    """Return a reason if accelerate or diffusers left an offloading hook among these attributes, else an empty text."""
    for attributes in modules:
        if "_hf_hook" in attributes or "_diffusers_hook" in attributes:
            return "the model is offloaded"
    return ""


def is_plain(module: nn.Module) -> bool:
    """Return True if a projection is exactly a Linear.

    AUTOMATIC1111's webui puts its LoRA into `nn.Linear.forward` for all modules; then none is plain.
    """
    return (
        type(module) is nn.Linear
        and nn.Linear.forward.__module__ == "torch.nn.modules.linear"
        and type(module._parameters.get("weight")) is nn.Parameter
        and type(module._parameters.get("bias")) in (nn.Parameter, type(None))
        and module.weight.dtype in DTYPES
    )


def _why_not(module: nn.Module) -> str:
    """Return the reason against a fold, empty if the projection may have one."""
    if not is_plain(module):
        own = module._parameters.get("weight")
        what = "" if own is None else f", {str(own.dtype).removeprefix('torch.')}"
        return f"the projection differs from a plain Linear ({type(module).__name__}{what})"
    weight, bias = _tensors(module)
    if weight.layout != torch.strided or not weight.is_contiguous() or not (bias is None or bias.is_contiguous()):
        return "its weight is not contiguous"
    if weight.device.type == "meta":
        return "its weight is not in memory"
    if weight.is_inference():
        return "its weight was made in inference mode, which hides changes"
    return ""


def foreign_hooks(module: nn.Module, own: Sequence[object]) -> bool:
    """Return True if another program has hooks on a module, which may read or change its input and output."""
    if module._backward_hooks or module._backward_pre_hooks:
        return True
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(all(hook is not each for each in own) for hook in hooks)


def versions(parameters: Iterable[nn.Parameter | None]) -> list[object]:
    """Return values that differ after a parameter is replaced, moved or converted, or changes as torch counts it."""
    state: list[object] = []
    for parameter in parameters:
        if parameter is None or parameter.is_inference():
            state.append(id(parameter))
        else:
            state += (id(parameter), parameter._version, parameter.data_ptr())
    return state


def _key(module: nn.Module, plans: Sequence[SidePlan | None]) -> Key:
    folded = [() if plan is None else plan.foldable for plan in plans]
    hypernetworks = tuple(tuple(link.hypernetwork for link in links) for links in folded)
    signatures = [Signature(each).value for each in hypernetworks]
    strengths = tuple(tuple(link.strength for link in links) for links in folded)
    return versions(module._parameters.values()), (hypernetworks, signatures), strengths


def _tensors(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None, "a plain projection has a weight"
    return weight.detach(), None if bias is None else bias.detach()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _make(module: nn.Module, plans: tuple[SidePlan | None, ...], key: Key, maps: Maps) -> Fold:
    """Make a fold in float32 (float64 for a float64 module), rounded once to the module's dtype."""
    weight, bias = _tensors(module)
    whole_bias = weight.new_zeros(len(weight)) if bias is None else bias
    result, result_bias = torch.empty_like(weight), torch.empty_like(whole_bias)
    chunks = (x.chunk(len(plans)) for x in (weight, whole_bias, result, result_bias))
    for plan, w, b, new, new_bias in zip(plans, *chunks, strict=True):
        if plan is None or not plan.foldable:
            new.copy_(w)
            new_bias.copy_(b)
            continue
        inner, own = _stretch(plan, weight, maps).map, w.to(_wide(weight.dtype))
        new.copy_(own @ inner.matrix)
        new_bias.copy_(inner.bias @ own.T + b)
    return Fold(
        plans, result, result_bias, key, tuple(Sample(tensor) for tensor in (weight, bias) if tensor is not None)
    )


@dataclass(frozen=True)
class _Stretch:
    """The affine map of a fold, and the exact result for the contexts that check it.

    Attributes:
        map: In float32, or float64 for a float64 model.
        changed: [PROBES, width], the contexts after the hypernetworks, in the dtype of `map`.
    """

    map: AffineMap
    changed: Tensor


def _stretch(plan: SidePlan, weight: Tensor, maps: Maps) -> _Stretch:
    key = (plan, weight.dtype, weight.device)
    if key not in maps:
        dtype = _wide(weight.dtype)
        inner = stretch_map(plan.foldable, plan.side, plan.width, dtype, weight.device)
        changed = _probes(plan.width, weight).to(dtype)
        for link in plan.foldable:
            stored = link.hypernetwork.side(plan.width, plan.side)
            changed = copy.deepcopy(stored).to(weight.device, dtype)(changed, link.strength)
        maps[key] = _Stretch(inner, changed)
    return maps[key]


def _probes(width: int, like: Tensor) -> Tensor:
    return torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0)).to(like)


def _rescaled(old: Fold, key: Key, plans: tuple[SidePlan | None, ...], module: nn.Module) -> Fold | None:
    """Work a new strength into the fold of one hypernetwork: W + r (W' - W).

    Its rounding grows with the ratio r of the strengths. Return None if it grows too much, if more than a strength
    changed, or in half precision.
    """
    strengths = [pair for pair in zip(old.key[2], key[2], strict=True) if any(pair)]
    if old.key[:2] != key[:2] or old.weight.dtype in HALF or any(len(new) != 1 for _, new in strengths):
        return None
    ratios = {new[0] / before[0] for before, new in strengths}
    ratio = ratios.pop()
    growth = math.sqrt(ratio**2 * (old.growth**2 + 1) + 1)
    if ratios or growth > MOST_GROWTH:
        return None
    weight, bias = _tensors(module)
    torch.lerp(weight, old.weight, ratio, out=old.weight)
    torch.lerp(torch.zeros_like(old.bias) if bias is None else bias, old.bias, ratio, out=old.bias)
    return replace(old, plans=plans, key=key, growth=growth)


def _too_rough(fold: Fold, module: nn.Module, maps: Maps) -> str:
    """Return a reason if a fold is worse than the exact result on contexts of unit variance, else an empty text.

    In float32 and float64 both must agree within a fifth of 1e-5, the bound of all plans. In half precision the root
    mean square error against float32 may be twice the rounding error of the exact result.
    """
    weight, bias = _tensors(module)
    count = len(fold.plans)
    biases = [None] * count if bias is None else bias.chunk(count)
    folded = functional.linear(_probes(weight.shape[1], weight), fold.weight, fold.bias).chunk(count, dim=-1)
    for plan, result, w, b in zip(fold.plans, folded, weight.chunk(count), biases, strict=True):
        if plan is not None and plan.foldable:
            changed = _stretch(plan, weight, maps).changed
            exact = functional.linear(changed, w.to(changed), None if b is None else b.to(changed))
            error = (result.to(exact) - exact).abs()
            if exact.dtype == weight.dtype:
                good = error.max() <= 2e-6 * exact.abs().max()
            else:
                rounded = functional.linear(changed.to(weight), w, b).to(exact)
                good = error.square().mean() <= 4 * (rounded - exact).square().mean()
            if not good:
                return "its matrix would round too much"
    return ""
