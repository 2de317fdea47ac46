"""Rewrite old variants in the current form: the same outputs, with the names, keys and order of current webuis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Lazy, Outgoing
from hnloader.network import Architecture, LayerSpec, SideName
from hnloader.scopes import Scope

__all__ = ["normalized", "why_not"]

# Keys of every current file, with their values for an old file that lacks them.
_DEFAULTS: dict[str, object] = {
    "step": 0,
    "weight_initialization": "Normal",
    "sd_checkpoint": None,
    "sd_checkpoint_name": None,
    "optional_info": None,
}


def normalized(outgoing: Outgoing, contents: Contents) -> Outgoing:
    """Return the content in the form of A1111's webui from 2022-11 on.

    Tensors keep their values and dtypes, and get new names if the order of modules differs. Existing keys stay; the
    architecture is stated in full.

    Args:
        outgoing: The content of the file.
        contents: The file, with its architecture.
    """
    old = contents.architecture
    new = replace(old, dropout_before_norm=False, dropout=_rates(old))
    sides = {
        (scope, side): _renamed(tensors, old, new, scope.width)
        for (scope, side), tensors in _normally_named(outgoing, contents).items()
    }
    stated = {"name": outgoing.name, **_DEFAULTS, **outgoing.metadata, **new.to_metadata()}
    stated.pop("skip_connection", None)
    stated.pop("upsample_linear", None)
    return replace(outgoing, sides=sides, metadata=stated)


def why_not(architecture: Architecture) -> str | None:
    """Return the reason to keep the form of a file; None if it can be normalized."""
    if architecture.residual is not None:
        return "the residual variant of the MonkeyPatch extension has no other form"
    return None


def _rates(architecture: Architecture) -> tuple[float, ...]:
    missing = len(architecture.layer_structure) - len(architecture.dropout)
    return (*architecture.dropout, *(0,) * missing)


def _normally_named(outgoing: Outgoing, contents: Contents) -> dict[tuple[Scope, SideName], dict[str, Lazy]]:
    """Return the tensors by the names of `Contents` (`linear.0`, never `linear1`)."""
    return {
        key: dict(zip(contents.sides[key], tensors.values(), strict=True)) for key, tensors in outgoing.sides.items()
    }


def _renamed(tensors: Mapping[str, Lazy], old: Architecture, new: Architecture, width: int) -> dict[str, Lazy]:
    """Rename tensors so that the n-th Linear stays the n-th Linear, and the n-th norm the n-th norm."""
    places = _places(new.layers(width))
    moved = {index: places[kind] for kind, index in _places(old.layers(width)).items()}
    renamed: dict[str, Lazy] = {}
    for name, tensor in tensors.items():
        _, index, leaf = name.split(".")
        renamed[f"linear.{moved[int(index)]}.{leaf}"] = tensor
    return dict(sorted(renamed.items(), key=lambda item: int(item[0].split(".")[1])))


def _places(layers: tuple[LayerSpec, ...]) -> dict[tuple[str, int], int]:
    """Return the index of each module by its kind and its number within that kind."""
    counts: dict[str, int] = {}
    places: dict[tuple[str, int], int] = {}
    for index, layer in enumerate(layers):
        number = counts.get(layer.kind, 0)
        counts[layer.kind] = number + 1
        places[layer.kind, number] = index
    return places
