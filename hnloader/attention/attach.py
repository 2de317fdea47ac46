"""Attach hypernetworks to a model, change their strengths, and detach them again."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import nn

from hnloader.attention.explain import Explanation, explain
from hnloader.attention.injector import Injector, injector_of, lock
from hnloader.attention.matching import check_match
from hnloader.attention.schedule import Clock, SamplingClock, is_active
from hnloader.attention.sites import AttentionSite, find_sites, unet_of
from hnloader.attention.strengths import Strength, check_number, check_strength, site_strengths
from hnloader.errors import HypernetworkError, NoMatchingSitesError, PartialMatchWarning
from hnloader.network import Hypernetwork, SideName

Source: TypeAlias = "Hypernetwork | str | os.PathLike[str]"


@dataclass(frozen=True)
class Application:
    """A hypernetwork and how it is applied.

    Attributes:
        hypernetwork: The hypernetwork, or the path of its file.
        strength: A number (1 is what was trained, 0 changes nothing), or numbers by block: see `attach`.
        start: Fraction of the sampling, 0 to 1, from which it acts.
        end: Fraction of the sampling up to which it acts; more than `start`.
        k: Factor on the strength for the keys.
        v: Factor on the strength for the values.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is not finite, or not `0 <= start < end <= 1`.
    """

    hypernetwork: Source
    strength: Strength = 1.0
    start: float = 0.0
    end: float = 1.0
    k: float = 1.0
    v: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", check_strength(self.strength))
        for name in ("start", "end", "k", "v"):
            object.__setattr__(self, name, check_number(getattr(self, name), name))
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"start and end are fractions of the sampling with 0 <= start < end <= 1, "
                f"not {self.start} and {self.end}"
            )

    @property
    def windowed(self) -> bool:
        """Whether it acts in a part of the sampling only."""
        return self.start > 0 or self.end < 1


class Attachment:
    """Hypernetworks on a model, as `attach` returns them. As a context manager it detaches at the end."""

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        applications: Sequence[tuple[Application, Hypernetwork]],
        clock: Clock,
        *,
        fold: bool = True,
        exact: bool = False,
    ) -> None:
        self.fold = fold
        self.exact = exact
        self._injector: Injector | None = None
        self._sites = tuple(sites)
        self._clock = clock
        self._entries = [_Entry(application, hypernetwork, self._sites) for application, hypernetwork in applications]

    @property
    def attached(self) -> bool:
        """False after `detach`."""
        return self._injector is not None

    @property
    def hypernetworks(self) -> tuple[Hypernetwork, ...]:
        """The hypernetworks in the order in which they are chained."""
        return tuple(entry.hypernetwork for entry in self._entries)

    @property
    def applications(self) -> tuple[Application, ...]:
        """The hypernetworks with their present strengths and windows, in order."""
        return tuple(entry.application for entry in self._entries)

    @property
    def sites(self) -> tuple[AttentionSite, ...]:
        """The attention layers that it changes, those of a width that one of the hypernetworks holds."""
        return tuple(site for site in self._sites if site.width in self.widths)

    @property
    def widths(self) -> frozenset[int]:
        """The widths of all its hypernetworks."""
        return frozenset(width for entry in self._entries for width in entry.hypernetwork.widths)

    def set_strength(self, strength: Strength, which: int | str | None = None) -> None:
        """Change strengths; the next call of the model uses them.

        Args:
            strength: A number, or numbers by block as in `attach`.
            which: Index or name of one of the hypernetworks (all of that name); None for all of them.

        Raises:
            HypernetworkError: It is detached.
            IndexError: There is no hypernetwork of this index.
            KeyError: There is none of this name.
            NoMatchingSitesError: A pattern matches no attention layer of the model; nothing is changed then.
        """
        with lock:
            injector = self._joined()
            positions = self._find(which)
            changed = [
                _Entry(
                    replace(entry.application, strength=strength),
                    entry.hypernetwork,
                    self._sites,
                    entry.active,
                )
                if position in positions
                else entry
                for position, entry in enumerate(self._entries)
            ]
            self._entries = changed
            injector.stale = True

    def refresh(self) -> None:
        """Compute all that is kept from the present values at the next call of the model.

        Changes in place are noticed by themselves, but for some that torch does not count, through `.data` or a numpy
        view: docs/attach.md says which. Call this after one of those.

        Raises:
            HypernetworkError: It is detached.
        """
        with lock:
            self._joined().forget()

    def detach(self) -> None:
        """Take the hypernetworks off the model.

        The model is then bit for bit what it was, unless others are still attached. Any order is right, and a
        second call does nothing.
        """
        with lock:
            injector, self._injector = self._injector, None
            if injector is not None:
                injector.remove(self)
                self._sites = ()  # they hold the model's layers

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def summary(self) -> str:
        """One line per hypernetwork: strength, window, and the layers that it changes and leaves."""
        if not self.attached:
            return repr(self)
        lines = []
        for entry in self._entries:
            covered = [site for site in self._sites if site.width in entry.hypernetwork.widths]
            kinds = [f"{sum(site.kind == kind for site in covered)} {kind}" for kind in ("self", "cross")]
            line = f"{entry}: {len(covered)} of {len(self._sites)} attention layers ({', '.join(kinds)})"
            left = [site.width for site in self._sites if site.width not in entry.hypernetwork.widths]
            if left:
                line += "; not in the file: " + ", ".join(
                    f"width {width} ({left.count(width)} layers)" for width in sorted(set(left))
                )
            lines.append(line)
        return "\n".join(lines)

    def explain(
        self, *, batch: int | None = None, size: int | tuple[int, int] | None = None, tokens: int | None = None
    ) -> Explanation:
        """How each layer computes what is attached to the model, why so, and what it costs: `print` it.

        All that is attached to the model is counted, since the layers compute it together.

        Args:
            batch: Images in one call of the model; by default as in the last call, or 2 before the first.
            size: Height and width of the latents; by default as in the last call, or the model's own before.
            tokens: Length of the text; by default as in the last call, or 77 before.

        Raises:
            HypernetworkError: It is detached.
        """
        with lock:
            return explain(self._joined(), batch, size, tokens)

    def _joined(self) -> Injector:
        if self._injector is None:
            raise HypernetworkError("this attachment was detached from its model: attach the hypernetworks again")
        return self._injector

    def __repr__(self) -> str:
        state = f"{len(self.sites)} of {len(self._sites)} attention layers" if self.attached else "detached"
        return f"<Attachment {', '.join(map(str, self._entries))}: {state}>"

    def _find(self, which: int | str | None) -> set[int]:
        count = len(self._entries)
        if which is None:
            return set(range(count))
        if isinstance(which, int):
            if not -count <= which < count:
                raise IndexError(f"there is no hypernetwork {which} in this attachment: it has {count}")
            return {which % count}
        names = [entry.hypernetwork.name for entry in self._entries]
        if which not in names:
            close = difflib.get_close_matches(which, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise KeyError(f"no hypernetwork {which!r} in this attachment, only {', '.join(names)}{hint}")
        return {position for position, name in enumerate(names) if name == which}

    # What `attach` and the injector ask for.

    def join(self, injector: Injector) -> None:
        """Become one of the injector's attachments."""
        injector.add(self)
        self._injector = injector

    @property
    def windowed(self) -> bool:
        """Whether one of its hypernetworks acts in a part of the sampling only."""
        return any(entry.application.windowed for entry in self._entries)

    def seek(self, timestep: float) -> bool:
        """Open and close the windows for this timestep; True when that changed anything."""
        step = self._clock.step(timestep)
        changed = False
        for entry in self._entries:
            active = not entry.application.windowed or is_active(step, entry.application.start, entry.application.end)
            changed |= active != entry.active
            entry.active = active
        return changed

    def at(self, site: AttentionSite) -> Iterator[tuple[Hypernetwork, dict[SideName, float]]]:
        """The hypernetworks that act at a site now, in order, with their strengths for k and v."""
        for entry in self._entries:
            if entry.active and site.width in entry.hypernetwork.widths:
                strength = entry.strengths[site.index]
                yield entry.hypernetwork, {"k": strength * entry.application.k, "v": strength * entry.application.v}


class _Entry:
    """One hypernetwork of an attachment, with its strength at every site."""

    def __init__(
        self,
        application: Application,
        hypernetwork: Hypernetwork,
        sites: Sequence[AttentionSite],
        active: bool | None = None,
    ) -> None:
        self.application = replace(application, hypernetwork=hypernetwork)
        self.hypernetwork = hypernetwork
        self.strengths = site_strengths(application.strength, sites)
        self.active = application.start == 0 if active is None else active

    def __str__(self) -> str:
        strength = self.application.strength
        shown = f"{strength:g}" if isinstance(strength, float) else str(strength)
        text = f"{self.hypernetwork.name or 'hypernetwork'} at {shown}"
        if self.application.windowed:
            text += f" from {self.application.start:g} to {self.application.end:g}"
        return text


Item: TypeAlias = "Source | Application | tuple[Source, Strength]"


def attach(
    model: Any,
    hypernetworks: Item | Sequence[Item],
    strength: Strength = 1.0,
    *,
    start: float = 0.0,
    end: float = 1.0,
    fold: bool = True,
    exact: bool = False,
    clock: Clock | None = None,
) -> Attachment:
    """Attach hypernetworks to the attention layers of a model.

    In every self- and cross-attention layer of the UNet whose context has a width that a hypernetwork holds,
    the keys become `to_k(h_k(context))` and the values `to_v(h_v(context))`. Several are chained in order, k
    by k and v by v, each fed with the output of the one before, and those attached earlier come first. Text
    encoders, VAEs, ControlNets and the image projections of IP-Adapters are never touched. No parameter of the
    model is changed. Each layer computes it in the cheapest way that gives the same; `Attachment.explain` tells
    which, and docs/plans.md why.

    Args:
        model: A diffusers pipeline, or anything else with a `unet`; or the UNet itself, compiled or not. A
            ControlNet can be given as a model of its own.
        hypernetworks: A hypernetwork or the path of its file; a pair of that and its strength; an
            `Application`; or a sequence of these.
        strength: For the hypernetworks that come without their own: a number, 1 being what was trained and 0
            no change at all; or a mapping of numbers by block, as in `{"up": 1, "mid": 0.5}` or `{"cross": 1,
            "up.1.cross": 0.3}`. Patterns, from the least to the most specific: `*`; `self`, `cross`; `down`,
            `mid`, `up`; `up.cross`; `up.1`; `up.1.cross`; a glob on the layer's name; its index. The most
            specific that matches a layer wins, the later of two globs. Layers that no pattern matches get 0.
        start: For the hypernetworks that come without their own: fraction of the sampling, 0 to 1, from which
            it acts. A step counts as inside when all of it lies between `start` and `end`, as with diffusers'
            `control_guidance_start`. The pipeline's scheduler tells the step; without a pipeline the fraction
            is `1 - timestep / 1000`. The timestep is read back from the device in each step only if a window
            is set.
        end: Fraction of the sampling up to which it acts.
        fold: Hypernetworks without activation and norm may be folded into a second copy of the weights of
            self-attention. False where the weights belong to a host, as in the webuis.
        exact: Compute as the original programs do: in float32, module by module, in every step. The default
            agrees with it within 1e-5 of the largest value in float32.
        clock: Tells the position in the sampling instead of the pipeline's scheduler: for programs that have a
            sampling loop of their own.

    Returns:
        The attachment: `set_strength`, `explain`, `detach`, and a context manager that detaches.

    Raises:
        NoMatchingSitesError: The model has no UNet, or no attention layer of a width that a hypernetwork
            holds, or none that a pattern matches.
        HypernetworkError: The model was compiled by a torch older than 2.5; or a file cannot be loaded: see
        `load`. TypeError, ValueError: An argument is no hypernetwork, path, finite number or valid window.

    Whatever is raised, the model is as it was.
    """
    unet = _unet(model)
    _check_compiled(model, unet)
    applications = [
        (application, _loaded(application.hypernetwork))
        for application in _applications(hypernetworks, strength, start, end)
    ]
    sites = _sites(unet)
    for remark in [check_match(hypernetwork, sites) for _, hypernetwork in applications]:
        if remark is not None:
            warnings.warn(remark, PartialMatchWarning, stacklevel=2)
    clock = clock or SamplingClock(None if isinstance(model, nn.Module) else model)
    attachment = Attachment(sites, applications, clock, fold=fold, exact=exact)
    with lock:
        attachment.join(injector_of(unet) or Injector(unet, sites))
    return attachment


def attachments(model: Any) -> list[Attachment]:
    """What is attached to a model now, in the order in which it is chained.

    Args:
        model: What `attach` takes. Pipelines that share a UNet share its attachments.
    """
    injector = injector_of(_unet(model))
    return [] if injector is None else [each for each in injector.attachments if isinstance(each, Attachment)]


def _unet(model: Any) -> nn.Module:
    unet = unet_of(model)
    if unet is None:
        raise NoMatchingSitesError(
            f"{type(model).__name__} has no UNet: hypernetworks are made for the UNet of Stable Diffusion 1, "
            f"2 and XL. Give a pipeline that has one, or the UNet"
        )
    return unet


def _sites(unet: nn.Module) -> tuple[AttentionSite, ...]:
    injector = injector_of(unet)
    sites = find_sites(unet) if injector is None else injector.sites
    if not sites:
        raise NoMatchingSitesError(
            f"{type(unet).__name__} has no attention layers that hypernetworks act on: they are made for the "
            f"UNet of Stable Diffusion 1, 2 and XL"
        )
    return sites


def _check_compiled(model: Any, unet: nn.Module) -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    compiled = getattr(model, "unet", model) is not unet or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in unet.modules()
    )
    if compiled and version < (2, 5):
        raise HypernetworkError(
            f"this model is compiled, and torch {torch.__version__} does not notice a hypernetwork on a "
            f"compiled model. Use torch 2.5 or newer, or the model without torch.compile"
        )


def _applications(items: Item | Sequence[Item], strength: Strength, start: float, end: float) -> list[Application]:
    if _is_item(items):
        items = [items]  # type: ignore[list-item]
    elif isinstance(items, (Mapping, nn.Module)) or not isinstance(items, Sequence):
        raise TypeError(f"expected hypernetworks, paths, (hypernetwork, strength) pairs or Applications, not {items!r}")
    if not items:
        raise ValueError("no hypernetwork was given")
    applications = []
    for item in items:
        if isinstance(item, Application):
            applications.append(item)
        elif isinstance(item, tuple) and len(item) == 2:
            applications.append(Application(item[0], item[1], start, end))
        else:
            applications.append(Application(item, strength, start, end))  # type: ignore[arg-type]
    return applications


def _is_item(value: object) -> bool:
    """One hypernetwork in any of its forms, as opposed to a sequence of them."""
    if isinstance(value, tuple) and len(value) == 2:
        return _is_item(value[0]) and not _is_item(value[1]) and not isinstance(value[0], Application)
    return isinstance(value, (Hypernetwork, Application, str, os.PathLike))


def _loaded(source: Source) -> Hypernetwork:
    if isinstance(source, (str, os.PathLike)):
        from hnloader.loading import load  # the formats are of no use to who brings hypernetworks

        return load(source)
    if not isinstance(source, Hypernetwork):
        raise TypeError(f"expected a hypernetwork or the path of its file, not {type(source).__name__}")
    return source
