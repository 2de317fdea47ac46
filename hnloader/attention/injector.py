"""The injector: the object on a model with hypernetworks that keeps the hooks of its layers up to date."""

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

# One lock for all models: changes are rare and short, and a model with a lock in its injector could not be copied.
lock = threading.RLock()


class Attached(Protocol):
    """The part of `hnloader.Attachment` that the injector uses."""

    fold: bool
    exact: bool

    @property
    def widths(self) -> frozenset[int]:
        """See `Attachment.widths`."""

    @property
    def windowed(self) -> bool:
        """See `Attachment.windowed`."""

    def seek(self, timestep: float) -> bool:
        """See `Attachment.seek`."""

    def at(self, site: AttentionSite) -> Iterator[tuple[Hypernetwork, dict[SideName, float]]]:
        """See `Attachment.at`."""


class Injector:
    """Forward pre-hook on a model that has attachments.

    The model's hooks hold the only reference to it, so it is copied, pickled and deleted with the model. Hooks on
    layers are not copied: a copied model hooks its layers at its first call, and a layer that is copied alone has none.

    Before each call of the model it moves the hooks of layers whose modules changed. It opens and closes windows and
    applies new strengths, so that one call sees one set of strengths. It drops folds and kept results if the weights or
    parameters that they come from have changed.

    Attributes:
        attachments: The attachments, in order.
        model: The model.
        sites: All attention layers of the model.
        stale: True if strengths changed since the last call of the model.
        sample_shape: Shape of the latents in the last call, None before the first.
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
        """Append an attachment and apply it; on an error, leave the model unchanged."""
        self.attachments.append(attachment)
        try:
            self.refresh()
        except BaseException:
            self.remove(attachment)
            raise

    def remove(self, attachment: Attached) -> None:
        """Remove an attachment if it is here; with the last one, remove all hooks."""
        self.attachments = [each for each in self.attachments if each is not attachment]
        if self.attachments:
            self.refresh()
            return
        self._handle.remove()
        for layer in self._layers.values():
            layer.remove()
        self._layers.clear()

    def refresh(self) -> None:
        """Set the hooks and the plans of all layers: only layers that an attachment changes keep hooks."""
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
        """Return the plan that all sites of a chain share; it survives a refresh with its kept results."""
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
        """Return the hooks of a site, None without attachments."""
        return self._layers.get(site.index)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Update everything before the model's forward; torch passes the arguments of the call."""
        with lock:
            self._notice_changes()
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
        """Apply changes now instead of at the next call; windows stay."""
        self._notice_changes()
        if self.stale:
            self.refresh()

    def _notice_changes(self) -> None:
        """Notice changes of the model and the hypernetworks since the last call."""
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
        """Drop everything that was computed from the values of hypernetworks, weights and texts."""
        for hypernetwork in self._acting:
            hypernetwork.release()
        for projection in self._projections():
            projection.forget()
        self._plans.clear()
        self.stale = True

    def _state(self) -> list[object]:
        """Return everything that decides on hooks and folds, to compare before each call of the model."""
        return [self._moves(), nn.Linear.forward, *(layer.state() for layer in self._layers.values())]

    def _prepare(self, sample: object) -> None:
        """Compute in advance what compiled code cannot compute, unless the last call did."""
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
        """Return the device and dtype of the model, and the state of the hypernetworks' copies."""
        return (sample.device, sample.dtype, *(hypernetwork.kept_copies for hypernetwork in self._acting))

    def __getstate__(self) -> dict[str, object]:
        """Copy the attachments only; the first call of the copy makes the rest."""
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
    """Return the attributes of the model, of its sites and of all modules around them."""
    names = {site.name[:end] for site in sites for end in range(len(site.name) + 1) if end in _ends(site.name)}
    return [module.__dict__ for name, module in model.named_modules() if name in names or not name]


def _ends(name: str) -> list[int]:
    return [index for index, letter in enumerate(name + ".") if letter == "."]


def injector_of(model: nn.Module) -> Injector | None:
    """Return the injector of a model, None without attachments."""
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Injector)), None)


def _keep_out_of_graphs() -> None:
    """Make torch.compile run the injector's call uncompiled, because it changes hooks and may read the timestep.

    Compiled code checks the chains that the injector sets. This does not import the compiler, which takes a second: if
    nothing imported it, nothing is compiled.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and not hasattr(Injector.__call__, "_torchdynamo_disable"):
        Injector.__call__ = dynamo.disable(Injector.__call__)  # type: ignore[method-assign]
