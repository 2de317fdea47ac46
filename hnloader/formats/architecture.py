"""Verify the architecture of a hypernetwork from the shapes of its tensors and its metadata.

Tensor names carry the index of each module, and modules without tensors (activations, dropouts) leave gaps. So each
architecture implies exact names and shapes. What the metadata states is fixed. For what it omits, the values that
programs of the time meant are tried in order, until an architecture has exactly the names and shapes of the file.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hnloader.activations import canonical_activation
from hnloader.errors import UnsupportedArchitectureError
from hnloader.network import Architecture, LayerSpec, SideName
from hnloader.scopes import Scope
from hnloader.texts import shown

__all__ = ["ARCHITECTURE_KEYS", "SideShapes", "normalize_name", "old_name", "verify"]

Shapes = Mapping[str, tuple[int, ...]]  # of one side, by normalized name

DEFAULT_DROPOUT = 0.3
MAX_LAYERS = 64
MAX_WIDTH = 1 << 20

# Names of the layers in the first files, which later files number.
_OLD_NAMES = {"linear1.": "linear.0.", "linear2.": "linear.1."}
# Numbers as programs write them: without leading zeros or digits of other scripts.
_INDEX = r"(0|[1-9][0-9]{0,3})"
_NAME = re.compile(rf"linear\.{_INDEX}\.(weight|bias|linear\.{_INDEX}\.(weight|bias)|upsample_layer\.weight)")

# The keys that describe the architecture, in the order in which a contradiction is explained.
ARCHITECTURE_KEYS = (
    "activation_func",
    "is_layer_norm",
    "activate_output",
    "dropout_structure",
    "use_dropout",
    "last_layer_dropout",
    "layer_structure",
    "skip_connection",
    "upsample_linear",
)


@dataclass(frozen=True)
class SideShapes:
    """Names and shapes of one side of one scope."""

    scope: Scope
    side: SideName
    shapes: Shapes

    @property
    def width(self) -> int:
        """Width of the contexts."""
        return self.scope.width

    @property
    def where(self) -> str:
        """Name in messages."""
        return f"the {self.side} side of {self.scope.label}"


def normalize_name(name: str) -> str:
    """Return a tensor's name in today's form: `linear.0.weight` for `linear1.weight` of the first files."""
    new = _OLD_NAMES.get(name[:8])
    return name if new is None else new + name[8:]


def old_name(name: str) -> str:
    """Return a tensor's name in the form of the first files."""
    for old, new in _OLD_NAMES.items():
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def verify(sides: list[SideShapes], metadata: Mapping[str, object]) -> Architecture:
    """Return the architecture that explains every tensor of every side.

    Args:
        sides: All sides of the file.
        metadata: Its other keys.

    Raises:
        UnsupportedArchitectureError: No architecture explains them. The message names a key and a shape.
    """
    for side in sides:
        _check_names(side)
    stated = {key: metadata[key] for key in ARCHITECTURE_KEYS if key in metadata}
    for candidate in _candidates(sides, stated):
        if all(_expected(candidate, side.width) == side.shapes for side in sides):
            return candidate
    raise UnsupportedArchitectureError(_contradiction(sides, stated, list(_candidates(sides, stated))))


def _check_names(side: SideShapes) -> None:
    if not 0 < side.width <= MAX_WIDTH:
        raise UnsupportedArchitectureError(
            f"{side.width} is outside the widths of contexts. Use widths such as 320 to 2048."
        )
    if not side.shapes:
        raise UnsupportedArchitectureError(
            f"{_begin(side.where)} is empty. Expected tensors such as 'linear.0.weight'."
        )
    if len(side.shapes) > 4 * MAX_LAYERS:
        raise UnsupportedArchitectureError(
            f"{_begin(side.where)} holds {len(side.shapes)} tensors. Use at most {MAX_LAYERS} layers."
        )
    for name in side.shapes:
        if not _NAME.fullmatch(name):
            raise UnsupportedArchitectureError(
                f"{_begin(side.where)} holds a tensor named {shown(name)}. Expected names such as 'linear.0.weight'."
            )
        if len(side.shapes[name]) > 2:
            raise UnsupportedArchitectureError(
                f"{name} of {side.where} has shape {shown(list(side.shapes[name]))}. Expected at most two dimensions."
            )


@functools.lru_cache(128)  # both sides of a width are alike, and often the files of a folder
def _expected(architecture: Architecture, width: int) -> Shapes:
    """Return names and shapes of the tensors of a side."""
    if architecture.residual is None:
        return _tensors_of(architecture.layers(width), architecture, "linear")
    shapes: dict[str, tuple[int, ...]] = {}
    for index, block in enumerate(architecture.blocks(width)):
        if architecture.residual == "linear":
            shapes[f"linear.{index}.upsample_layer.weight"] = (block[0].outputs, block[0].inputs)
        shapes |= _tensors_of(block, architecture, f"linear.{index}.linear")
    return shapes


def _tensors_of(specs: tuple[LayerSpec, ...], architecture: Architecture, prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, spec in enumerate(specs):
        if spec.kind == "linear":
            shapes[f"{prefix}.{index}.weight"] = (spec.outputs, spec.inputs)
            shapes[f"{prefix}.{index}.bias"] = (spec.outputs,)
        elif spec.kind == "norm":
            shapes[f"{prefix}.{index}.weight"] = (spec.outputs,)
            shapes[f"{prefix}.{index}.bias"] = (spec.outputs,)
        elif spec.kind == "activation" and architecture.activation == "prelu":
            shapes[f"{prefix}.{index}.weight"] = (1,)
    return shapes


# -- candidates: stated values are fixed, missing ones are tried


def _candidates(sides: list[SideShapes], stated: Mapping[str, object]) -> Iterator[Architecture]:
    """Yield architectures in the order of trial: the original programs' defaults first."""
    structure = _layer_structure(sides, stated)
    activation = canonical_activation(stated.get("activation_func"))
    # Files without the key are older than the option, and activate their output.
    outputs = [_flag(stated, "activate_output")] if "activate_output" in stated else [True, False]
    norms = [_flag(stated, "is_layer_norm")] if "is_layer_norm" in stated else [False, True]
    for dropout, norm, output, dropout_first in itertools.product(
        _dropouts(structure, stated), norms, outputs, (False, True)
    ):
        yield Architecture(
            layer_structure=structure,
            activation=activation,
            norm=norm,
            dropout=dropout,
            activate_output=output,
            residual=_residual(stated, sides),
            dropout_before_norm=dropout_first and norm and any(dropout),
        )


def _flag(stated: Mapping[str, object], key: str) -> bool:
    value = stated[key]
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    raise UnsupportedArchitectureError(f"The key {key} is {shown(value)}. Use True or False.")


def _residual(stated: Mapping[str, object], sides: list[SideShapes]) -> Literal["interpolate", "linear"] | None:
    """Return the MonkeyPatch variant, from its keys, or from the names of the tensors if the keys are missing."""
    names = sides[0].shapes
    if "skip_connection" in stated:
        is_residual = _flag(stated, "skip_connection")
    else:
        is_residual = any(".linear." in name for name in names)
    if not is_residual:
        return None
    if "upsample_linear" in stated:
        return "linear" if stated["upsample_linear"] == "Linear" else "interpolate"
    return "linear" if any(".upsample_layer." in name for name in names) else "interpolate"


def _dropouts(structure: tuple[float, ...], stated: Mapping[str, object]) -> list[tuple[float, ...]]:
    """Return the stated dropout rates, or those that programs without dropout_structure meant."""
    count = len(structure)
    if stated.get("dropout_structure") is not None:
        rates = _numbers(stated, "dropout_structure")
        if not all(0 <= rate < 1 for rate in rates):
            raise UnsupportedArchitectureError(
                f"The key dropout_structure is {shown(list(rates))}. Use rates from 0 to below 1."
            )
        return [rates] if len(rates) == count else []
    none = [(0.0,) * count]
    if "use_dropout" in stated and not _flag(stated, "use_dropout"):
        return none
    if "use_dropout" not in stated and "activation_func" not in stated:
        return none  # programs wrote one key with a dropout; otherwise the gap may be an activation
    if "last_layer_dropout" in stated:
        meant = [_derived_dropout(count, last=_flag(stated, "last_layer_dropout"))]
    else:
        everywhere = (0.0, *[DEFAULT_DROPOUT] * (count - 1))
        meant = [_derived_dropout(count, last=False), _derived_dropout(count, last=True), everywhere]
    return meant if "use_dropout" in stated else none + meant


def _derived_dropout(count: int, *, last: bool) -> tuple[float, ...]:
    """Return the rates of use_dropout before dropout_structure: 0.3 inside, before the last layer only if `last`."""
    inside = [DEFAULT_DROPOUT] * (count - 3)
    return (0.0, *inside, DEFAULT_DROPOUT if last else 0.0, 0.0)[:count]


def _layer_structure(sides: list[SideShapes], stated: Mapping[str, object]) -> tuple[float, ...]:
    if stated.get("layer_structure") is None:
        return _structure_from_shapes(sides)
    ratios = _numbers(stated, "layer_structure")
    fits = 2 <= len(ratios) <= MAX_LAYERS + 1 and ratios[0] == ratios[-1] == 1 and all(r > 0 for r in ratios)
    if not fits or any(int(side.width * ratio) > MAX_WIDTH for side in sides for ratio in ratios):
        raise UnsupportedArchitectureError(
            f"The key layer_structure is {shown(list(ratios))}. Use ratios with 1 at both ends, such as [1, 2, 1]."
        )
    return ratios


def _numbers(stated: Mapping[str, object], key: str) -> tuple[float, ...]:
    value = stated[key]
    if isinstance(value, (list, tuple)) and all(type(n) in (int, float) and math.isfinite(n) for n in value):
        return tuple(value)
    raise UnsupportedArchitectureError(f"The key {key} is {shown(value)}. Use a list of numbers.")


def _weights(side: SideShapes) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the main Linear weights, in the order of computation."""
    found = [
        (tuple(int(part) for part in name.split(".") if part.isdigit()), name, shape)
        for name, shape in side.shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and ".upsample_layer." not in name
    ]
    return [(name, shape) for _, name, shape in sorted(found)]


def _structure_from_shapes(sides: list[SideShapes]) -> tuple[float, ...]:
    """Return layer_structure from the layers' sizes: the simplest ratios that give the sizes of all widths."""
    rows = []
    for side in sides:
        weights = _weights(side)
        if not weights:
            raise UnsupportedArchitectureError(
                f"{_begin(side.where)} lacks a Linear weight such as 'linear.0.weight'. Add it."
            )
        sizes = [weights[0][1][1], *(shape[0] for _, shape in weights)]
        if sizes[0] != side.width or sizes[-1] != side.width or 0 in sizes:
            raise UnsupportedArchitectureError(
                _broken_chain(side) or f"{_begin(side.where)} has a layer without values: {_listed(side.shapes)}."
            )
        rows.append((side.width, sizes))
    if len({len(sizes) for _, sizes in rows}) != 1:
        counts = ", ".join(f"{len(sizes) - 1} at {width}" for width, sizes in rows)
        raise UnsupportedArchitectureError(
            f"The sides have different numbers of layers: {counts}. Use the same number."
        )
    positions = range(len(rows[0][1]))
    return tuple(_ratio([(width, sizes[position]) for width, sizes in rows]) for position in positions)


def _ratio(pairs: list[tuple[int, int]]) -> float:
    """Return the number of fewest decimals for which `int(width * number) == size` holds for all pairs."""
    low = max(size / width for width, size in pairs)
    for decimals in range(7):
        candidate = math.ceil(round(low * 10**decimals, 6)) / 10**decimals
        number = int(candidate) if candidate == int(candidate) else candidate
        if all(int(width * number) == size for width, size in pairs):
            return number
    sizes = ", ".join(f"{size} at width {width}" for width, size in pairs)
    raise UnsupportedArchitectureError(f"The sizes of a layer are not a common multiple of the widths: {sizes}.")


# -- explaining a contradiction


def _contradiction(sides: list[SideShapes], stated: Mapping[str, object], candidates: list[Architecture]) -> str:
    """Return why no candidate fits: a broken chain of shapes, a contradicting key, or the first difference."""
    for side in sides:
        broken = _broken_chain(side)
        if broken:
            return broken
    for key in ARCHITECTURE_KEYS:
        if key not in stated:
            continue
        others = {name: value for name, value in stated.items() if name != key}
        explained = _explained(sides, others) or _explained_by_activation(sides, others, key)
        if explained:
            return (
                f"The key {key} is {shown(stated[key], 200)}, but the tensors contradict it. {_begin(sides[0].where)} "
                f"holds {_listed(sides[0].shapes)}, which is {explained}."
            )
    if not candidates:
        return (
            f"The key dropout_structure {shown(stated.get('dropout_structure'))} needs one rate for each number of "
            f"layer_structure {shown(stated.get('layer_structure'))}. {_begin(sides[0].where)} holds "
            f"{_listed(sides[0].shapes)}."
        )
    missing = [name for name, _ in _weights(sides[0]) if name not in _expected(candidates[0], sides[0].width)]
    if missing and "activation_func" not in stated:
        return (
            f"{_begin(sides[0].where)} has modules without tensors between its layers ({_listed(sides[0].shapes)}), "
            "and the key activation_func is missing. Add it."
        )
    return _first_difference(sides, candidates[0])


def _explained(sides: list[SideShapes], stated: Mapping[str, object]) -> str:
    """Return the architecture that the other keys and the tensors agree on, in words; "" for none."""
    try:
        candidates = list(_candidates(sides, stated))
    except UnsupportedArchitectureError:
        return ""
    fitting = (str(c) for c in candidates if all(_expected(c, side.width) == side.shapes for side in sides))
    return next(fitting, "")


def _explained_by_activation(sides: list[SideShapes], stated: Mapping[str, object], key: str) -> str:
    """Do the same if `key` is activation_func, with some activation; "relu" represents all without tensors."""
    if key != "activation_func":
        return ""
    without_tensors = _explained(sides, {**stated, "activation_func": "relu"})
    return without_tensors.replace("relu", "some activation") or _explained(
        sides, {**stated, "activation_func": "prelu"}
    )


def _broken_chain(side: SideShapes) -> str:
    """Return where a layer's output does not fit the next one's input; "" if all fit."""
    expected = side.width
    for name, shape in _weights(side):
        if shape[1] != expected:
            return (
                f"{name} of {side.where} has shape {shown(list(shape))}. Expected [{shape[0]}, {expected}], "
                f"because it receives {expected} values."
            )
        expected = shape[0]
    if expected != side.width:
        return f"{_begin(side.where)} ends with {expected} values. Expected {side.width}."
    return ""


def _first_difference(sides: list[SideShapes], candidate: Architecture) -> str:
    for side in sides:
        expected = _expected(candidate, side.width)
        for name in [*expected, *side.shapes]:
            wanted, found = expected.get(name), side.shapes.get(name)
            if wanted != found:
                have = f"has shape {shown(list(found))}" if found is not None else "is missing"
                want = f"Expected shape {shown(list(wanted))}" if wanted is not None else "It does not belong there"
                return f"{name} of {side.where} {have}. {want} for {candidate}."
    return "The tensors fit none of the known architectures."


def _begin(where: str) -> str:
    return where[0].upper() + where[1:]


def _listed(shapes: Shapes) -> str:
    parts = [f"{name} {shown(list(shape))}" for name, shape in list(shapes.items())[:6]]
    return ", ".join(parts) + (", ..." if len(shapes) > 6 else "")
