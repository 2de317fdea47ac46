"""The hooks of a model that has hypernetworks: a call of the model begins and ends here."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hnloader.attention.assembly import Assembly, Memory
from hnloader.attention.calls import Calls
from hnloader.attention.changes import PlainLinears, modules_around, torch_linears
from hnloader.attention.layout import AttentionSite, is_decoder
from hnloader.attention.model_inputs import decoder_inputs, token_positions, unet_inputs
from hnloader.attention.schedule import timestep_of
from hnloader.attention.stages import Chain, Link, autocast_dtype
from hnloader.network import SideName

# One lock for all models: changes are rare and short, and a model with a lock in its hooks could not be copied.
lock = threading.RLock()
# Assemblies that are kept, one for each set of open windows.
MOST_ASSEMBLIES = 3


class Attached(Protocol):
    """The part of `hnloader.Attachment` that a model uses."""

    fold: bool
    exact: bool
    linears: PlainLinears | None

    @property
    def windowed(self) -> bool:
        """See `Attachment.windowed`."""

    @property
    def open(self) -> tuple[bool | None, ...]:
        """See `Attachment.open`."""

    def seek(self, timestep: float) -> None:
        """See `Attachment.seek`."""

    def covers(self, site: AttentionSite) -> bool:
        """See `Attachment.covers`."""

    def seek_tokens(self, positions: Tensor) -> None:
        """See `Attachment.seek_tokens`."""

    def at(self, site: AttentionSite) -> Iterator[tuple[Link, dict[SideName, float]]]:
        """See `Attachment.at`."""


class AttachedModel:
    """The attachments of a model, and its two hooks.

    The hooks hold the only references to it, so it is copied, pickled and deleted with the model. Between calls, the
    layers of the model have nothing of hnloader. The exception is a call that recorded gradients: autograd may compute
    blocks again, so what was set stays until the next call.

    Attributes:
        attachments: The attachments, in order.
        model: The model.
        sites: All attention layers of the model.
        stale: True if strengths changed since the last call of the model.
        shapes: Shapes of the latents and the text in the last call, None if unknown.
    """

    def __init__(self, model: nn.Module, sites: Sequence[AttentionSite]) -> None:
        self.attachments: list[Attached] = []
        self.model = model
        self.sites = tuple(sites)
        self.stale = True
        self.shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)
        self._calls = Calls()
        self._memory = Memory()
        self._assemblies: dict[tuple[bool | None, ...], Assembly] = {}
        self._surroundings: list[dict[str, Any]] | None = None
        self._windowed: list[Attached] = []
        self._prepared: object = None  # device, dtype and number of copies
        _keep_out_of_graphs()
        always = {} if _old_torch() else {"always_call": True}
        self._handles = [
            model.register_forward_pre_hook(self.begin, with_kwargs=True),
            model.register_forward_hook(self.end, **always),
        ]
        # Code compiled around the bare model does not look for hooks, but notices a `forward` of the instance.
        self._marked = "torch._dynamo" in sys.modules and "forward" not in model.__dict__
        if self._marked:
            model.__dict__["forward"] = MethodType(type(model).forward, model)

    # -- calls of the model

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Begin a call of the model; torch passes its arguments."""
        with lock:
            if kwargs is None:  # another hook detached everything in this call, and torch calls this one once more
                return
            if self._calls:
                self._calls.drop_abandoned(model)
            if self._windowed:
                self._seek(args, kwargs)
            assembly = self.assembly()
            found = decoder_inputs(model, args, kwargs) if is_decoder(self.sites) else unet_inputs(args, kwargs)
            careful = torch.is_grad_enabled()
            if found is not None:
                self.shapes = found.shape, found.text
                device, dtype = found.device, found.dtype
                careful |= autocast_dtype(device.type) is not None
                copies = sum(hypernetwork.kept_copies for hypernetwork in assembly.hypernetworks)
                if self._prepared != (device, dtype, copies):
                    assembly.prepare(device, dtype)  # compiled code cannot do it
                    copies = sum(hypernetwork.kept_copies for hypernetwork in assembly.hypernetworks)
                    self._prepared = (device, dtype, copies)
                assembly.texts.begin(keep=not _is_recorded(device))
            self._calls.begin(assembly, assembly.careful if careful else assembly.fast)

    def _seek(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Open and close the windows for a call."""
        if is_decoder(self.sites):
            positions = token_positions(self.model, args, kwargs)
            for attachment in self._windowed:
                attachment.seek_tokens(positions)
            return
        timestep = timestep_of(args, kwargs)
        for attachment in self._windowed:
            attachment.seek(timestep)

    def end(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """End a call of the model, also after an exception; torch passes what it returns."""
        with lock:
            done = self._calls.end(stay=torch.is_grad_enabled() and _requires_grad(output))
            if done is not None:
                done.texts.end()

    # -- attachments

    def add(self, attachment: Attached) -> None:
        """Append an attachment; on an error, leave the model unchanged."""
        self._set_attachments([*self.attachments, attachment])
        try:
            self.assembly()
        except BaseException:
            self.remove(attachment)
            raise

    def remove(self, attachment: Attached) -> None:
        """Remove an attachment if it is here; with the last one, remove the hooks and everything that is kept."""
        self._set_attachments([each for each in self.attachments if each is not attachment])
        self._calls.stop()
        if self.attachments:
            self.assembly()
            return
        for handle in self._handles:
            handle.remove()
        if self._marked and self.model.__dict__.get("forward") == MethodType(type(self.model).forward, self.model):
            del self.model.__dict__["forward"]
        self._assemblies.clear()
        self._memory = Memory()
        self._prepared = None

    def _set_attachments(self, attachments: list[Attached]) -> None:
        self.attachments = attachments
        self._windowed = [attachment for attachment in attachments if attachment.windowed]
        self.stale = True

    def assembly(self) -> Assembly:
        """Return the present assembly, a new one if something changed."""
        key = tuple(is_open for attachment in self._windowed for is_open in attachment.open)
        found = self._assemblies.get(key)
        if found is None or self.stale or found.changes.found(busy=self._calls.busy):
            found = self._renewed(key)
        return found

    def _renewed(self, key: tuple[bool | None, ...]) -> Assembly:
        """Return a new assembly, the only one unless merely the windows differ."""
        known = list(self._assemblies.values())
        if any(assembly.changes.of_hypernetworks() for assembly in known):
            self.forget()
        if self.stale or any(assembly.changes.found(busy=self._calls.busy) for assembly in known):
            self._assemblies.clear()
        del known  # free its memory
        assembly = self._assemblies[key] = self._assemble()
        for old in list(self._assemblies)[:-MOST_ASSEMBLIES]:
            del self._assemblies[old]
        self.stale, self._prepared = False, None
        return assembly

    def _assemble(self) -> Assembly:
        if self._surroundings is None:
            self._surroundings = modules_around(self.model, self.sites)
        linears = [attachment.linears for attachment in self.attachments if attachment.linears is not None]
        in_place = not self._calls and not self._assemblies
        return Assembly(
            [site for site in self.sites if any(attachment.covers(site) for attachment in self.attachments)],
            self._chain,
            self._surroundings,
            linears[-1] if linears else torch_linears,
            self._memory,
            in_place=in_place,
            busy=self._calls.busy,
        )

    def _chain(self, site: AttentionSite, side: SideName) -> Chain:
        return tuple(
            link._replace(strength=strength[side])
            for attachment in self.attachments
            for link, strength in attachment.at(site)
            if strength[side] != 0
        )

    def forget(self) -> None:
        """Drop everything that was computed from the values of hypernetworks, weights and texts."""
        for assembly in self._assemblies.values():
            for hypernetwork in assembly.hypernetworks:
                hypernetwork.release()
        self._assemblies.clear()
        changes, earlier = self._memory.changes, self._memory.earlier
        self._memory = Memory()
        self._memory.changes, self._memory.earlier = changes, earlier
        self.stale = True

    def __getstate__(self) -> dict[str, object]:
        """Copy the attachments only; the first call of the copy makes the rest."""
        return {
            **self.__dict__,
            "stale": True,
            "_memory": Memory(),
            "_assemblies": {},
            "_surroundings": None,
            "_prepared": None,
        }


def attached_model(model: nn.Module) -> AttachedModel | None:
    """Return what hnloader has on a model, None without attachments."""
    owners: Iterable[object] = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, AttachedModel)), None)


def _requires_grad(output: object) -> bool:
    """Return True if a tensor of an output requires gradients."""
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, Mapping):
        return any(map(_requires_grad, output.values()))
    return isinstance(output, (tuple, list)) and any(map(_requires_grad, output))


def _is_recorded(device: torch.device) -> bool:
    """Return True if torch records the operations of a call, to repeat them with other values."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return True
    return torch._C._get_tracing_state() is not None


def _old_torch() -> bool:
    """Return True for torch 2.0, whose hooks miss exceptions."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1)


def _keep_out_of_graphs() -> None:
    """Make torch.compile run the hooks uncompiled, because they change modules and may read the timestep.

    This does not import the compiler, which takes a second: if nothing imported it, nothing is compiled.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and not hasattr(AttachedModel.begin, "_torchdynamo_disable"):
        AttachedModel.begin = dynamo.disable(AttachedModel.begin)  # type: ignore[method-assign]
        AttachedModel.end = dynamo.disable(AttachedModel.end)  # type: ignore[method-assign]
