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
from torch import Tensor, nn

from hnloader.attention.changes import PlainLinears
from hnloader.attention.decoders import why_no_decoder
from hnloader.attention.explain import Explanation, explain
from hnloader.attention.layout import AttentionSite, find_sites, host_of, is_decoder
from hnloader.attention.matching import check_match, scope_at
from hnloader.attention.model import AttachedModel, attached_model, lock
from hnloader.attention.schedule import Clock, SamplingClock, is_active
from hnloader.attention.stages import Link
from hnloader.attention.strengths import Strength, check_number, check_product, check_strength, site_strengths
from hnloader.attention.token_masks import TokenMask, check_tokens
from hnloader.errors import HypernetworkError, NoMatchingSitesError, PartialMatchWarning
from hnloader.families import family_list
from hnloader.network import Hypernetwork, SideName
from hnloader.texts import shown
from hnloader.units import counted

Source: TypeAlias = "Hypernetwork | str | os.PathLike[str]"


@dataclass(frozen=True)
class Application:
    """A hypernetwork and how it is applied.

    Args:
        hypernetwork: The hypernetwork, or the path of its file.
        strength: A number, or numbers by block as in `attach`. 1 is the trained strength, 0 changes nothing.
            Default: 1.
        start: Fraction of the sampling at which it begins to act, 0 to 1. Default: 0.
        end: Fraction of the sampling at which it stops, more than `start`. Default: 1.
        k: Factor on the strength for the keys. Default: 1.
        v: Factor on the strength for the values. Default: 1.
        tokens: For language models: the first token on which it acts, and the first on which it acts no more, or None
            for all later ones. Positions count from 0 in each row, the prompt included, padding not. Default: None, all
            tokens.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is not finite, not `0 <= start < end <= 1`, or `tokens` is not a pair of positions.

    Example:
        >>> import hnloader
        >>> hnloader.Application("style.pt", 0.8, start=0.2, v=0.5).windowed
        True
    """

    hypernetwork: Source
    strength: Strength = 1.0
    start: float = 0.0
    end: float = 1.0
    k: float = 1.0
    v: float = 1.0
    tokens: tuple[int, int | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", check_strength(self.strength))
        for name in ("start", "end", "k", "v"):
            object.__setattr__(self, name, check_number(getattr(self, name), name))
        check_product(self.strength, max(abs(self.k), abs(self.v)))
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"Start and end: found {self.start} and {self.end}. "
                "Use fractions of the sampling with 0 <= start < end <= 1."
            )
        if self.tokens is not None:
            object.__setattr__(self, "tokens", check_tokens(self.tokens))

    @property
    def windowed(self) -> bool:
        """True if it acts in a part of the sampling, or on some tokens only."""
        return self.start > 0 or self.end < 1 or self.tokens is not None


class Attachment:
    """Hypernetworks on a model. `attach` returns one; as a context manager it detaches at the end.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> pipe = load_model(pipeline_folder(), device="cpu").pipeline
        >>> with hnloader.attach(pipe, hypernetwork_paths()["outline"], 0.8) as attachment:
        ...     attachment.set_strength(0.4)
        ...     print(attachment)
        <Attachment outline at 0.4: 20 of 20 attention layers>
        >>> attachment.attached
        False
    """

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        applications: Sequence[tuple[Application, Hypernetwork]],
        clock: Clock,
        *,
        fold: bool | PlainLinears = True,
        exact: bool = False,
    ) -> None:
        self.fold = bool(fold)
        self.linears = None if isinstance(fold, bool) else fold
        self.exact = exact
        self._model: AttachedModel | None = None
        self._sites = tuple(sites)
        self._clock = clock
        self._entries = [_Entry(application, hypernetwork, self._sites) for application, hypernetwork in applications]

    @property
    def attached(self) -> bool:
        """False after `detach`."""
        return self._model is not None

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
        """The attention layers that change: those that one of the hypernetworks has sides for."""
        return tuple(site for site in self._sites if self.covers(site))

    def covers(self, site: AttentionSite) -> bool:
        """Return True for an attention layer that one of the hypernetworks has sides for; the model calls this.

        Args:
            site: The attention layer.

        Returns:
            Whether it changes.
        """
        return any(scope_at(entry.hypernetwork, site) is not None for entry in self._entries)

    @property
    def widths(self) -> frozenset[int]:
        """The widths of all hypernetworks."""
        return frozenset(width for entry in self._entries for width in entry.hypernetwork.widths)

    def set_strength(self, strength: Strength, which: int | str | None = None) -> None:
        """Change strengths from the next call of the model on.

        Args:
            strength: A number, or numbers by block as in `attach`.
            which: Index or name of a hypernetwork; a name stands for all hypernetworks with it. Default: all.

        Raises:
            HypernetworkError: The attachment is detached.
            IndexError: The index is out of range.
            KeyError: The name is unknown.
            NoMatchingSitesError: A pattern matches no attention layer of the model. Nothing changes then.
        """
        with lock:
            model = self._joined()
            positions = self._find(which)
            changed = list(self._entries)
            for position in positions:
                entry = changed[position]
                application = replace(entry.application, strength=strength)
                changed[position] = _Entry(application, entry.hypernetwork, self._sites, entry)
            self._entries = changed
            model.stale = True

    def refresh(self) -> None:
        """Compute everything that is kept again at the next call of the model.

        hnloader notices most changes of parameters in place. It cannot notice all changes through `.data` or a numpy
        view, because torch does not count them. Call this after such a change; docs/attach.md has the details.

        Raises:
            HypernetworkError: The attachment is detached.
        """
        with lock:
            self._joined().forget()

    def detach(self) -> None:
        """Take the hypernetworks off the model.

        The model is then bit for bit what it was, unless others are still attached. Attachments may be detached in any
        order. A second call does nothing.
        """
        with lock:
            model, self._model = self._model, None
            if model is not None:
                model.remove(self)
                for entry in self._entries:
                    entry.mask.forget()
                self._sites = ()  # they hold the model's layers

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def summary(self) -> str:
        """Return one line per hypernetwork: its strength, its window, and the layers that it changes and leaves.

        Returns:
            The lines as one text.
        """
        if not self.attached:
            return repr(self)
        lines = []
        for entry in self._entries:
            covered = [site for site in self._sites if scope_at(entry.hypernetwork, site) is not None]
            kinds = [f"{sum(site.kind == kind for site in covered)} {kind}" for kind in ("self", "cross")]
            line = f"{entry}: {len(covered)} of {len(self._sites)} attention layers ({', '.join(kinds)})"
            left = [site.width for site in self._sites if scope_at(entry.hypernetwork, site) is None]
            if left:
                line += "; not in the file: " + ", ".join(
                    f"width {width} ({counted(left.count(width), 'layer')})" for width in sorted(set(left))
                )
            lines.append(line)
        return "\n".join(lines)

    def explain(
        self, *, batch: int | None = None, size: int | tuple[int, int] | None = None, tokens: int | None = None
    ) -> Explanation:
        """Explain which layers compute hypernetworks for free, which do not and why, and what it costs.

        It covers everything that is attached to the model, since the layers compute it together.

        Args:
            batch: Images, or rows of text, in one call of the model. Default: as in the last call, or 2 images, 1 row.
            size: Height and width of the latents. Default: as in the last call, or the model's own.
            tokens: Length of the text. Default: as in the last call, or 77; for a language model 128.

        Returns:
            The explanation; `print` it.

        Raises:
            HypernetworkError: The attachment is detached.
        """
        with lock:
            return explain(self._joined(), batch, size, tokens)

    def _joined(self) -> AttachedModel:
        if self._model is None:
            raise HypernetworkError("This attachment was detached from its model. Attach the hypernetworks again.")
        return self._model

    def __repr__(self) -> str:
        state = f"{len(self.sites)} of {len(self._sites)} attention layers" if self.attached else "detached"
        return f"<Attachment {', '.join(map(str, self._entries))}: {state}>"

    def _find(self, which: int | str | None) -> list[int]:
        count = len(self._entries)
        if which is None:
            return list(range(count))
        if isinstance(which, int):
            if not -count <= which < count:
                raise IndexError(f"Hypernetwork {which}: the attachment holds {count}. Count from 0.")
            return [which % count]
        names = [entry.hypernetwork.name for entry in self._entries]
        found = [position for position, name in enumerate(names) if name == which]
        if not found:
            close = difflib.get_close_matches(which, names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Use one of these names."
            raise KeyError(f"Hypernetwork {which!r}: the attachment holds {', '.join(names)}. {hint}")
        return found

    def _join(self, model: AttachedModel) -> None:
        model.add(self)
        self._model = model

    @property
    def windowed(self) -> bool:
        """True if a hypernetwork acts in a part of the sampling, or on some tokens only."""
        return any(entry.application.windowed for entry in self._entries)

    @property
    def open(self) -> tuple[bool | None, ...]:
        """For each hypernetwork, whether it acts in the present call; None if it acts on some tokens of it."""
        return tuple(entry.open for entry in self._entries)

    def seek(self, timestep: float) -> None:
        """Open and close the windows for a timestep; the model calls this.

        Args:
            timestep: Timestep of the next step.
        """
        step = self._clock.step(timestep)
        for entry in self._entries:
            entry.open = not entry.application.windowed or is_active(
                step, entry.application.start, entry.application.end
            )

    def seek_tokens(self, positions: Tensor) -> None:
        """Open and close the windows for the tokens of a call; the model calls this.

        Args:
            positions: Positions of the tokens. [rows, tokens], one row for all or one for each.
        """
        for entry in self._entries:
            if entry.application.tokens is not None:
                entry.open = entry.mask.set(positions, entry.application.tokens)

    def at(self, site: AttentionSite) -> Iterator[tuple[Link, dict[SideName, float]]]:
        """Yield the hypernetworks that act at an attention layer now; the model calls this.

        Args:
            site: The attention layer.

        Returns:
            An iterator of links at strength 1 in order, each with its strengths for k and v.
        """
        for entry in self._entries:
            scope = scope_at(entry.hypernetwork, site)
            if entry.open is not False and scope is not None:
                mask = entry.mask if entry.open is None else None
                strength, factors = entry.strengths[site.index], entry.application
                link = Link(entry.hypernetwork, scope, 1.0, self.exact, self.fold, mask)
                yield link, {"k": strength * factors.k, "v": strength * factors.v}


class _Entry:
    """One hypernetwork of an attachment, with its strength at every site."""

    def __init__(
        self,
        application: Application,
        hypernetwork: Hypernetwork,
        sites: Sequence[AttentionSite],
        earlier: _Entry | None = None,
    ) -> None:
        self.application = replace(application, hypernetwork=hypernetwork)
        self.hypernetwork = hypernetwork
        self.strengths = site_strengths(application.strength, sites)
        self.open: bool | None = application.start == 0 if earlier is None else earlier.open
        self.mask: TokenMask = TokenMask() if earlier is None else earlier.mask

    def __str__(self) -> str:
        strength = self.application.strength
        number = f"{strength:g}" if isinstance(strength, float) else str(strength)
        text = f"{self.hypernetwork.name or 'hypernetwork'} at {number}"
        if self.application.tokens is not None:
            first, last = self.application.tokens
            text += f" from token {first}" + ("" if last is None else f" to {last}")
        elif self.application.windowed:
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
    fold: bool | PlainLinears = True,
    exact: bool = False,
    clock: Clock | None = None,
) -> Attachment:
    """Attach hypernetworks to the attention layers of a model.

    In each attention layer whose width a hypernetwork holds, the keys become `to_k(h_k(context))` and the values
    `to_v(h_v(context))`. Several hypernetworks are chained in order, k by k and v by v. Those attached earlier come
    first. Only the UNet changes: text encoders, VAEs, ControlNets and the image projections of IP-Adapters stay
    untouched. No parameter changes, and if `attach` raises an error the model is untouched.

    Each layer computes the result in the cheapest exact way; docs/plans.md describes them and `Attachment.explain`
    shows them.

    Args:
        model: A diffusers pipeline, another object with a `unet`, or the UNet itself, compiled or not. A ControlNet
            may be given as a model. A language model of transformers, or its text-generation pipeline.
        hypernetworks: A hypernetwork or the path of its file; a pair of one and its strength; an `Application`; or a
            sequence of these.
        strength: Strength of the hypernetworks that are given without one. 1 is the trained strength, 0 changes
            nothing. A mapping gives numbers by block, such as `{"up": 1, "mid": 0.5}`. Patterns, from the least to the
            most specific: `*`; `self`, `cross`; `down`, `mid`, `up`; `up.cross`; `up.1`; `up.1.cross`; a glob on the
            layer's name; its index. The most specific match wins, and the later of two globs. Other layers get 0.
            Blocks of a language model are `layer.0`, `layer.1`, ... Default: 1.
        start: Fraction of the sampling, 0 to 1, at which those hypernetworks begin to act. A step counts if all of it
            is between `start` and `end`, as with diffusers' `control_guidance_start`. The pipeline's scheduler gives
            the position; without a pipeline it is `1 - timestep / 1000`. Default: 0.
        end: Fraction of the sampling at which they stop. Default: 1.
        fold: Fold hypernetworks without activation and norm into copies of the weights of self-attention. Use False
            to leave weights alone. A program with another Linear class can give a function, which hnloader calls before
            each call of the model. It returns a test of layers, which is True if the layer's forward is only
            `linear(x, weight, bias)` in that call. It also promises that no text changes in place during a call.
            Default: True.
        exact: Compute as the original programs do: in float32, module by module, in every step. Otherwise results
            agree with it within 1e-5 of the largest value in float32. Default: False.
        clock: Source of the position in the sampling, for programs with their own sampling loop. Default: the
            pipeline's scheduler.

    Returns:
        The attachment, which changes strengths and detaches.

    Raises:
        NoMatchingSitesError: The model has no layers that hypernetworks act on, or they match no width or no pattern.
        HypernetworkError: A torch before 2.5 compiled the model, or a file cannot be loaded; see `load`.
        TypeError: An argument is not a hypernetwork, path or number.
        ValueError: A number is not finite or too large, a window is empty, or no hypernetwork is given.

    Warns:
        PartialMatchWarning: The model lacks some widths or numbered layers of a hypernetwork.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> pipe = load_model(pipeline_folder(), device="cpu").pipeline
        >>> with hnloader.attach(pipe, hypernetwork_paths()["outline"], strength={"up": 1.0, "cross": 0.5}):
        ...     image = pipe("a large red circle", num_inference_steps=1).images[0]
        >>> image.size
        (64, 64)
    """
    unet = _host(model)
    _check_compiled(model)
    applications = [
        (application, _loaded(application.hypernetwork))
        for application in _applications(hypernetworks, strength, start, end)
    ]
    sites = _sites(unet)
    _check_windows([application for application, _ in applications], decoder=is_decoder(sites))
    for remark in [check_match(hypernetwork, sites) for _, hypernetwork in applications]:
        if remark is not None:
            warnings.warn(remark, PartialMatchWarning, stacklevel=2)
    clock = clock or SamplingClock(None if isinstance(model, nn.Module) else model)
    attachment = Attachment(sites, applications, clock, fold=fold, exact=exact)
    with lock:
        attachment._join(attached_model(unet) or AttachedModel(unet, sites))
    return attachment


def attachments(model: Any) -> list[Attachment]:
    """Return the attachments of a model.

    Args:
        model: A model as for `attach`. Pipelines that share a UNet share its attachments.

    Returns:
        The attachments in the order in which they are chained.

    Raises:
        NoMatchingSitesError: The model has no UNet.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> pipe = load_model(pipeline_folder(), device="cpu").pipeline
        >>> with hnloader.attach(pipe, hypernetwork_paths()["outline"], 0.8):
        ...     hnloader.attachments(pipe)
        [<Attachment outline at 0.8: 20 of 20 attention layers>]
    """
    owner = attached_model(_host(model))
    found = [] if owner is None else owner.attachments
    return [each for each in found if isinstance(each, Attachment)]


def _host(model: Any) -> nn.Module:
    found = host_of(model)
    if found is None:
        raise NoMatchingSitesError(
            f"{type(model).__name__}: found no UNet or language model. Give the UNet or the pipeline of "
            f"{family_list()}, or a decoder of transformers."
        )
    return found


def _sites(unet: nn.Module) -> tuple[AttentionSite, ...]:
    owner = attached_model(unet)
    sites = find_sites(unet) if owner is None else owner.sites
    if not sites:
        found = why_no_decoder(unet) or "no attention layers that hypernetworks act on"
        raise NoMatchingSitesError(
            f"{type(unet).__name__}: found {found}. Give the UNet of {family_list()}, or a decoder of transformers "
            "with projections such as k_proj and v_proj."
        )
    return sites


def _check_windows(applications: Sequence[Application], *, decoder: bool) -> None:
    for application in applications:
        if application.tokens is not None and not decoder:
            raise ValueError(f"Tokens: found {application.tokens}, and this model samples in steps. Use start and end.")
        if decoder and (application.start > 0 or application.end < 1):
            raise ValueError(
                f"Start and end: found {application.start:g} and {application.end:g}, and a language model has no "
                "sampling steps. Use Application(..., tokens=(first, end))."
            )


def _check_compiled(model: Any) -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    given = model if isinstance(model, nn.Module) else getattr(model, "unet", getattr(model, "model", None))
    modules = list(given.modules()) if isinstance(given, nn.Module) else []
    compiled = any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None for module in modules
    )
    if compiled and version < (2, 5):
        raise HypernetworkError(
            f"{type(given).__name__}: the model is compiled, and code that torch {torch.__version__} compiles ignores "
            "hypernetworks. Use torch 2.5 or newer, or the model without torch.compile."
        )


def _applications(items: Item | Sequence[Item], strength: Strength, start: float, end: float) -> list[Application]:
    if _is_item(items):
        items = [items]  # type: ignore[list-item]
    elif isinstance(items, (Mapping, nn.Module)) or not isinstance(items, Sequence):
        raise TypeError(
            f"Hypernetworks: found {shown(items)}. "
            "Give hypernetworks, paths, (hypernetwork, strength) pairs or Applications."
        )
    if not items:
        raise ValueError("Hypernetworks: found an empty sequence. Give at least one hypernetwork.")
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
    """Return True for one hypernetwork in any form, False for a sequence of them."""
    if isinstance(value, tuple) and len(value) == 2:
        return _is_item(value[0]) and not _is_item(value[1]) and not isinstance(value[0], Application)
    return isinstance(value, (Hypernetwork, Application, str, os.PathLike))


def _loaded(source: Source) -> Hypernetwork:
    if isinstance(source, (str, os.PathLike)):
        from hnloader.loading import load  # only for callers that give paths

        return load(source)
    if not isinstance(source, Hypernetwork):
        raise TypeError(f"Hypernetworks: found {type(source).__name__}. Give a hypernetwork or the path of its file.")
    return source
