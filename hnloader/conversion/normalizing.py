"""Old variants in today's form: the same outputs, in the names, keys and order that current webuis know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hnloader.formats.contents import Contents
from hnloader.formats.outgoing import Lazy, Outgoing
from hnloader.network import Architecture, LayerSpec, SideName

# Keys that every file of today has, with what they mean where an old file lacks them.
_DEFAULTS: dict[str, object] = {
    "step": 0,
    "weight_initialization": "Normal",
    "sd_checkpoint": None,
    "sd_checkpoint_name": None,
    "optional_info": None,
}


def normalized(outgoing: Outgoing, contents: Contents) -> Outgoing:
    """The hypernetwork in the form of A1111's webui from 2022-11 on.

    Tensors keep their values and dtypes, and are renamed where the order of modules was another. Keys that the
    file has stay; the architecture is stated in full.

    Args:
        outgoing: what `contents` hold.
        contents: the file, with its architecture.
    """
    old = contents.architecture
    new = replace(old, dropout_before_norm=False, dropout=_rates(old))
    sides = {
        (width, side): _renamed(tensors, old, new, width)
        for (width, side), tensors in _normally_named(outgoing, contents).items()
    }
    stated = {"name": outgoing.name, **_DEFAULTS, **outgoing.metadata, **new.to_metadata()}
    stated.pop("skip_connection", None)
    stated.pop("upsample_linear", None)
    return replace(outgoing, sides=sides, metadata=stated)


def why_not(architecture: Architecture) -> str | None:
    """Why a file of this architecture keeps its form; None when it can be normalized."""
    if architecture.residual is not None:
        return "the residual variant of the MonkeyPatch extension has no other form; it is kept as it is"
    return None


def _rates(architecture: Architecture) -> tuple[float, ...]:
    missing = len(architecture.layer_structure) - len(architecture.dropout)
    return (*architecture.dropout, *(0,) * missing)


def _normally_named(outgoing: Outgoing, contents: Contents) -> dict[tuple[int, SideName], dict[str, Lazy]]:
    """The tensors by the names that `Contents` gives them (`linear.0`, never `linear1`)."""
    return {
        key: dict(zip(contents.sides[key], tensors.values(), strict=True)) for key, tensors in outgoing.sides.items()
    }


def _renamed(tensors: Mapping[str, Lazy], old: Architecture, new: Architecture, width: int) -> dict[str, Lazy]:
    """Linear stays the n-th Linear, norm the n-th norm, activation the n-th activation; their indices may move."""
    places = _places(new.layers(width))
    moved = {index: places[kind] for kind, index in _places(old.layers(width)).items()}
    renamed: dict[str, Lazy] = {}
    for name, tensor in tensors.items():
        _, index, leaf = name.split(".")
        renamed[f"linear.{moved[int(index)]}.{leaf}"] = tensor
    return dict(sorted(renamed.items(), key=lambda item: int(item[0].split(".")[1])))


def _places(layers: tuple[LayerSpec, ...]) -> dict[tuple[str, int], int]:
    """(kind, how many of that kind came before) -> index of the module."""
    counts: dict[str, int] = {}
    places: dict[tuple[str, int], int] = {}
    for index, layer in enumerate(layers):
        number = counts.get(layer.kind, 0)
        counts[layer.kind] = number + 1
        places[layer.kind, number] = index
    return places
