"""Put the hooks on the modules of one attention layer, and remove them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hnloader.attention.folding import Projection, foreign_hooks, is_plain, moves_weights, versions
from hnloader.attention.hooks import FusedHook, SideHook
from hnloader.attention.sites import AttentionSite
from hnloader.network import SideName

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
# The parts of an attention layer that receive the context. diffusers keeps to_k and to_v when it adds the fused
# projections, and keeps those when it goes back. So each that exists is hooked; the processor calls one or the other.
SLOTS = ("to_k", "to_v", "to_qkv", "to_kv")


class ClassForward:
    """The forward of a module's class, looked up at each call.

    AUTOMATIC1111's webui replaces `nn.Linear.forward` while it samples, to cast weights for each call.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the forward of the module's class."""
        return type(self.module).forward(self.module, *args, **kwargs)


class BareState:
    """The state of a hooked module without hooks, for `copy`, `deepcopy` and `pickle`.

    All three ask a module's instance for `__getstate__`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state(self) -> Any:
        """Return the state of the module without hypernetworks."""
        own = getattr(type(self.module), "__getstate__", None)
        if own is None or own is getattr(object, "__getstate__", None):  # Python 3.10 has none
            state = self.module.__dict__
        else:
            state = own(self.module)
        if not isinstance(state, dict):
            return state
        # If another program wrapped our forward, its wrapper stays and calls ours, which applies nothing in a copy.
        methods = [name for name in ("forward", "__getstate__") if _is_ours(state.get(name))]
        bare = {name: value for name, value in state.items() if name not in methods}
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = bare.get(name, {})
            ours = {key for key, hook in hooks.items() if _is_ours(hook)}
            for part in (name, f"{name}_with_kwargs"):
                if ours and part in bare:
                    bare[part] = type(bare[part])((key, value) for key, value in bare[part].items() if key not in ours)
        return bare


def _is_ours(value: object) -> bool:
    """Return True for a hook of hnloader, or for a method that it puts on modules."""
    owner = getattr(value, "__self__", value)
    return isinstance(owner, (SideHook, FusedHook, Projection, ClassForward, BareState))


class Hooked:
    """A hook and a forward on a module, until `remove`. Copies of the module have neither."""

    def __init__(self, module: nn.Module, hook: SideHook | FusedHook, projection: Projection) -> None:
        if isinstance(hook, SideHook):
            self._handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            self._handle = module.register_forward_hook(hook, with_kwargs=True)
        self.module = module
        self.hook = hook
        self.projection = projection
        # Compiled code does not look for new hooks, but it checks that a module's forward was not replaced. Replacing
        # the forward makes it notice the change.
        self._forward: Callable[..., Any] | None = None
        if "forward" not in module.__dict__:
            forward = projection.forward if is_plain(module) else ClassForward(module).forward
            self._forward = module.__dict__["forward"] = forward
        self._getstate: Callable[[], Any] | None = None
        if "__getstate__" not in module.__dict__:
            self._getstate = module.__dict__["__getstate__"] = BareState(module).state

    def sync(self, model_moves: str) -> None:
        """Let the projection apply the hypernetworks if no other program changes the module, else the hook."""
        owned = (
            is_plain(self.module)
            and self.module.__dict__.get("forward") is self._forward
            and self._forward == self.projection.forward
            and not foreign_hooks(self.module, [self.hook])
        )
        self.projection.check(model_moves or moves_weights([self.module.__dict__]))
        self.projection.owned = self.hook.idle = owned

    def remove(self) -> None:
        """Restore the module."""
        self._handle.remove()
        self.projection.owned = False  # another program may have wrapped our forward
        self.projection.fold = None
        for name, ours in (("forward", self._forward), ("__getstate__", self._getstate)):
            if ours is not None and self.module.__dict__.get(name) is ours:
                del self.module.__dict__[name]


class SiteHooks:
    """The hooks of one attention layer, on its present modules.

    Attributes:
        site: The attention layer.
        k: Hook of `to_k`.
        v: Hook of `to_v`.
    """

    def __init__(self, site: AttentionSite) -> None:
        self.site = site
        self.k = SideHook("k")
        self.v = SideHook("v")
        self._hooks: dict[str, SideHook | FusedHook] = {
            "to_k": self.k,
            "to_v": self.v,
            "to_qkv": FusedHook(3, self.k, self.v),
            "to_kv": FusedHook(2, self.k, self.v),
        }
        self._parts: dict[str, tuple[SideHook | None, ...]] = {
            "to_k": (self.k,),
            "to_v": (self.v,),
            "to_qkv": (None, self.k, self.v),
            "to_kv": (self.k, self.v),
        }
        self._hooked: dict[str, Hooked] = {}

    def sync(self, model_moves: str = "") -> None:
        """Set hooks on the current modules of the layer: peft may have wrapped one, fusing may have added one.

        Args:
            model_moves: Reason why the model's weights move between devices, empty if they stay.
        """
        modules = self.site.module._modules
        for slot in SLOTS:
            module, hooked = modules.get(slot), self._hooked.get(slot)
            if module is not (hooked and hooked.module):
                if hooked is not None:
                    self._hooked.pop(slot).remove()
                hooked = None
                if module is not None:
                    projection = Projection(module, self._parts[slot])
                    hooked = self._hooked[slot] = Hooked(module, self._hooks[slot], projection)
            if hooked is not None:
                hooked.sync(model_moves if slot in self._in_use else "the layer does not use it now")

    def state(self) -> list[object]:
        """Return everything that `sync` and the folds depend on; cheap enough for every call of the model."""
        attributes = self.site.module.__dict__
        modules = attributes["_modules"]
        state: list[object] = [attributes.get("fused_projections")]
        for slot in SLOTS:
            module = modules.get(slot)
            state.append(module)
            if module is not None:
                own = module.__dict__
                state.append(own.get("forward"))
                state += [len(own[name]) for name in HOOKS]
                hooked = self._hooked.get(slot)
                if hooked is not None and hooked.projection.owned:
                    state += versions(own["_parameters"].values())
        return state

    @property
    def _in_use(self) -> tuple[str, ...]:
        """The projections that diffusers' processors call."""
        fused = getattr(self.site.module, "fused_projections", False)
        return ("to_qkv", "to_kv") if fused else ("to_k", "to_v")

    def projections(self) -> list[Projection]:
        """Return the present projections of the layer."""
        return [hooked.projection for hooked in self._hooked.values()]

    def projection(self, side: SideName) -> Projection | None:
        """Return the projection in use that computes a side."""
        hook = self.k if side == "k" else self.v
        for slot in self._in_use:
            if slot in self._hooked and hook in self._parts[slot]:
                return self._hooked[slot].projection
        return None

    def remove(self) -> None:
        """Remove all hooks."""
        for slot in list(self._hooked):
            self._hooked.pop(slot).remove()
