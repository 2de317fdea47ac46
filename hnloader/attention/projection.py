"""Compute a projection with hypernetworks during a call of the model.

A projection is in one of four states:

- `folded`: its input is multiplied by the folded matrix.
- `kept`: a text gives the stored keys or values.
- `live`: the hypernetworks change its input, then its own matrix follows.
- `hook`: the same before the module's own forward, because another program has a part in it.

In the first three, hnloader sets the `forward` of the module for the time of a call; in the last it sets a hook.
Parameters never change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from hnloader.attention.changes import Ours, is_ours
from hnloader.attention.decoders import is_transposed
from hnloader.attention.folding import Fold
from hnloader.attention.output_rows import Rows
from hnloader.attention.plan import SidePlan
from hnloader.attention.stages import compiling, records_gradients
from hnloader.attention.text_cache import TextCache

State = Literal["folded", "kept", "live", "hook"]
Plans = tuple["SidePlan | None", ...]


class Switch:
    """Tell functions that other programs may have wrapped whether they are still in use."""

    on = False


class Projection(Ours):
    """A projection in the state `live`, and what all states share.

    Args:
        module: The projection.
        plans: Plan of each part of the output; None for a part without hypernetworks.
        rows: The parts of the output.
        texts: What is kept for texts.
        switch: If it is off, the projection computes without hypernetworks.

    Attributes:
        state: The state.
        why_not: Reason against a fold, empty if there is none.
        fold: The fold, for the state `folded`.
        forward: Function that replaces the module's forward, or its hook.
        careful: The same for calls with gradients, autocast or another mode of torch.
    """

    state: State = "live"
    why_not = ""
    fold: Fold | None = None
    _whole = False

    def __init__(self, module: nn.Module, plans: Plans, rows: Rows, texts: TextCache, switch: Switch) -> None:
        self.module = module
        self.plans = plans
        self.rows = rows
        self.texts = texts
        self.switch = switch
        self._parameters = module._parameters  # faster than the module's attributes
        self._transposed = is_transposed(module)
        self._single = plans[0] if len(plans) == 1 and not self._transposed else None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Linear.forward
        """Compute `nn.Linear.forward` of the module with the hypernetworks, without gradients."""
        if self._single is None or compiling() or input.requires_grad or not self.switch.on:
            return self.careful(input)
        own: dict[str, Any] = self._parameters
        return functional.linear(self._single.fast(input), own["weight"], own.get("bias"))

    def careful(self, input: Tensor) -> Tensor:  # noqa: A002
        """Compute the same in any mode."""
        if not self.switch.on:
            unchanged: Tensor = class_forward(self.module, input)
            return unchanged
        contexts = [input if plan is None else changed(plan, self.texts, input) for plan in self.plans]
        own: dict[str, Any] = self._parameters
        weight = own["weight"].t() if self._transposed else own["weight"]
        return _multiplied(contexts, self.rows, weight, own.get("bias"))

    def wrapped(self) -> None:
        """Obey the switch also in `forward`, because another program wrapped it during a call and calls it later."""
        self._single, self._whole = None, False

    def __getstate__(self) -> dict[str, object]:
        """Copy a projection without hypernetworks: another program's wrapper of the module's forward may hold this."""
        state = {"plans": (), "texts": TextCache(0), "switch": Switch(), "fold": None, "_single": None, "_whole": False}
        return {**self.__dict__, **state}

    def records(self, input: Tensor) -> bool:  # noqa: A002
        """Return True if autograd records the product."""
        own: dict[str, Any] = self._parameters
        return torch.is_grad_enabled() and (input.requires_grad or bool(own["weight"].requires_grad))


class Folded(Projection):
    """A projection in the state `folded`."""

    state: State = "folded"

    def __init__(
        self, module: nn.Module, plans: Plans, rows: Rows, texts: TextCache, switch: Switch, fold: Fold
    ) -> None:
        super().__init__(module, plans, rows, texts, switch)
        self.fold = fold
        self._matrix, self._offset = fold.weight, fold.bias
        self._whole = not any(plan.stages for plan in plans if plan is not None)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `Projection.forward`."""
        if self._whole and self.switch.on and not input.requires_grad:
            return functional.linear(input, self._matrix, self._offset)
        return self.careful(input)

    def careful(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `Projection.careful`."""
        if not self.switch.on or self.records(input):
            return super().careful(input)
        contexts = [input if plan is None else plan.before_fold(input) for plan in self.plans]
        return _multiplied(contexts, self.rows, self._matrix, self._offset)


class Kept(Projection):
    """A projection in the state `kept`.

    Args:
        number: Place of the projection's results among those of a text.
    """

    state: State = "kept"

    def __init__(
        self, module: nn.Module, plans: Plans, rows: Rows, texts: TextCache, switch: Switch, number: int
    ) -> None:
        super().__init__(module, plans, rows, texts, switch)
        self._number = number

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `Projection.forward`."""
        if compiling():
            return super().careful(input)
        text = self.texts.current
        if text.context is input and (text.version is None or text.version == input._version):
            kept = text.results[self._number]
            if kept is not None and kept[0]._version == kept[1]:
                return kept[0]
        return self.careful(input)

    def careful(self, input: Tensor) -> Tensor:  # noqa: A002
        """See `Projection.careful`."""
        if compiling() or not self.switch.on or self.records(input):
            return super().careful(input)
        text = self.texts.find(input)
        if text is None:
            return super().careful(input)
        kept = text.results[self._number]
        if kept is None or kept[0]._version != kept[1]:
            with torch.inference_mode(False), torch.no_grad():
                result = super().careful(input)
            kept = text.results[self._number] = (result, result._version)
        return kept[0]


class Hooked(Projection):
    """A projection in the state `hook`.

    Args:
        why_not: Reason why the module's own forward must run.
        earlier: Hooks of other programs that come first.
    """

    state: State = "hook"

    def __init__(
        self,
        module: nn.Module,
        plans: Plans,
        rows: Rows,
        texts: TextCache,
        switch: Switch,
        why_not: str,
        earlier: frozenset[int],
    ) -> None:
        self.module, self.plans, self.rows, self.texts, self.switch = module, plans, rows, texts, switch
        self.why_not = why_not
        self.earlier = earlier
        # For torch, a hook on `to_k` and `to_v` comes before the forward, one on a fused projection after it.
        self.hook = self.before if len(plans) == 1 else self.after

    def set(self, hook: Callable[..., Any], key: int | None) -> int:
        """Set the hook on the module, before the hooks that came after hnloader's attachment.

        Args:
            hook: The hook.
            key: Key of the hook that it replaces, if any.

        Returns:
            Key of the hook.
        """
        hooks, with_kwargs = self._hooks()
        if key is None:
            key = RemovableHandle(hooks, extra_dict=with_kwargs).id
            with_kwargs[key] = True
            hooks[key] = hook
            for later in [other for other in hooks if other not in self.earlier and other != key]:
                hooks.move_to_end(later)
        hooks[key] = hook
        return key

    def take(self, key: int) -> None:
        """Take the hook with a key off the module."""
        for hooks in self._hooks():
            hooks.pop(key, None)

    def _hooks(self) -> tuple[Any, Any]:
        own = self.module
        if len(self.plans) == 1:
            return own._forward_pre_hooks, own._forward_pre_hooks_with_kwargs
        return own._forward_hooks, own._forward_hooks_with_kwargs

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change the context of `to_k` or `to_v` before the module's forward; torch passes the arguments."""
        plan = self.plans[0]
        if plan is None or not self.switch.on:
            return None
        if args:
            return (changed(plan, self.texts, args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))  # a processor that calls to_k(input=context)
        return args, {**kwargs, name: changed(plan, self.texts, kwargs[name])}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """Replace the parts of a fused projection's output [..., parts * inner width].

        A fused projection takes one context for both, but a hypernetwork gives two. So the hook calls the module's
        forward for each. LoRA, offloading and quantized weights in that forward then work for both.
        """
        if not self.switch.on:
            return None
        context = args[0] if args else next(iter(kwargs.values()))
        parts = self.rows.split(output, -1)
        for number, plan in enumerate(self.plans):
            if plan is not None:
                parts[number] = self.rows.split(module.forward(changed(plan, self.texts, context)), -1)[number]
        return self.rows.join(parts, -1)


def changed(plan: SidePlan, texts: TextCache, context: Tensor) -> Tensor:
    """Return the context [..., width] after the hypernetworks; a text's is computed once for all layers."""
    if plan.name != "cache" or compiling() or records_gradients(context):
        return plan(context)
    text = texts.find(context)
    if text is None:
        return plan(context)
    kept = text.changed.get(plan)
    if kept is None or kept[0]._version != kept[1]:
        with torch.inference_mode(False), torch.no_grad():
            result = plan(context)
        kept = text.changed[plan] = (result, result._version)
    return kept[0]


def _multiplied(contexts: Sequence[Tensor], rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply each context by its part of the rows of a weight."""
    if all(context is contexts[0] for context in contexts):
        return functional.linear(contexts[0], weight, bias)
    if rows.groups > 1:  # picking the rows would copy the weight
        found = [rows.split(functional.linear(context, weight, bias), -1) for context in contexts]
        return rows.join([parts[number] for number, parts in enumerate(found)], -1)
    biases = [None] * len(contexts) if bias is None else rows.split(bias, 0)
    parts = zip(contexts, rows.split(weight, 0), biases, strict=True)
    return torch.cat([functional.linear(context, w, b) for context, w, b in parts], dim=-1)


def class_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call the forward of a module's class.

    AUTOMATIC1111's webui replaces `nn.Linear.forward` while it samples, to cast weights for each call.
    """
    return type(module).forward(module, *args, **kwargs)


class BareState(Ours):
    """The state of a module without hypernetworks, for `copy`, `deepcopy` and `pickle` during a call.

    All three ask a module's instance for `__getstate__`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the forward of the module's class.

        A module with a hook gets it too: compiled code does not look for hooks, but notices a new `forward`.
        """
        return class_forward(self.module, *args, **kwargs)

    def state(self) -> Any:
        """Return the state of the module without hypernetworks."""
        own = getattr(type(self.module), "__getstate__", None)
        if own is None or own is getattr(object, "__getstate__", None):  # Python 3.10 has none
            state = self.module.__dict__
        else:
            state = own(self.module)
        if not isinstance(state, dict):
            return state
        bare = {name: value for name, value in state.items() if not is_ours(value)}
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = bare.get(name, {})
            ours = {key for key, hook in hooks.items() if is_ours(hook)}
            for part in (name, f"{name}_with_kwargs"):
                if ours and part in bare:
                    bare[part] = type(bare[part])((key, value) for key, value in bare[part].items() if key not in ours)
        return bare


class Dispatch(Ours):
    """A function on a module that several threads call at the same time, each with its own hypernetworks.

    Args:
        functions: The functions by the identifiers of their threads.
        otherwise: The function of other threads.
    """

    def __init__(self, functions: Mapping[int, Callable[..., Any]], otherwise: Callable[..., Any]) -> None:
        self._functions = functions
        self._otherwise = otherwise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of the present thread."""
        return self._functions.get(threading.get_ident(), self._otherwise)(*args, **kwargs)
