"""Apply the tags of a job to the webui's UNet, and remove everything when the job ends."""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hnloader
from hnloader.attention import Application, Attachment, attach
from hnloader.attention.strengths import Strength
from hnloader.errors import HypernetworkError, PartialMatchWarning, PromptTagError
from hnloader.families import family_list
from hnloader.files import sha256_of
from hnloader.network import Hypernetwork
from hnloader.prompt import Tag, parse_items
from hnloader.texts import as_text, shown

from .host_library import HostLibrary
from .hosts.protocol import (
    ClosesJobs,
    FindsControlNets,
    FindsPlainLinears,
    HasHypernetworks,
    WebuiHost,
    WritesInfotext,
    option,
    show_message,
)
from .record import new_record, record_of
from .redaction import redact

# Attributes of a job. Copies of the job share the values, which therefore never change.
_ROWS, _OVERRIDE = "hnloader_rows", "hnloader_override"
_KEPT = 4  # files that stay in memory after a job
_LONGEST = 1_000  # characters of a reason
_DIGITS = 10  # of a file's sha256, as in the webuis

# A name that was not applied, and the reason.
_Failure = tuple[str, str]


class StepClock:
    """The current step as fractions of the sampling, from start to end."""

    def __init__(self) -> None:
        self.now = (0.0, 1.0)

    def set(self, index: int, steps: int) -> None:
        """Move to a step; `index` starts at 0."""
        steps = max(steps, index + 1, 1)
        self.now = (index / steps, (index + 1) / steps)

    def step(self, timestep: float) -> tuple[float, float]:
        """See `hnloader.attention.schedule.Clock`."""
        return self.now


@dataclass(frozen=True)
class _Loaded:
    stamp: tuple[int, int]  # size and time of change
    hypernetwork: Hypernetwork
    digest: str


class Applier:
    """Applies hypernetworks to the running job; a webui runs one job at a time."""

    def __init__(self, host: WebuiHost, library: HostLibrary) -> None:
        self.host = host
        self.clock = StepClock()
        self._library = library
        self._loaded: OrderedDict[Path, _Loaded] = OrderedDict()
        self._wanted: list[tuple[Tag, _Loaded]] = []
        self._attachments: list[Attachment] = []
        self._applied: list[tuple[str, str]] = []  # name and hash of each attachment
        self._models: list[nn.Module] = []  # the UNet and its ControlNets
        self._job: Any = None
        self._model_seen = False
        self._open: list[weakref.ref[Any]] = []  # jobs with rows that have begun, the innermost last

    def begin(self, job: Any, tags: Sequence[Tag]) -> None:
        """Apply these tags before those of the job's prompt, and in jobs that other extensions start within it."""
        setattr(job, _ROWS, tuple(tags))
        self._open.append(weakref.ref(job))
        self._restore_at_close(job)

    def finish(self, job: Any) -> None:
        """End a job that began, and those within it."""
        for position, begun in enumerate(self._open):
            if begun() is job:
                del self._open[position:]
                return

    def override(self, job: Any, **fields: Any) -> None:
        """Change `name`, `strength`, `start` or `end` of all the job's hypernetworks.

        A name replaces all of them by one, or adds one to a job without any. An empty name removes all.
        """
        setattr(job, _OVERRIDE, {**getattr(job, _OVERRIDE, {}), **fields})

    def activate(self, job: Any, items: Sequence[Sequence[str]], first_pass: bool = True) -> None:
        """Apply the tags of a batch or pass; see `Events`.

        A tag that cannot be applied becomes a message under the image.
        """
        self.deactivate()
        if isinstance(self.host, HasHypernetworks):
            self.host.clear_built_in()
        if first_pass:
            new_record(job)
        tags, failures = self._tags(job, items)
        for tag in tags:
            try:
                self._wanted.append((tag, self._load(tag.name)))
            except HypernetworkError as error:
                failures.append((tag.name, as_text(error, _LONGEST)))
        if self._wanted:
            self._job = job
            self._restore_at_close(job)
            failures += self._attach()
        self._report(job, failures)

    def deactivate(self) -> None:
        """Restore the model."""
        self._detach()
        self._wanted = []
        self._job = None
        while len(self._loaded) > _KEPT:
            self._loaded.popitem(last=False)

    def model_changed(self) -> None:
        """Restore the model that was replaced; the next step attaches to the new one."""
        self._detach()
        self._model_seen = True

    def unet(self) -> nn.Module | None:
        """Return the UNet of the loaded model; None before the first one, since asking for it could load it."""
        return self.host.unet() if self._model_seen else None

    def step(self, index: int, steps: int) -> None:
        """Set the clock, and follow a model that was replaced during the job, for example by a refiner."""
        if not self._wanted:
            return
        self.clock.set(index, steps)
        if self._present_models() != self._models:
            self._report(self._job, self._attach())

    def _restore_at_close(self, job: Any) -> None:
        def closed() -> None:
            self.deactivate()
            self.finish(job)

        if isinstance(self.host, ClosesJobs):
            self.host.at_close(job, closed)

    def _inherited(self, job: Any, name: str, default: Any) -> Any:
        """Return an attribute of the job, or of the job that it runs in: extensions copy no attributes of ours."""
        jobs = [job, *(begun() for begun in reversed(self._open))]
        return next((getattr(each, name) for each in jobs if hasattr(each, name)), default)

    def _tags(self, job: Any, items: Sequence[Sequence[str]]) -> tuple[list[Tag], list[_Failure]]:
        """Collect the tags of rows, prompt and quick setting, with the changes of a plot."""
        tags: list[Tag] = []
        failures: list[_Failure] = []
        for each in items:
            try:
                tags.append(parse_items(each))
            except PromptTagError as error:
                failures.append((each[0] if each else "", as_text(error, _LONGEST)))
        try:
            wanted = [*self._inherited(job, _ROWS, ()), *tags, *self._quick_setting(job, tags)]
            return _overridden(wanted, self._inherited(job, _OVERRIDE, {})), failures
        except PromptTagError as error:  # an axis of a plot can ask for start=1
            return [], [*failures, ("", as_text(error, _LONGEST))]

    def _quick_setting(self, job: Any, tags: Sequence[Tag]) -> list[Tag]:
        """Return the tag of 'Add hypernetwork to prompt', and record it in the prompts."""
        if not isinstance(self.host, HasHypernetworks):
            return []
        name = self.host.quick_setting()
        if name is None or any(tag.name == name for tag in tags):
            return []
        tag = Tag(name, default_strength(self.host))
        self.host.add_to_prompts(job, str(tag))
        return [tag]

    def _load(self, name: str) -> _Loaded:
        path = self._library.find_tagged(name).path
        try:
            status = path.stat()
        except OSError as error:
            raise HypernetworkError(f"{shown(name)}: cannot read the file ({error.strerror}).") from error
        stamp = (status.st_size, status.st_mtime_ns)
        loaded = self._loaded.get(path)
        if loaded is None or loaded.stamp != stamp:
            # Forge samples in inference mode; tensors made there could never be changed or counted.
            with torch.inference_mode(False), torch.no_grad():
                loaded = _Loaded(stamp, hnloader.load(path), sha256_of(path)[:_DIGITS])
            self._loaded[path] = loaded
        self._loaded.move_to_end(path)
        return loaded

    def _attach(self) -> list[_Failure]:
        """Attach all that is wanted to the current models; return what does not fit the UNet."""
        self._detach()
        self._models = self._present_models()
        if not self._models:
            return [(tag.name, f"No {family_list()} model is loaded.") for tag, _ in self._wanted]
        unet, *control_nets = self._models
        failures = []
        with torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialMatchWarning)
            for tag, loaded in self._wanted:
                try:
                    self._attach_one(unet, tag, loaded, _strength(tag))
                except (HypernetworkError, ValueError) as error:
                    failures.append((tag.name, as_text(error, _LONGEST)))
                    continue
                self._applied.append((tag.name, loaded.digest))
                for model in control_nets:
                    with contextlib.suppress(HypernetworkError):  # of another family, or without attention
                        self._attach_one(model, tag, loaded, _strength_without_up(tag))
        return failures

    def _attach_one(self, model: nn.Module, tag: Tag, loaded: _Loaded, strength: Strength) -> None:
        fold = self.host.plain_linears if isinstance(self.host, FindsPlainLinears) else False
        exact = bool(option(self.host, "hnloader_exact", False))
        application = Application(loaded.hypernetwork, strength, tag.start, tag.end, tag.k, tag.v)
        self._attachments.append(attach(model, application, fold=fold, exact=exact, clock=self.clock))

    def _present_models(self) -> list[nn.Module]:
        """Return the UNet and the ControlNets that the next step calls; nothing without a UNet."""
        unet = self.host.unet(self._job)
        self._model_seen = True
        if unet is None:
            return []
        if not isinstance(self.host, FindsControlNets) or not option(self.host, "hnloader_controlnet", True):
            return [unet]
        return [unet, *self.host.control_nets(self._job)]

    def _detach(self) -> None:
        while self._attachments:
            self._attachments.pop().detach()
        self._applied = []
        self._models = []

    def _report(self, job: Any, failures: Sequence[_Failure]) -> None:
        """Show what failed under the image, and write what was applied into its infotext."""
        folders = self.host.folders()
        texts = [_not_applied(name, redact(folders, reason)) for name, reason in failures]
        for text in texts:
            show_message(self.host, text, job)
        record = record_of(job)
        record.add(self._applied, (name for name, _ in failures), texts)
        if isinstance(self.host, WritesInfotext):
            record.write(self.host.parameters(job))


def _not_applied(name: str, reason: str) -> str:
    """Return a message that names the hypernetwork once."""
    shown_name = shown(name)
    reason = reason.removeprefix("Hypernetwork ").removeprefix(f"{shown_name}: ")
    return f"Hypernetwork {shown_name} was not applied: {reason}"


def default_strength(host: WebuiHost) -> float:
    """Return the webui's default strength of a tag; 1 if the setting is not a finite number."""
    try:
        strength = float(option(host, "extra_networks_default_multiplier", 1.0))
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return strength if math.isfinite(strength) else 1.0


def _strength(tag: Tag) -> Strength:
    return {part.block: tag.strength * part.weight for part in tag.blocks} if tag.blocks else tag.strength


def _strength_without_up(tag: Tag) -> Strength:
    """Return the strength in a ControlNet, which has no up blocks."""
    blocks = [part for part in tag.blocks if not part.block.startswith("up")]
    return _strength(replace(tag, blocks=tuple(blocks))) if blocks or not tag.blocks else 0.0


def _overridden(tags: Sequence[Tag], fields: dict[str, Any]) -> list[Tag]:
    fields = dict(fields)
    name = fields.pop("name", None)
    if name is not None:
        first = tags[0] if tags else Tag("any")
        tags = [replace(first, name=str(name))] if name else []
    return [replace(tag, **fields) for tag in tags]
