"""Compare the widths of a hypernetwork with those of a model, and describe differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hnloader.attention.layout import AttentionSite, family_of_sites
from hnloader.errors import NoMatchingSitesError
from hnloader.families import Family, families_of, family_named
from hnloader.network import Hypernetwork


def check_match(hypernetwork: Hypernetwork, sites: Sequence[AttentionSite]) -> str | None:
    """Compare the widths of a hypernetwork with those of a model's attention layers.

    Many files hold some of a model's widths only, often the text width alone. But a width that the model lacks means
    that the file was made for another model.

    Returns:
        None if the model has every width of the file, else a description with counts.

    Raises:
        NoMatchingSitesError: The model has none of the widths.
    """
    file_widths = sorted(hypernetwork.widths)
    model_widths = {site.width for site in sites}
    if not model_widths & set(file_widths):
        raise NoMatchingSitesError(_no_match(hypernetwork, file_widths, sites))
    unmatched = [width for width in file_widths if width not in model_widths]
    if not unmatched:
        return None
    matched = [site for site in sites if site.width in file_widths]
    return (
        f"{_label(hypernetwork)}: {len(matched)} of {len(sites)} attention layers of this model have a width of "
        f"the file ({_listed(site.width for site in matched)}), but none has {_listed(unmatched)}. It is "
        f"made for {_file_family(file_widths)}; this model is {_model_family(sites)}, with the widths "
        f"{_listed(model_widths)}."
    )


def _no_match(hypernetwork: Hypernetwork, file_widths: list[int], sites: Sequence[AttentionSite]) -> str:
    return (
        f"{_label(hypernetwork)}: the file is made for {_file_family(file_widths)}; this model is "
        f"{_model_family(sites)}. The file holds the widths {_listed(file_widths)}, the model's attention layers have "
        f"{_listed(site.width for site in sites)}. Use a hypernetwork and a model of the same family."
    )


def _label(hypernetwork: Hypernetwork) -> str:
    return hypernetwork.name or "Hypernetwork"


def _file_family(widths: Sequence[int]) -> str:
    families = list(filter(None, map(family_named, families_of(widths))))
    return " or ".join(map(_named, families)) or f"an unknown model ({_listed(widths)})"


def _model_family(sites: Sequence[AttentionSite]) -> str:
    family = family_of_sites(sites)
    text = _listed(site.width for site in sites if site.kind == "cross")
    return _named(family) if family else f"of an unknown family (text width {text or 'none'})"


def _named(family: Family) -> str:
    return f"{family.name} ({family.text_width})"


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(widths))))
