"""From the tags of a job to hooks on the host's UNet, and off again when the job is over."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hnloader
from hnloader.attention import Application, Attachment, attach
from hnloader.attention.strengths import Strength
from hnloader.errors import HypernetworkError, PartialMatchWarning, PromptTagError
from hnloader.infotext import without_hash
from hnloader.library import LibraryFile
from hnloader.network import Hypernetwork
from hnloader.prompt import Tag, parse_items
from hnloader.texts import as_text, shown

from .host import WebuiHost
from .infotext import digest_of, record_of
from .telling import without_folders

# Attributes on the host's object for a job; its copies keep them.
_ROWS = "hnloader_rows"
_OVERRIDE = "hnloader_override"
_CLOSES = "hnloader_closes"
_LEFT_OUT = "hnloader_left_out"
# Files kept in memory after their job, so that the next one does not read them again.
_KEPT = 4
_LONGEST = 1_000  # characters of a reason


class StepClock:
    """The position in the host's sampling: fractions at which the present step begins and ends."""

    def __init__(self) -> None:
        self.now = (0.0, 1.0)

    def set(self, index: int, steps: int) -> None:
        """At step `index`, counted from 0, of `steps`."""
        steps = max(steps, index + 1, 1)
        self.now = (index / steps, (index + 1) / steps)

    def step(self, timestep: float) -> tuple[float, float]:
        """See `hnloader.attention.schedule.Clock`."""
        return self.now


@dataclass(frozen=True)
class Loaded:
    """A file in memory: `stamp` is its size and time of change, `digest` the start of its sha256."""

    stamp: tuple[int, int]
    hypernetwork: Hypernetwork
    digest: str


class Applier:
    """Applies hypernetworks to the job that runs; at most one job runs at a time in a webui."""

    def __init__(
        self,
        host: WebuiHost,
        find: Callable[[str], str],
        find_hash: Callable[[str, str], LibraryFile | None] = lambda name, digest: None,
    ) -> None:
        """`find` gives the path of a name, `find_hash` the file of a name and a hash."""
        self.host = host
        self._find_hash = find_hash
        self.clock = StepClock()
        self._find = find
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._wanted: list[tuple[Tag, Loaded]] = []
        self._attachments: list[Attachment] = []
        self._applied: list[tuple[str, str]] = []  # names and digests of what is attached
        self._unet: nn.Module | None = None
        self._processing: Any = None

    @property
    def applied(self) -> tuple[Application, ...]:
        """What is on the model now, in order."""
        return tuple(application for attachment in self._attachments for application in attachment.applications)

    def set_rows(self, processing: Any, tags: Sequence[Tag]) -> None:
        """Apply these to the job before the tags of its prompt."""
        setattr(processing, _ROWS, tuple(tags))

    def override(self, processing: Any, **fields: Any) -> None:
        """Change every hypernetwork of the job: `name`, `strength`, `start`, `end`.

        A name takes the place of all of them; it is the only one where there was none. An empty name removes them.
        """
        setattr(processing, _OVERRIDE, {**getattr(processing, _OVERRIDE, {}), **fields})

    def activate_items(self, processing: Any, items: list[list[str]]) -> None:
        """Apply the tags of a prompt, each as the texts between its colons. Called again for each batch and pass.

        What can't be applied is said under the image, and the image is made without it.
        """
        tags = []
        problems = []
        for each in items:
            try:
                tags.append(parse_items(each))
            except PromptTagError as error:
                problems.append((each[0] if each else "", as_text(error, _LONGEST)))
        self.activate(processing, tags, problems)

    def activate(self, processing: Any, tags: Sequence[Tag], problems: Sequence[tuple[str, str]] = ()) -> None:
        """Apply tags; `problems` are names that could not be read, with the reason."""
        self.deactivate()
        self.host.clear_built_in()
        record_of(processing, anew=not getattr(processing, "is_hr_pass", False))
        left = list(problems)
        try:
            wanted = [*getattr(processing, _ROWS, ()), *tags, *self._quick_setting(processing, tags)]
            wanted = _overridden(wanted, getattr(processing, _OVERRIDE, {}))
        except PromptTagError as error:  # an axis of a plot can ask for start=1
            left.append(("", as_text(error, _LONGEST)))
            wanted = []
        for tag in wanted:
            try:
                self._wanted.append((tag, self._load(tag.name)))
            except HypernetworkError as error:
                left.append((tag.name, as_text(error, _LONGEST)))
        if self._wanted:
            self._processing = processing
            _at_close(processing, self.deactivate)
            left += self._attach()
        self._report(processing, left)

    def deactivate(self) -> None:
        """Leave nothing on the model."""
        self._detach()
        self._wanted = []
        self._processing = None
        while len(self._loaded) > _KEPT:
            self._loaded.popitem(last=False)

    def model_changed(self) -> None:
        """Another checkpoint was loaded: the old one is left clean; the next step takes the new one."""
        self._detach()

    def step(self, index: int, steps: int) -> None:
        """Called before each sampling step: tells the time, and follows a model that was replaced (refiner)."""
        if not self._wanted:
            return
        self.clock.set(index, steps)
        if self.host.unet(self._processing) is not self._unet:
            self._report(self._processing, self._attach())

    def _quick_setting(self, processing: Any, tags: Sequence[Tag]) -> list[Tag]:
        """The host's setting 'Add hypernetwork to prompt'; it is written into the prompts, as the built-in does."""
        name = self.host.quick_setting()
        if name is None or any(tag.name == name for tag in tags):
            return []
        tag = Tag(name, default_strength(self.host))
        prompts = getattr(processing, "all_prompts", None)
        if isinstance(prompts, list):
            text = str(tag)
            processing.all_prompts = [each if text in each else each + text for each in prompts]
        return [tag]

    def _load(self, name: str) -> Loaded:
        try:
            path = self._find(name)
        except HypernetworkError:
            plain, digest = without_hash(name)
            if plain == name:
                raise
            found = self._find_hash(plain, digest)
            path = self._find(plain) if found is None else str(found.path)
        try:
            status = Path(path).stat()
        except OSError as error:
            raise HypernetworkError(f"{shown(name)} can't be read: {error.strerror}") from error
        stamp = (status.st_size, status.st_mtime_ns)
        loaded = self._loaded.get(path)
        if loaded is None or loaded.stamp != stamp:
            # Forge samples in inference mode; tensors made there could never be changed or counted.
            with torch.inference_mode(False), torch.no_grad():
                loaded = Loaded(stamp, hnloader.load(path), digest_of(path))
            self._loaded[path] = loaded
        self._loaded.move_to_end(path)
        return loaded

    def _attach(self) -> list[tuple[str, str]]:
        """Put all that is wanted on the present UNet; returns what does not fit it, with the reason."""
        self._detach()
        self._unet = self.host.unet(self._processing)
        if self._unet is None:
            return [(tag.name, "no Stable Diffusion 1, 2 or XL model is loaded") for tag, _ in self._wanted]
        left = []
        exact = bool(self.host.option("hnloader_exact", False))
        with torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialMatchWarning)
            for tag, loaded in self._wanted:
                application = Application(loaded.hypernetwork, _strength(tag), tag.start, tag.end, tag.k, tag.v)
                try:
                    attachment = attach(self._unet, application, fold=False, exact=exact, clock=self.clock)
                except HypernetworkError as error:
                    left.append((tag.name, as_text(error, _LONGEST)))
                else:
                    self._attachments.append(attachment)
                    self._applied.append((tag.name, loaded.digest))
        return left

    def _detach(self) -> None:
        while self._attachments:
            self._attachments.pop().detach()
        self._applied = []
        self._unet = None

    def _report(self, processing: Any, left: Sequence[tuple[str, str]]) -> None:
        """Tell the user what was left out, and the image's infotext what was applied."""
        texts = [
            f"Hypernetwork {shown(name)} was not applied: {without_folders(self.host, reason)}" for name, reason in left
        ]
        for text in texts:
            self.host.comment(processing, text)
        setattr(processing, _LEFT_OUT, tuple(dict.fromkeys((*left_out(processing), *texts))))
        record = record_of(processing)
        record.add(self._applied, (name for name, _ in left))
        parameters = getattr(processing, "extra_generation_params", None)
        if isinstance(parameters, dict):
            record.write(parameters)


def default_strength(host: WebuiHost) -> float:
    """Return the host's default strength of a tag; 1 where its setting holds something else than a number."""
    try:
        strength = float(host.option("extra_networks_default_multiplier", 1.0))
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return strength if math.isfinite(strength) else 1.0


def left_out(processing: Any) -> tuple[str, ...]:
    """What a job was asked to apply and did not, as it was said under the image."""
    return tuple(getattr(processing, _LEFT_OUT, ()))


def _strength(tag: Tag) -> Strength:
    return {part.block: tag.strength * part.weight for part in tag.blocks} if tag.blocks else tag.strength


def _overridden(tags: Sequence[Tag], fields: dict[str, Any]) -> list[Tag]:
    fields = dict(fields)
    name = fields.pop("name", None)
    if name is not None:
        first = tags[0] if tags else Tag("any")
        tags = [replace(first, name=str(name))] if name else []
    return [replace(tag, **fields) for tag in tags]


def _at_close(processing: Any, deactivate: Callable[[], None]) -> None:
    """The host closes a job also after an exception in its sampling, where it calls nothing else."""
    close = getattr(processing, "close", None)
    if not callable(close) or getattr(processing, _CLOSES, False):
        return

    def close_and_deactivate() -> None:
        try:
            close()
        finally:
            deactivate()

    processing.close = close_and_deactivate
    setattr(processing, _CLOSES, True)
