"""Hypernetworks as attention patches of a ComfyUI model."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from hnloader.attention.strengths import Strength
from hnloader.errors import HypernetworkError
from hnloader.network import Hypernetwork, SideName

from .folded_context import Change, FoldedContext, KeptFolds, change, plain
from .sampling_window import Window
from .unet_layers import Place, layers_of, place_of

_KEY = "hnloader"
# Position of `transformer_options` among the arguments of `apply_model`, after a ControlNet's dictionary.
_OPTIONS = 5
# Keys of `transformer_options`.
_CALLS, _KEPT = "hnloader_calls", "hnloader_kept"
_KINDS = {"attn1_patch": "self", "attn2_patch": "cross"}


@dataclass(frozen=True)
class Setting:
    """A hypernetwork and how to apply it.

    Args:
        hypernetwork: The hypernetwork.
        strength: A number, or numbers by block, as in `hnloader.attach`.
        window: Part of the sampling in which it acts. Default: all.
        k: Factor on the strength for the keys. Default: 1.
        v: Factor on the strength for the values. Default: 1.
    """

    hypernetwork: Hypernetwork
    strength: Strength = 1.0
    window: Window = field(default_factory=Window)
    k: float = 1.0
    v: float = 1.0


@dataclass
class _Call:
    """One call of the UNet: the settings that act in it, and the texts that it has changed."""

    active: list[tuple[Setting, dict[Place, float]]]
    kept: KeptFolds | None
    texts: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)


class Chain:
    """Hypernetworks that act one after the other. It never changes, so copies of a model share it.

    Args:
        settings: The hypernetworks, in order.
        checked: The model of the chain was checked. A hook meets its model only in the first run. Default: False.
    """

    def __init__(self, settings: Sequence[Setting], checked: bool = False) -> None:
        self.settings = tuple(settings)
        self._checked = checked
        self._layers: weakref.WeakKeyDictionary[Any, list[dict[Place, float]]] = weakref.WeakKeyDictionary()

    def options(self) -> dict[str, Any]:
        """Return the `transformer_options` that apply the chain."""
        return {
            "patches": {name: [Patch(self, kind)] for name, kind in _KINDS.items()},
            "wrappers": {WrappersMP.APPLY_MODEL: {_KEY: [self.around_call]}},
        }

    def around_call(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the UNet as a wrapper of `apply_model`, and note for the patches what acts in this call."""
        given = list(args)
        options = dict(given[_OPTIONS])
        options[_CALLS] = {**options.get(_CALLS, {}), self: self._begin(executor.class_obj, options)}
        given[_OPTIONS] = options
        return executor(*given, **kwargs)

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample as a wrapper of `outer_sample`, and keep folded weights until the run ends."""
        executor.class_obj.model_options["transformer_options"].setdefault(_KEPT, KeptFolds(_has_room))
        try:
            return executor(*args, **kwargs)
        finally:
            self.release()

    def release(self) -> None:
        """Drop copies of the hypernetworks on other devices."""
        for setting in self.settings:
            setting.hypernetwork.release()

    def call(self, options: dict[str, Any]) -> _Call:
        """Return the present call of the UNet.

        Raises:
            HypernetworkError: Something calls the UNet outside of `apply_model`, where no wrapper acts.
        """
        calls: dict[Chain, _Call] = options.get(_CALLS, {})
        if self not in calls:
            raise HypernetworkError(
                "Hypernetwork: a node calls the UNet without ComfyUI's apply_model. Remove that node, or report it."
            )
        return calls[self]

    def _begin(self, base_model: Any, options: dict[str, Any]) -> _Call:
        if base_model not in self._layers:
            layers = layers_of(base_model.diffusion_model, base_model)
            warnings = [] if self._checked else [layers.check(setting.hypernetwork) for setting in self.settings]
            for warning in filter(None, warnings):
                logging.warning("[hnloader] %s", warning)
            self._layers[base_model] = [layers.strengths(setting.strength) for setting in self.settings]
        pairs = list(zip(self.settings, self._layers[base_model], strict=True))
        if not all(setting.window.whole for setting in self.settings):
            sigma, sigmas = _position(options)
            sampling = base_model.model_sampling
            pairs = [pair for pair in pairs if pair[0].window.holds(sigma, sigmas, sampling)]
        # A hook that changes weights does so in place, between two calls.
        hooked = getattr(getattr(base_model, "current_patcher", None), "hook_backup", None)
        return _Call(pairs, options.get(_KEPT) if hooked == {} else None)


class Patch:
    """A chain in the self- or cross-attention layers: ComfyUI calls it with q, k and v before their projection."""

    def __init__(self, chain: Chain, kind: str) -> None:
        self.chain, self.kind = chain, kind

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and the changed k and v."""
        call = self.chain.call(options)
        if not call.active:
            return q, k, v
        place = place_of(options, self.kind)
        return q, self._changed(call, "k", k, place), self._changed(call, "v", v, place)

    def _changed(self, call: _Call, side: SideName, context: Tensor, place: Place) -> Tensor:
        parts = [
            (setting.hypernetwork, strength)
            for setting, strengths in call.active
            if (strength := strengths.get(place, 0.0) * getattr(setting, side))
            and context.shape[-1] in setting.hypernetwork.widths
        ]
        if not parts:
            return context
        if self.kind == "self":
            return _in_order(parts, side, context, (place, side), call.kept)
        # All cross-attention layers receive the same text.
        key = (side, *(part for pair in parts for part in pair))
        given, made = call.texts.get(key, (None, None))
        if given is not context or made is None:
            made = plain(_in_order(parts, side, context, None, None))
            call.texts[key] = (context, made)
        return made

    def to(self, *args: Any, **kwargs: Any) -> Patch:
        """Return the patch itself. Hypernetworks follow the device and dtype of the context by themselves."""
        self.chain.release()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Patch:
        """Return the patch itself, because ComfyUI copies the options of a model at each node."""
        return self


def apply_to_model(model: Any, setting: Setting) -> tuple[Any, str | None]:
    """Return a clone of a ComfyUI model with one more hypernetwork.

    Args:
        model: A `ModelPatcher`.
        setting: The hypernetwork and how to apply it.

    Returns:
        The clone, and a warning if the file was made for another model.

    Raises:
        NoMatchingSitesError: The model takes no hypernetworks, has other widths, or lacks a block.
    """
    layers = layers_of(model.get_model_object("diffusion_model"), model.model)
    warning = layers.check(setting.hypernetwork)
    layers.strengths(setting.strength)
    clone = model.clone()
    chain = Chain([*_take_last(clone), setting], checked=True)
    for name, patches in chain.options()["patches"].items():
        clone.set_model_patch(patches[0], name)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _KEY, chain.around_call)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, chain.around_run)
    return clone, warning


def _take_last(clone: Any) -> tuple[Setting, ...]:
    """Remove a chain that acts last in a model and return its settings, so that the next one extends it."""
    patches = clone.model_options["transformer_options"].get("patches", {})
    last = [(patches.get(name) or [None])[-1] for name in _KINDS]
    chains = {patch.chain for patch in last if isinstance(patch, Patch)}
    if len(chains) != 1 or not all(isinstance(patch, Patch) for patch in last):
        return ()
    (chain,) = chains
    for name in _KINDS:
        patches[name] = patches[name][:-1]
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, chain.around_call), (WrappersMP.OUTER_SAMPLE, chain.around_run)):
        clone.wrappers[kind][_KEY].remove(wrapper)
    return chain.settings


def _in_order(
    parts: Sequence[tuple[Hypernetwork, float]],
    side: SideName,
    context: Tensor,
    key: object,
    kept: KeptFolds | None,
) -> Tensor:
    """Return the context after the hypernetworks, folded at its end as far as they have no activation."""
    pending: tuple[Change, ...] = ()
    for hypernetwork, strength in parts:
        affine = _affine(hypernetwork, side, context)
        if affine is not None:
            pending = (*pending, (affine, strength))
            continue
        context = hypernetwork.transform(side, change(plain(context), pending), strength)
        pending = ()
    if not pending:
        return context
    if isinstance(context, FoldedContext):
        pending = (*context.changes, *pending)
        context = context.base
    if key is None or torch.compiler.is_compiling():
        return change(context, pending)
    return FoldedContext(context, pending, key, kept)


def _affine(hypernetwork: Hypernetwork, side: SideName, context: Tensor) -> Any:
    width, device = context.shape[-1], context.device
    dtype = torch.float64 if context.dtype == torch.float64 else torch.float32
    make: Callable[[], Any] = lambda: hypernetwork.side(width, side).affine_map(dtype, device)  # noqa: E731
    return hypernetwork.derived((_KEY, width, side, dtype, device), make)


def _position(options: dict[str, Any]) -> tuple[float, list[float]]:
    """Return the noise of a call and that of all steps. Reading them waits for an accelerator."""
    sigmas = options.get("sample_sigmas")
    return float(options["sigmas"].max()), [] if sigmas is None else sigmas.tolist()


def _has_room(size: int, device: torch.device) -> bool:
    free = comfy.model_management.get_free_memory(device)
    return bool(free > size + comfy.model_management.minimum_inference_memory())
