"""The hypernetworks that become changes of a model's weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from hnloader.activations import MIXING
from hnloader.attention import Application
from hnloader.attention.matching import check_match
from hnloader.attention.strengths import Strength
from hnloader.conversion.lora.base_model import BaseModel
from hnloader.errors import HypernetworkError, NoMatchingSitesError
from hnloader.families import families_of
from hnloader.formats.reading import files_of
from hnloader.inspection import FileInfo, inspect
from hnloader.loading import load
from hnloader.network import Hypernetwork

__all__ = ["Item", "check_family", "check_mixing", "load_applications"]

Source: TypeAlias = "Hypernetwork | str | os.PathLike[str]"
Item: TypeAlias = "Source | tuple[Source, Strength] | Application"


def load_applications(
    items: Item | Sequence[Item], strength: Strength
) -> tuple[list[Application], list[dict[str, object]], list[Path]]:
    """Return the applications with loaded hypernetworks, the metadata of each, and their files.

    Args:
        items: One hypernetwork or several, as in `hnloader.attach`.
        strength: Strength of those without their own.

    Raises:
        HypernetworkError: A file cannot be loaded, there is none, or one acts in a part of the sampling.
    """
    single = isinstance(items, (Hypernetwork, Application, str, os.PathLike)) or (
        isinstance(items, tuple) and len(items) == 2 and isinstance(items[1], (int, float, dict))
    )
    applications, sources, files = [], [], []
    for item in [items] if single else items:  # type: ignore[union-attr]
        given = item if isinstance(item, Application) else None
        if given is None:
            source, own = item if isinstance(item, tuple) else (item, strength)
            given = Application(source, own)
        if given.windowed:
            raise HypernetworkError("Changed weights act during the whole sampling. Leave out start and end.")
        about: dict[str, object] = {"strength": given.strength}
        found = given.hypernetwork
        if not isinstance(found, Hypernetwork):
            about["sha256"] = inspect(found).sha256
            files += files_of(Path(found))
            found = load(found)
        if given.k != 1 or given.v != 1:
            about |= {"k": given.k, "v": given.v}
        applications.append(replace(given, hypernetwork=found))
        sources.append({"name": found.name, **about})
    if not applications:
        raise HypernetworkError("Found no hypernetwork. Give at least one.")
    return applications, sources, files


def check_family(made: Hypernetwork | FileInfo, base: BaseModel, note: Callable[[str], None]) -> None:
    """Compare the widths of a hypernetwork with those of the model, and note widths that the model lacks.

    Raises:
        NoMatchingSitesError: The hypernetwork is made for another family.
    """
    remark = check_match(made, base.sites)
    if remark is None:
        return
    named = families_of(made.scopes)
    text = {site.width for site in base.sites if site.kind == "cross"}
    wrong = base.family not in named if named and base.family else not text & set(made.widths)
    if wrong:
        raise NoMatchingSitesError(f"{remark} Give a base model of the kind that the file was trained on.")
    note(remark)


def check_mixing(hypernetwork: Hypernetwork) -> None:
    """Raise HypernetworkError if the effect on a context depends on other images of the batch."""
    mixing = next((type(module).__name__ for module in hypernetwork.modules() if isinstance(module, MIXING)), None)
    if mixing is not None:
        raise HypernetworkError(
            f"{hypernetwork.name or 'Hypernetwork'}: its activation {mixing.lower()} mixes all images of a batch, "
            "which a LoRA cannot. Use the hypernetwork itself."
        )
