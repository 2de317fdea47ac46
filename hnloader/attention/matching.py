"""Compare the scopes of a hypernetwork with the attention sites of a model, and describe differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from hnloader.attention.layout import AttentionSite, family_of_sites, is_decoder
from hnloader.errors import NoMatchingSitesError
from hnloader.families import Family, families_of, family_named, made_for
from hnloader.network import Hypernetwork
from hnloader.scopes import MOST_SITES, Kind, Scope, ScopeLike, as_scope
from hnloader.texts import as_text


class Described(Protocol):
    """A hypernetwork, or the facts about its file."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def scopes(self) -> Sequence[ScopeLike]:
        """The scope of each pair of sides."""


def check_match(hypernetwork: Described, sites: Sequence[AttentionSite]) -> str | None:
    """Compare the scopes of a hypernetwork with a model's attention layers.

    Many files hold some of a model's widths only, often the text width alone. But a width or a layer that the model
    lacks means that the file was made for another model.

    Returns:
        None if the model has every width and numbered layer of the file, else a description with counts.

    Raises:
        NoMatchingSitesError: The file is for none of the model's layers.
    """
    scopes = [as_scope(scope) for scope in hypernetwork.scopes]
    file_widths = sorted({scope.width for scope in scopes})
    model_widths = {site.width for site in sites}
    if not model_widths & set(file_widths):
        raise NoMatchingSitesError(_no_match(hypernetwork, scopes, sites))
    matched = [site for site in sites if any(scope.holds(site.width, site.kind, site.index) for scope in scopes)]
    if not matched:
        raise NoMatchingSitesError(
            f"{_label(hypernetwork)}: the file is for {_scopes_listed(scopes)}, and this model has {_counted(sites)}. "
            "Use a model with such layers."
        )
    unmatched = [width for width in file_widths if width not in model_widths]
    if not unmatched:
        beyond = [scope for scope in scopes if _beyond(scope, sites)]
        if not beyond:
            return None
        return (
            f"{_label(hypernetwork)}: {len(matched)} of {len(sites)} attention layers of this model are in a scope of "
            f"the file. It names layers that the model lacks: {_scopes_listed(beyond)}. The model has "
            f"{_counted(sites)}."
        )
    text = (
        f"{_label(hypernetwork)}: {len(matched)} of {len(sites)} attention layers of this model have a width of "
        f"the file ({_listed(site.width for site in matched)}), but none has {_listed(unmatched)}."
    )
    file, model = _file_family(scopes), _model_family(sites)
    if file == model:
        return f"{text} The model, {model}, has the widths {_listed(model_widths)}."
    return f"{text} It is made for {file}; this model is {model}, with the widths {_listed(model_widths)}."


def scope_at(hypernetwork: Hypernetwork, site: AttentionSite) -> Scope | None:
    """Return the scope of the sides that act at a site; None if it stays unchanged."""
    return hypernetwork.scope_at(site.width, site.kind, site.index)


def _beyond(scope: Scope, sites: Sequence[AttentionSite]) -> bool:
    """Return True if a scope names a layer that the model lacks."""
    held = any(scope.holds(site.width, site.kind, site.index) for site in sites)
    return not held or max(scope.numbers, default=0) >= len(sites)


def _scopes_listed(scopes: Iterable[Scope]) -> str:
    return as_text(", ".join(map(str, scopes)), 200)


def _counted(sites: Sequence[AttentionSite]) -> str:
    """Return the numbers of a model's layers by width and kind."""
    numbers: dict[tuple[int, Kind], list[int]] = {}
    for site in sites[:MOST_SITES]:
        numbers.setdefault((site.width, site.kind), []).append(site.index)
    return _scopes_listed(Scope.of(width, found, kind) for (width, kind), found in numbers.items())


def _no_match(hypernetwork: Described, scopes: Sequence[Scope], sites: Sequence[AttentionSite]) -> str:
    return (
        f"{_label(hypernetwork)}: the file is made for {_file_family(scopes)}; this model is "
        f"{_model_family(sites)}. The file holds the widths {_listed(scope.width for scope in scopes)}, the model's "
        "attention layers have "
        f"{_listed(site.width for site in sites)}. Use a hypernetwork and a model of the same family."
    )


def _label(hypernetwork: Described) -> str:
    return hypernetwork.name or "Hypernetwork"


def _file_family(scopes: Sequence[Scope]) -> str:
    families = list(filter(None, map(family_named, families_of(scopes))))
    if families:
        return " or ".join(map(_named, families))
    return ", ".join(made_for(scopes)) or f"an unknown model ({_listed(scope.width for scope in scopes)})"


def _model_family(sites: Sequence[AttentionSite]) -> str:
    family = family_of_sites(sites)
    if is_decoder(sites):
        return f"a language model of width {_listed(site.width for site in sites)}"
    text = _listed(site.width for site in sites if site.kind == "cross")
    return _named(family) if family else f"of an unknown family (text width {text or 'none'})"


def _named(family: Family) -> str:
    return f"{family.name} ({family.text_width})"


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))
