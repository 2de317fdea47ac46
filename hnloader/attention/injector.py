"""The one object that a model with hypernetworks carries: it keeps the hooks on its layers right."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hnloader.attention.hooks import Chain, SiteHooks
from hnloader.attention.schedule import timestep_of
from hnloader.attention.sites import AttentionSite
from hnloader.network import Hypernetwork

if TYPE_CHECKING:
    from hnloader.attention.attach import Attachment

# One lock for all models: changes are rare and short, and a lock in the injector could not be copied with its
# model.
lock = threading.RLock()


class Injector:
    """Forward pre-hook on a model, there as long as anything is attached to it.

    It is found among the model's forward pre-hooks and nowhere else, so it is copied, pickled and dropped
    with the model. Before each call of the model it moves the hooks of layers whose modules have changed,
    opens and closes the windows of sampling, and puts new strengths in force, so that one call sees one set
    of strengths.

    Attributes:
        attachments: What is attached, in order.
        sites: Every attention layer of the model.
        stale: The strengths have changed since the last call of the model.
    """

    def __init__(self, model: nn.Module, sites: Sequence[AttentionSite]) -> None:
        self.attachments: list[Attachment] = []
        self.sites = tuple(sites)
        self.stale = False
        self._layers: dict[int, SiteHooks] = {}  # by the index of their site
        self._acting: set[Hypernetwork] = set()
        self._prepared: dict[Hypernetwork, tuple[torch.device, torch.dtype, int]] = {}
        _keep_out_of_graphs()
        self._handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def add(self, attachment: Attachment) -> None:
        """Append an attachment and apply it; when that fails the model is left as it was."""
        self.attachments.append(attachment)
        try:
            self.refresh()
        except BaseException:
            self.remove(attachment)
            raise

    def remove(self, attachment: Attachment) -> None:
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
        for site in self.sites:
            if site.width in widths:
                layer = self._layers.setdefault(site.index, SiteHooks(site))
                layer.sync()
                layer.k.chain, layer.v.chain = self._chains(site)
            elif site.index in self._layers:
                self._layers.pop(site.index).remove()
        self._acting = {hn for layer in self._layers.values() for hn, _ in layer.k.chain + layer.v.chain}
        self._prepared.clear()

    def _chains(self, site: AttentionSite) -> tuple[Chain, Chain]:
        k: list[tuple[Hypernetwork, float]] = []
        v: list[tuple[Hypernetwork, float]] = []
        for attachment in self.attachments:
            for hypernetwork, k_strength, v_strength in attachment.at(site):
                if k_strength != 0:
                    k.append((hypernetwork, k_strength))
                if v_strength != 0:
                    v.append((hypernetwork, v_strength))
        return tuple(k), tuple(v)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called by torch before the model's forward, with what the model was called with."""
        with lock:
            for layer in self._layers.values():
                layer.sync()
            windowed = [attachment for attachment in self.attachments if attachment.windowed]
            if windowed:
                timestep = timestep_of(args, kwargs)
                for attachment in windowed:
                    self.stale |= attachment.seek(timestep)
            if self.stale:
                self.refresh()
            self._prepare(args[0] if args else kwargs.get("sample"))

    def _prepare(self, sample: object) -> None:
        """Make the float32 copies that compiled code cannot make, unless they are there since the last call."""
        if not isinstance(sample, torch.Tensor):
            return
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        for hypernetwork in self._acting:
            place = (sample.device, dtype, hypernetwork.kept_copies)
            if self._prepared.get(hypernetwork) != place:
                hypernetwork.prepare(sample.device, dtype)
                self._prepared[hypernetwork] = (sample.device, dtype, hypernetwork.kept_copies)


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
