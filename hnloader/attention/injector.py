"""The one object that a model with hypernetworks carries: it keeps the hooks on its layers right."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from hnloader.attention.folding import (
    Maps,
    Projection,
    Watch,
    moves_weights,
    watch_folds,
    watch_hypernetworks,
)
from hnloader.attention.layer_hooks import SiteHooks
from hnloader.attention.plans import SidePlan, Signature, make_plan
from hnloader.attention.schedule import timestep_of
from hnloader.attention.sites import AttentionSite, Kind
from hnloader.attention.stages import Chain, Link
from hnloader.network import SIDES, Hypernetwork, SideName

# One lock for all models: changes are rare and short, and a lock in the injector could not be copied with its
# model.
lock = threading.RLock()


class Attached(Protocol):
    """An attachment, as far as the injector needs it."""

    @property
    def widths(self) -> frozenset[int]:
        """The widths of its hypernetworks."""
        ...

    @property
    def windowed(self) -> bool:
        """True if a hypernetwork acts in a part of the sampling only."""
        ...

    @property
    def fold(self) -> bool:
        """True if affine hypernetworks may be folded."""
        ...

    @property
    def exact(self) -> bool:
        """True if everything is computed as the original programs do."""
        ...

    def seek(self, timestep: float) -> bool:
        """Open and close the windows for a timestep; return True if that changed anything."""
        ...

    def at(self, site: AttentionSite) -> Iterator[tuple[Hypernetwork, dict[SideName, float]]]:
        """Yield the hypernetworks that act at a site now, in order, with their strengths for k and v."""
        ...


class Injector:
    """Forward pre-hook on a model, there as long as anything is attached to it.

    It is found among the model's forward pre-hooks and nowhere else, so it is copied, pickled and dropped
    with the model. The hooks on layers are not copied: a copy puts its own on the copied layers at its first
    call, and a layer that is copied alone has none. Before each call of the model it moves the hooks of layers
    whose modules have changed, opens and closes the windows of sampling, and puts new strengths in force, so
    that one call sees one set of strengths. Where weights of the model or parameters of a hypernetwork are no
    longer what was folded or kept, it makes that again.

    Attributes:
        attachments: What is attached, in order.
        model: The model.
        sites: Every attention layer of the model.
        stale: The strengths have changed since the last call of the model.
        sample_shape: Of the latents of the last call, None before the first.
    """

    def __init__(self, model: nn.Module, sites: Sequence[AttentionSite]) -> None:
        self.attachments: list[Attached] = []
        self.model = model
        self.sites = tuple(sites)
        self.stale = False
        self.sample_shape: tuple[int, ...] | None = None
        self._layers: dict[int, SiteHooks] = {}  # by the index of their site
        self._plans: dict[tuple[Chain, SideName, int, Kind], SidePlan] = {}
        self._acting: tuple[Hypernetwork, ...] = ()
        self._signature = Signature(())
        self._watch = Watch(())
        self._own_watch = Watch(())
        self._seen: list[object] = []
        self._movable: list[dict[str, Any]] | None = None
        self._prepared: tuple[object, ...] | None = None
        _keep_out_of_graphs()
        self._handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def add(self, attachment: Attached) -> None:
        """Append an attachment and apply it; when that fails the model is left as it was."""
        self.attachments.append(attachment)
        try:
            self.refresh()
        except BaseException:
            self.remove(attachment)
            raise

    def remove(self, attachment: Attached) -> None:
        """Take an attachment off; with the last one everything goes. Harmless when it is not there."""
        self.attachments = [each for each in self.attachments if each is not attachment]
        if self.attachments:
            self.refresh()
            return
        self._handle.remove()
        for layer in self._layers.values():
            layer.remove()
        self._layers.clear()

    def refresh(self) -> None:
        """Hook the layers that some attachment changes, unhook the others, and give each its chains."""
        self.stale = False
        widths = {width for attachment in self.attachments for width in attachment.widths}
        moves = self._moves()
        for site in self.sites:
            if site.width in widths:
                layer = self._layers.setdefault(site.index, SiteHooks(site))
                layer.sync(moves)
                layer.k.plan, layer.v.plan = (self._plan(site, side) for side in SIDES)
            elif site.index in self._layers:
                self._layers.pop(site.index).remove()
        in_use = {plan for layer in self._layers.values() for plan in (layer.k.plan, layer.v.plan)}
        self._plans = {key: plan for key, plan in self._plans.items() if plan in in_use}
        self._acting = tuple(dict.fromkeys(link.hypernetwork for plan in in_use for link in plan.chain))
        self._signature = Signature(self._acting)
        maps: Maps = {}
        for projection in self._projections():
            projection.refresh(maps)
        self._watch = watch_folds(self._projections())
        self._own_watch = watch_hypernetworks(self._acting)
        self._seen = self._state()
        self._prepared = None

    def _projections(self) -> list[Projection]:
        return [projection for layer in self._layers.values() for projection in layer.projections()]

    def _moves(self) -> str:
        if self._movable is None:
            self._movable = _around(self.model, self.sites)
        return moves_weights(self._movable)

    def _plan(self, site: AttentionSite, side: SideName) -> SidePlan:
        """One plan for all the sites of a chain, kept from refresh to refresh with what it has computed."""
        chain = self._chain(site, side)
        key = (chain, side, site.width, site.kind)
        if key not in self._plans:
            self._plans[key] = make_plan(chain, side, site.width, site.kind)
        return self._plans[key]

    def _chain(self, site: AttentionSite, side: SideName) -> Chain:
        return tuple(
            Link(hypernetwork, strength[side], attachment.exact, attachment.fold)
            for attachment in self.attachments
            for hypernetwork, strength in attachment.at(site)
            if strength[side] != 0
        )

    def layer(self, site: AttentionSite) -> SiteHooks | None:
        """The hooks of a site, None where nothing is attached."""
        return self._layers.get(site.index)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called by torch before the model's forward, with what the model was called with."""
        with lock:
            self._see_changes()
            windowed = [attachment for attachment in self.attachments if attachment.windowed]
            if windowed:
                timestep = timestep_of(args, kwargs)
                for attachment in windowed:
                    self.stale |= attachment.seek(timestep)
            if self.stale:
                self.refresh()
            for plan in self._plans.values():
                plan.compare_again()
            self._prepare(args[0] if args else kwargs.get("sample"))

    def update(self) -> None:
        """Put in force now what would be at the next call, but for windows."""
        self._see_changes()
        if self.stale:
            self.refresh()

    def _see_changes(self) -> None:
        """Notice what has happened to the model and to the hypernetworks since the last call."""
        if self._signature.changed() or self._own_watch.changed():
            self.forget()
        if self._watch.changed():
            for projection in self._projections():
                projection.count_change()
            self.stale = True
        state = self._state()
        if state != self._seen:
            for projection in self._projections():
                projection.count_replacement()
            self.stale = True

    def forget(self) -> None:
        """Drop all that was made of the values of hypernetworks, weights and texts."""
        for hypernetwork in self._acting:
            hypernetwork.release()
        for projection in self._projections():
            projection.forget()
        self._plans.clear()
        self.stale = True

    def _state(self) -> list[object]:
        """All that decides how a layer is hooked and what may be folded; compared before each call of the model."""
        return [self._moves(), nn.Linear.forward, *(layer.state() for layer in self._layers.values())]

    def _prepare(self, sample: object) -> None:
        """Make now what compiled code cannot make, unless it is there since the last call."""
        if not isinstance(sample, torch.Tensor):
            return
        self.sample_shape = tuple(sample.shape)
        if self._prepared == self._place(sample):
            return
        for layer in self._layers.values():
            for hook in (layer.k, layer.v):
                projection = layer.projection(hook.side)
                folded = projection is not None and projection.fold is not None
                hook.plan.prepare(sample.device, sample.dtype, folded=folded)
        self._prepared = self._place(sample)

    def _place(self, sample: torch.Tensor) -> tuple[object, ...]:
        """Where and in what the model computes, and whether copies for that have been released."""
        return (sample.device, sample.dtype, *(hypernetwork.kept_copies for hypernetwork in self._acting))

    def __getstate__(self) -> dict[str, object]:
        """Copy what is attached, and nothing of how it is applied: that is made at the first call."""
        return {
            **self.__dict__,
            "stale": True,
            "_layers": {},
            "_plans": {},
            "_acting": (),
            "_signature": Signature(()),
            "_watch": Watch(()),
            "_own_watch": Watch(()),
            "_seen": [],
            "_movable": None,
            "_prepared": None,
        }


def _around(model: nn.Module, sites: Sequence[AttentionSite]) -> list[dict[str, Any]]:
    """The attributes of the model and of all the modules that its sites lie in, their own included."""
    names = {site.name[:end] for site in sites for end in range(len(site.name) + 1) if end in _ends(site.name)}
    return [module.__dict__ for name, module in model.named_modules() if name in names or not name]


def _ends(name: str) -> list[int]:
    return [index for index, letter in enumerate(name + ".") if letter == "."]


def injector_of(model: nn.Module) -> Injector | None:
    """The injector that the model carries, None when nothing is attached."""
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Injector)), None)


def _keep_out_of_graphs() -> None:
    """Have torch.compile run the injector's call as it is.

    It changes hooks and may read back the timestep, which is nothing to compile. The compiled code that
    follows it checks the chains that it sets. The compiler is not imported for this, since that alone takes a
    second: where nothing has imported it, nothing is compiled.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and not hasattr(Injector.__call__, "_torchdynamo_disable"):
        Injector.__call__ = dynamo.disable(Injector.__call__)  # type: ignore[method-assign]
