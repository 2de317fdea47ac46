"""Merge several hypernetworks, or one at a strength, into one file.

A file holds `x + residual(x)` with one residual network. Three kinds of merge fit exactly: chains of affine members (no
activation, no norm); one network at a strength, if its last layer can be scaled; and networks side by side, whose
hidden layers are concatenated. A chain of networks with activations does not fit; `composing` keeps it.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from hnloader.affine import AffineMap
from hnloader.attention.strengths import check_number
from hnloader.conversion.preparing import dtype_name
from hnloader.errors import (
    HypernetworkError,
    NotMergeableError,
)
from hnloader.files import sha256_of
from hnloader.formats.composition import Composed, Unchanged
from hnloader.formats.contents import build_side
from hnloader.loading import load
from hnloader.network import SIDES, Architecture, Hypernetwork, SequentialSide, Side, SideName, linear_layers
from hnloader.scopes import Scope, refined
from hnloader.texts import shown

__all__ = ["EXACT", "MODES", "Merged", "Mode", "Part", "checked_mode", "merge"]

Mode = Literal["chain", "side-by-side", "average"]
MODES: tuple[Mode, ...] = ("chain", "side-by-side", "average")

# f(s x) = s f(x) for s >= 0: a factor passes through them.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
# They mix the values of a layer, so networks side by side would affect each other.
_MIXING = ("softmax", "softmin", "logsoftmax", "softmax2d", "prelu")
_ROWS = 16
# Largest error of an exact merge, relative to the largest output: float32 rounds at 6e-8.
EXACT = 1e-5


@dataclass(frozen=True)
class Part:
    """One hypernetwork of a merge.

    Attributes:
        hypernetwork: The loaded hypernetwork.
        k: Strength for keys, any real number. Default: 1.
        v: Strength for values, any real number. Default: 1.
        sha256: sha256 of its file in hex. Default: empty.
        path: Its file. Default: None.
    """

    hypernetwork: Hypernetwork
    k: float = 1.0
    v: float = 1.0
    sha256: str = ""
    path: Path | None = None

    def strength(self, side: SideName) -> float:
        """Return the strength for keys or values."""
        return self.k if side == "k" else self.v


@dataclass(frozen=True)
class Merged:
    """The result of `hnloader.merge`.

    Attributes:
        hypernetwork: The merged hypernetwork.
        exact: It gives the outputs of its parts, up to rounding (`EXACT`). False for averaged weights.
        how: A description of the merge.
        error: Largest difference from the parts on random inputs, relative to the largest output.

    Example:
        >>> import hnloader.demo
        >>> outline = hnloader.demo.hypernetwork_paths()["outline"]
        >>> hnloader.merge([(outline, 0.5)]).how
        'affine networks make one matrix and bias per side'
    """

    hypernetwork: Hypernetwork
    exact: bool
    how: str
    error: float


Source: TypeAlias = "Part | Hypernetwork | str | os.PathLike[str]"
Item: TypeAlias = "Source | tuple[Source, float]"


def merge(
    items: Iterable[Item],
    *,
    mode: Mode = "chain",
    name: str = "merged",
    dtype: str = "float32",
    folders: Iterable[str | os.PathLike[str]] = (),
) -> Merged:
    """Merge several hypernetworks, or one at a strength, into one.

    Args:
        items: Files or hypernetworks, or pairs of these and a strength. Default strength: 1.
        mode: "chain" applies one after the other, as tags in a prompt do. "side-by-side" applies all to the same
            input: `x + sum(s_i residual_i(x))`. "average" averages the weights of files of one architecture; the
            strengths are their shares. Default: "chain".
        name: Name of the result. Default: "merged".
        dtype: Type of the result, float32, float16 or bfloat16. The merge is computed in float64. Default: "float32".
        folders: Folders with the members of `.hns` files, besides their own. Default: none.

    Returns:
        The merged hypernetwork and its error.

    Raises:
        NotMergeableError: One file cannot hold the result.
        HypernetworkError: A file cannot be loaded, `items` is empty, or the mode or dtype is unknown.

    Example:
        >>> import hnloader.demo
        >>> outline = hnloader.demo.hypernetwork_paths()["outline"]
        >>> made = hnloader.merge([(outline, 0.8), (outline, 0.3)])
        >>> made.exact, made.hypernetwork.name
        (True, 'merged')
    """
    parts = [_part(item, tuple(folders)) for item in items]
    if not parts:
        raise HypernetworkError("Found nothing to merge. Give at least one hypernetwork.")
    mode = checked_mode(mode)
    dtype = dtype_name(dtype) or "float32"
    if mode == "average":
        sides, architecture, how, exact = _average(parts)
    else:
        sides, architecture, how = _combine(parts, mode)
        exact = True
    made = _build(sides, architecture, name, dtype, parts, mode, exact)
    error = _error(made, parts, mode)
    if exact and dtype == "float32" and not error < EXACT:
        raise NotMergeableError(f"The result differs from its parts by {error:.1e}. This is a bug: please report it.")
    return Merged(made, exact, how, error)


def checked_mode(mode: str) -> Mode:
    """Return `mode`. Raises HypernetworkError for an unknown mode."""
    if mode in MODES:
        return mode
    near = difflib.get_close_matches(mode, MODES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise HypernetworkError(f"Found the mode {mode!r}. Give one of {', '.join(MODES)}.{hint}")


def _part(item: Item, folders: tuple[str | os.PathLike[str], ...]) -> Part:
    source, strength = item if isinstance(item, tuple) else (item, None)
    if isinstance(source, Part):
        return source if strength is None else replace(source, k=strength, v=strength)
    number = 1.0 if strength is None else check_number(strength, "a strength")
    if isinstance(source, Hypernetwork):
        return Part(source, number, number)
    path = Path(source)
    loaded = load(path, folders)
    return Part(loaded, number, number, sha256_of(path), path)


# -- the parts together: tensors per side, and the architecture of all sides

_Tensors: TypeAlias = "dict[tuple[Scope, SideName], dict[str, Tensor]]"


def _scopes(parts: Sequence[Part]) -> dict[Scope, tuple[Scope | None, ...]]:
    """Return the scopes of the result, each with the scope of every part that contains it."""
    try:
        return refined([part.hypernetwork.scopes for part in parts])
    except ValueError as error:
        raise NotMergeableError(str(error)) from error


def _sides_of(parts: Sequence[Part]) -> dict[tuple[Scope, SideName], list[Side]]:
    """Return the sides of the parts by scope and side of the result."""
    return {
        (scope, side): [
            Unchanged(scope.width) if within is None else part.hypernetwork.side(within, side)
            for part, within in zip(parts, held, strict=True)
        ]
        for scope, held in _scopes(parts).items()
        for side in SIDES
    }


def _combine(parts: Sequence[Part], mode: Mode) -> tuple[_Tensors, Architecture, str]:
    affine = _compose(parts, mode)
    if affine is not None:
        return affine
    branches = {key: _branches_of(parts, sides, key[1], mode) for key, sides in _sides_of(parts).items()}
    if any(found is None for found in branches.values()):
        names = ", ".join(part.hypernetwork.name or "Hypernetwork" for part in parts)
        raise NotMergeableError(
            f"{names}: one file cannot hold a chain of networks with activations or norms. Write a .hns file, or merge "
            "them side by side, which gives other images."
        )
    return _from_branches({key: found or [] for key, found in branches.items()})


def _compose(parts: Sequence[Part], mode: Mode) -> tuple[_Tensors, Architecture, str] | None:
    """Compose or add all maps, as one matrix per side; return None if a part is not affine."""
    tensors: _Tensors = {}
    for (scope, side), sides in _sides_of(parts).items():
        identity = AffineMap.identity(scope.width, torch.float64)
        chained, added = identity, AffineMap.zero(scope.width, torch.float64)
        for part, own in zip(parts, sides, strict=True):
            found = own.affine_map()
            if found is None:
                return None
            scaled = found.scaled(part.strength(side))
            chained, added = chained.then(identity + scaled), added + scaled
        residual = chained - identity if mode == "chain" else added
        tensors[scope, side] = {"linear.0.weight": residual.matrix, "linear.0.bias": residual.bias}
    how = "affine networks make one matrix and bias per side"
    return tensors, Architecture((1, 1), dropout=(0, 0)), how


@dataclass(frozen=True)
class _Branch:
    """A network whose output times `factor` is added to the context."""

    side: SequentialSide
    architecture: Architecture
    factor: float


def _branches_of(parts: Sequence[Part], sides: Sequence[Side], side: SideName, mode: Mode) -> list[_Branch] | None:
    found = (
        _branches(own, part.hypernetwork.architecture, part.strength(side))
        for part, own in zip(parts, sides, strict=True)
    )
    return _join(found, chained=mode != "side-by-side")


def _branches(side: Side, architecture: Architecture | None, factor: float) -> list[_Branch] | None:
    """Return `x + factor * residual(x)` as a sum of networks on x, or None if it is something else."""
    if isinstance(side, Unchanged) or factor == 0:
        return []
    if isinstance(side, SequentialSide):
        return [_Branch(side, architecture or _architecture_of(side), factor)]
    if not isinstance(side, Composed):
        return None
    weights = side.weights or (1.0,) * len(side.strengths)
    found = (
        _branches(cast("Side", member), None, factor * strength * weight)
        for member, strength, weight in zip(side.members, side.strengths, weights, strict=True)
    )
    return _join(found, chained=side.weights is None)


def _join(members: Iterable[list[_Branch] | None], *, chained: bool) -> list[_Branch] | None:
    """Join the branches of members; None if a member has none, or if several members of a chain act."""
    joined: list[_Branch] = []
    acting = 0
    for branches in members:
        if branches is None:
            return None
        acting += bool(branches)
        joined += branches
    return joined if not chained or acting <= 1 else None


def _architecture_of(side: SequentialSide) -> Architecture:
    """Return the architecture that the modules of a member show."""
    modules = [module for module in side.linear if not isinstance(module, nn.Dropout)]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    width = linears[0].in_features
    acts = [module for module in modules if not isinstance(module, (nn.Linear, nn.LayerNorm))]
    norm = any(isinstance(module, nn.LayerNorm) for module in modules)
    activation = type(acts[0]).__name__.lower() if acts else None
    ratios = (1, *(linear.out_features / width for linear in linears))
    return Architecture(tuple(ratios), activation, norm, (0,) * len(ratios), len(acts) == len(linears))


# -- one network at a strength, or several side by side


def _from_branches(branches: dict[tuple[Scope, SideName], list[_Branch]]) -> tuple[_Tensors, Architecture, str]:
    most = max(branches.values(), key=len)
    if not most:
        raise NotMergeableError("Every strength is 0: the result would change nothing. Give another strength.")
    if len(most) == 1:
        return _with_strength(branches, most[0].architecture)
    kinds = {_kind(branch.architecture) for branch in most}
    first = most[0].architecture
    if len(kinds) > 1 or first.norm or first.activate_output or (first.activation or "") in _MIXING:
        raise NotMergeableError(
            "Networks side by side need the same activation and number of layers, without norm and activated "
            "output. Found: " + "; ".join(dict.fromkeys(str(b.architecture) for b in most)) + "."
        )
    inner = [sum(ratios) for ratios in zip(*(b.architecture.layer_structure[1:-1] for b in most), strict=True)]
    together = replace(first, layer_structure=(1, *inner, 1), dropout=(0,) * (len(inner) + 2))
    tensors: _Tensors = {}
    for (scope, side), found in branches.items():
        if len(found) != len(most):
            raise NotMergeableError(
                f"{_titled(scope)}: a file lacks it, so the {side} sides would differ. Leave that file out."
            )
        tensors[scope, side] = _side_by_side(found, together, scope)
    return tensors, together, f"{len(most)} networks side by side: their hidden layers make one wider layer"


def _kind(architecture: Architecture) -> tuple[object, ...]:
    return (
        architecture.activation,
        architecture.norm,
        architecture.activate_output,
        len(architecture.layer_structure),
    )


def _titled(scope: Scope) -> str:
    return scope.label[0].upper() + scope.label[1:]


def _side_by_side(found: list[_Branch], together: Architecture, scope: Scope) -> dict[str, Tensor]:
    width = scope.width
    layers = [linear_layers(branch.side) for branch in found]
    last = len(layers[0]) - 1
    names = [index for index, spec in enumerate(together.layers(width)) if spec.kind == "linear"]
    tensors: dict[str, Tensor] = {}
    for place, index in enumerate(names):
        weights = [linears[place].weight.detach().double() for linears in layers]
        biases = [_bias(linears[place]) for linears in layers]
        if place == last:
            factors = [branch.factor for branch in found]
            weight = torch.cat([w * f for w, f in zip(weights, factors, strict=True)], dim=1)
            bias = sum((b * f for b, f in zip(biases, factors, strict=True)), torch.zeros(width, dtype=torch.float64))
        else:
            weight = torch.cat(weights) if place == 0 else torch.block_diag(*weights)
            bias = torch.cat(biases)
        tensors[f"linear.{index}.weight"], tensors[f"linear.{index}.bias"] = weight, bias
    if any(tensors[f"linear.{names[i]}.weight"].shape[0] != together.sizes(width)[i + 1] for i in range(last)):
        raise NotMergeableError(
            f"{_titled(scope)}: layer_structure cannot state the sizes of its hidden layers. Merge other files."
        )
    return tensors


def _bias(linear: nn.Linear) -> Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features, dtype=torch.float64)
    return linear.bias.detach().double()


def _with_strength(
    branches: dict[tuple[Scope, SideName], list[_Branch]], architecture: Architecture
) -> tuple[_Tensors, Architecture, str]:
    tensors: _Tensors = {}
    for (scope, side), found in branches.items():
        if found:
            tensors[scope, side] = _scaled(found[0])
        else:  # an unchanged side: a network whose output is zero
            tensors[scope, side] = _scaled(replace(_other_side(branches, scope), factor=0.0))
    padded = (*architecture.dropout, *(0,) * (len(architecture.layer_structure) - len(architecture.dropout)))
    return tensors, replace(architecture, dropout=padded), "the strength is in the last layer"


def _other_side(branches: dict[tuple[Scope, SideName], list[_Branch]], scope: Scope) -> _Branch:
    found = [each for side in SIDES for each in branches[scope, side]]
    if not found:
        raise NotMergeableError(f"{_titled(scope)}: no file changes it at these strengths. Leave it out.")
    return found[0]


def _scaled(branch: _Branch) -> dict[str, Tensor]:
    """Return the tensors with the factor in the last module that has a scale."""
    tensors = {name: tensor.detach().double() for name, tensor in branch.side.state_dict().items()}
    if branch.factor == 1:
        return tensors
    modules = list(branch.side.linear)
    for index in range(len(modules) - 1, -1, -1):
        module = modules[index]
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            for leaf in ("weight", "bias"):
                if f"linear.{index}.{leaf}" in tensors:
                    tensors[f"linear.{index}.{leaf}"] *= branch.factor
            return tensors
        if isinstance(module, nn.Dropout) or (isinstance(module, _HOMOGENEOUS) and branch.factor >= 0):
            continue
        raise NotMergeableError(
            f"Strength {branch.factor:g}: it cannot pass through the {type(module).__name__} at the output. Apply the "
            "file at that strength, or write a .hns file with it."
        )
    raise AssertionError("Every side has a Linear.")


# -- averages


def _average(parts: Sequence[Part]) -> tuple[_Tensors, Architecture, str, bool]:
    first = parts[0].hypernetwork
    for part in parts:
        other = part.hypernetwork
        if other.architecture is None or not _same_architecture(other, first):
            raise NotMergeableError(
                f"{other.name or 'Hypernetwork'}: found {other.architecture} for {_listed(other)}, but "
                f"{first.name or 'the first one'} has {first.architecture} for {_listed(first)}. Average files of "
                "one architecture."
            )
    assert first.architecture is not None
    tensors: _Tensors = {}
    for scope, side in itertools.product(first.scopes, SIDES):
        shares = [part.strength(side) for part in parts]
        total = sum(shares)
        if total == 0:
            raise NotMergeableError("The strengths add up to 0. Give shares such as 1 and 1, or 0.7 and 0.3.")
        states = [part.hypernetwork.side(scope, side).state_dict() for part in parts]
        pairs = list(zip(states, shares, strict=True))
        tensors[scope, side] = {
            name: sum((s[name].double() * (share / total) for s, share in pairs), torch.zeros((), dtype=torch.float64))
            for name in states[0]
        }
    # Averaging weights averages outputs only with one matrix per side.
    exact = first.architecture.affine and len(first.architecture.layer_structure) == 2
    how = "the weights are averaged" + ("" if exact else ", which does not average the outputs")
    return tensors, first.architecture, how, exact


def _listed(hypernetwork: Hypernetwork) -> str:
    return shown(", ".join(map(str, hypernetwork.scopes)), 300)


def _same_architecture(one: Hypernetwork, two: Hypernetwork) -> bool:
    """Return True for the same architecture and scopes. Without an activation, `activate_output` is ignored."""
    built = [
        replace(
            each.architecture, activate_output=each.architecture.activate_output and bool(each.architecture.activation)
        )
        for each in (one, two)
        if each.architecture is not None
    ]
    return len(built) == 2 and built[0] == built[1] and one.scopes == two.scopes


# -- the result


def _build(
    sides: _Tensors,
    architecture: Architecture,
    name: str,
    dtype: str,
    parts: Sequence[Part],
    mode: Mode,
    exact: bool,
) -> Hypernetwork:
    kind: torch.dtype = getattr(torch, dtype)
    built: dict[Scope, tuple[Side, Side]] = {}
    for scope in dict.fromkeys(scope for scope, _ in sides):
        k, v = (
            build_side(architecture, scope.width, {n: t.to(kind).contiguous() for n, t in sides[scope, side].items()})
            for side in SIDES
        )
        built[scope] = (k, v)
    bad = [name for tensors in sides.values() for name, t in tensors.items() if not torch.isfinite(t.to(kind)).all()]
    if bad:
        raise NotMergeableError(f"{bad[0]}: values are too large for {dtype}. Use bfloat16 or float32.")
    origin = [{"name": part.hypernetwork.name, "k": part.k, "v": part.v, "sha256": part.sha256} for part in parts]
    metadata: dict[str, object] = {
        "step": 0,
        "name": name,
        "sd_checkpoint": _common(parts, "sd_checkpoint"),
        "sd_checkpoint_name": _common(parts, "sd_checkpoint_name"),
        **architecture.to_metadata(),
        "weight_initialization": "Normal",
        "optional_info": None,
        "merged_from": json.dumps({"mode": mode, "exact": exact, "parts": origin}),
    }
    return Hypernetwork(built, name=name, architecture=architecture, metadata=metadata, variant="merged by hnloader")


def _common(parts: Sequence[Part], key: str) -> object:
    values = {shown(part.hypernetwork.metadata.get(key), 1000) for part in parts}
    return parts[0].hypernetwork.metadata.get(key) if len(values) == 1 else None


def _error(made: Hypernetwork, parts: Sequence[Part], mode: Mode) -> float:
    """Return the largest difference from the parts on random inputs, relative to the largest output."""
    worst = 0.0
    for (scope, side), sides in _sides_of(parts).items():
        generator = torch.Generator().manual_seed(scope.width)
        x = torch.randn(1, _ROWS, scope.width, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            found, wanted = made.transform(side, x, scope=scope), _expected(parts, sides, mode, side, x)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)))
    return worst


def _expected(parts: Sequence[Part], sides: Sequence[Side], mode: Mode, side: SideName, x: Tensor) -> Tensor:
    wide = [copy.deepcopy(own).double() for own in sides]
    if mode == "chain":
        for part, own in zip(parts, wide, strict=True):
            x = own(x, part.strength(side))
        return x
    total = sum(part.strength(side) for part in parts)
    shares = [part.strength(side) / (total if mode == "average" else 1) for part in parts]
    changes = [own(x) - x for own in wide]
    return x + sum((change * share for change, share in zip(changes, shares, strict=True)), torch.zeros_like(x))
