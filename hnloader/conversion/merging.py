"""Several hypernetworks, or one at a strength, as one that stands alone.

What one file can hold is `x + residual(x)` with one residual network. Exactly as one file go: chains whose members
are affine (no activation, no norm); one network at a strength, where its last layer can be scaled; and networks side
by side, whose hidden layers are put beside each other. A chain of networks with activations is no such residual:
it stays a composition (`.hns`).
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from hnloader.affine import AffineMap
from hnloader.attention.strengths import check_number
from hnloader.conversion.planning import folded
from hnloader.errors import (
    HypernetworkError,
    HypernetworkNotFoundError,
    NotMergeableError,
    UnsupportedArchitectureError,
)
from hnloader.files import same_file, sha256_of
from hnloader.formats.composition import Composed, Unchanged
from hnloader.formats.contents import build_side
from hnloader.formats.hns import chain_text, is_member_name
from hnloader.formats.reading import MAX_NESTED_COMPOSITIONS, member_library, read_composition
from hnloader.formats.registry import suffixes
from hnloader.formats.source import open_source
from hnloader.library import Library, LibraryFile
from hnloader.loading import load
from hnloader.network import SIDES, Architecture, Hypernetwork, SequentialSide, Side, SideName
from hnloader.texts import shown

Mode = Literal["chain", "side-by-side", "average"]
MODES: tuple[Mode, ...] = ("chain", "side-by-side", "average")
_DTYPES = ("float32", "float16", "bfloat16")

# f(s x) = s f(x) for s >= 0: a factor can pass through them.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
# They mix the values of a layer, so networks beside each other would see each other's.
_MIXING = ("softmax", "softmin", "logsoftmax", "softmax2d", "prelu")
_ROWS = 16
# Largest error, relative to the largest output, of what is called exact: float32 rounds at 6e-8.
EXACT = 1e-5


@dataclass(frozen=True)
class Part:
    """One hypernetwork of a merge.

    Attributes:
        hypernetwork: loaded.
        k, v: strengths for keys and values; any real numbers.
        sha256: of its file in hex, empty where it did not come from one.
        path: its file, None where it did not come from one.
    """

    hypernetwork: Hypernetwork
    k: float = 1.0
    v: float = 1.0
    sha256: str = ""
    path: Path | None = None

    def strength(self, side: SideName) -> float:
        """For keys or for values."""
        return self.k if side == "k" else self.v


@dataclass(frozen=True)
class Merged:
    """What came out.

    Attributes:
        hypernetwork: it stands alone.
        exact: it gives what its parts give, up to rounding (`EXACT`). False: its weights are an average.
        how: in a sentence.
        error: largest difference from the parts on random inputs, relative to the largest output; measured.
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
    """Make one hypernetwork of several, or of one at a strength.

    Args:
        items: files or hypernetworks, or pairs of these and their strength (1 without one).
        mode: "chain": one after the other, as tags in a prompt; a single one gets its strength baked in.
            "side-by-side": all on the same input, the strengths being weights: `x + sum(s_i residual_i(x))`.
            "average": the weights of files of one architecture are averaged, the strengths being their shares.
        name: of the result.
        dtype: of the result: float32, float16 or bfloat16. It is computed in float64.
        folders: where the members of `.hns` files are looked for, besides their own folder.

    Raises:
        NotMergeableError: one file cannot hold the result.
        HypernetworkError: a file cannot be loaded, there is nothing to merge, or no such mode or dtype.
    """
    parts = [_part(item, tuple(folders)) for item in items]
    if not parts:
        raise HypernetworkError("there is nothing to merge: name at least one hypernetwork")
    mode = checked_mode(mode)
    if dtype not in _DTYPES:
        raise HypernetworkError(f"there is no dtype {dtype!r}; {', '.join(_DTYPES)} were expected")
    if mode == "average":
        sides, architecture, how, exact = _averaged(parts)
    else:
        sides, architecture, how = _combined(parts, mode)
        exact = True
    made = _built(sides, architecture, name, dtype, parts, mode, exact)
    error = _error(made, parts, mode)
    if exact and dtype == "float32" and not error < EXACT:
        raise NotMergeableError(f"the result differs from its parts by {error:.1e}; please report this as a bug")
    return Merged(made, exact, how, error)


def checked_mode(mode: str) -> Mode:
    """`mode` itself; raises HypernetworkError when there is none of this name."""
    for each in MODES:
        if each == mode:
            return each
    near = difflib.get_close_matches(mode, MODES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise HypernetworkError(f"there is no mode {mode!r}; {', '.join(MODES)} were expected.{hint}")


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


# -- what the parts are together: tensors per side, and the architecture that all sides share

_Tensors: TypeAlias = "dict[tuple[int, SideName], dict[str, Tensor]]"


def _widths(parts: Sequence[Part]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(width for part in parts for width in part.hypernetwork.widths))


def _keys(parts: Sequence[Part]) -> list[tuple[int, SideName]]:
    return [(width, side) for width in _widths(parts) for side in SIDES]


def _side_of(part: Part, width: int, side: SideName) -> Side:
    held = width in part.hypernetwork.widths
    return part.hypernetwork.side(width, side) if held else Unchanged(width)


def _combined(parts: Sequence[Part], mode: Mode) -> tuple[_Tensors, Architecture, str]:
    affine = _affine(parts, mode)
    if affine is not None:
        return affine
    branches = {(width, side): _branches_of(parts, width, side, mode) for width, side in _keys(parts)}
    if any(found is None for found in branches.values()):
        names = ", ".join(part.hypernetwork.name or "one of them" for part in parts)
        raise NotMergeableError(
            f"{names} one after the other cannot be one file: a network with activations or norms that is fed by "
            "another is no single residual network. Keep the composition (a .hns file), or put them side by side, "
            "which gives other images"
        )
    return _widened({key: found or [] for key, found in branches.items()})


def _affine(parts: Sequence[Part], mode: Mode) -> tuple[_Tensors, Architecture, str] | None:
    """All maps composed, or added up, as one matrix per side; None when a part is not affine."""
    tensors: _Tensors = {}
    for width, side in _keys(parts):
        identity = AffineMap.identity(width, torch.float64)
        chained, added = identity, AffineMap.zero(width, torch.float64)
        for part in parts:
            found = _side_of(part, width, side).affine_map()
            if found is None:
                return None
            scaled = found.scaled(part.strength(side))
            chained, added = chained.then(identity + scaled), added + scaled
        residual = chained - identity if mode == "chain" else added
        tensors[width, side] = {"linear.0.weight": residual.matrix, "linear.0.bias": residual.bias}
    how = "affine networks make one matrix and bias per side"
    return tensors, Architecture((1, 1), dropout=(0, 0)), how


@dataclass(frozen=True)
class _Branch:
    """A network whose output, times `factor`, is added to the context."""

    side: SequentialSide
    architecture: Architecture
    factor: float


def _branches_of(parts: Sequence[Part], width: int, side: SideName, mode: Mode) -> list[_Branch] | None:
    found: list[_Branch] = []
    acting = 0
    for part in parts:
        strength = part.strength(side)
        more = _branches(_side_of(part, width, side), part.hypernetwork.architecture, strength)
        if more is None:
            return None
        acting += bool(more)
        found += more
    return found if mode == "side-by-side" or acting <= 1 else None


def _branches(side: Side, architecture: Architecture | None, factor: float) -> list[_Branch] | None:
    """`x + factor * residual(x)` as a sum of networks on x; None when it is no such sum."""
    if isinstance(side, Unchanged) or factor == 0:
        return []
    if isinstance(side, SequentialSide):
        return [_Branch(side, architecture or _seen_architecture(side), factor)]
    if not isinstance(side, Composed):
        return [] if factor == 0 else None
    weights = side.weights or (1.0,) * len(side.strengths)
    found: list[_Branch] = []
    acting = 0
    for member, strength, weight in zip(side.members, side.strengths, weights, strict=True):
        assert isinstance(member, Side)
        more = _branches(member, None, factor * strength * weight)
        if more is None:
            return None
        acting += bool(more)
        found += more
    return found if side.weights is not None or acting <= 1 else None


def _seen_architecture(side: SequentialSide) -> Architecture:
    """What the modules of a composition's member show of its architecture."""
    modules = [module for module in side.linear if not isinstance(module, nn.Dropout)]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    width = linears[0].in_features
    acts = [module for module in modules if not isinstance(module, (nn.Linear, nn.LayerNorm))]
    norm = any(isinstance(module, nn.LayerNorm) for module in modules)
    activation = type(acts[0]).__name__.lower() if acts else None
    ratios = (1, *(linear.out_features / width for linear in linears))
    return Architecture(tuple(ratios), activation, norm, (0,) * len(ratios), len(acts) == len(linears))


# -- one network at a strength, or several beside each other


def _widened(branches: dict[tuple[int, SideName], list[_Branch]]) -> tuple[_Tensors, Architecture, str]:
    most = max(branches.values(), key=len)
    if not most:
        raise NotMergeableError("every strength is 0: the result would change nothing")
    if len(most) == 1:
        return _baked(branches, most[0].architecture)
    kinds = {_kind(branch.architecture) for branch in most}
    first = most[0].architecture
    if len(kinds) > 1 or first.norm or first.activate_output or (first.activation or "") in _MIXING:
        raise NotMergeableError(
            "networks go side by side into one file when they have the same activation and number of layers, no "
            "norm and no activated output; these are: " + "; ".join(dict.fromkeys(str(b.architecture) for b in most))
        )
    inner = [sum(ratios) for ratios in zip(*(b.architecture.layer_structure[1:-1] for b in most), strict=True)]
    together = replace(first, layer_structure=(1, *inner, 1), dropout=(0,) * (len(inner) + 2))
    tensors: _Tensors = {}
    for (width, side), found in branches.items():
        if len(found) != len(most):
            raise NotMergeableError(
                f"not all of them hold the width {width}, so the {side} sides would differ in architecture"
            )
        tensors[width, side] = _beside(found, together, width)
    return tensors, together, f"{len(most)} networks beside each other: their hidden layers make one wider layer"


def _kind(architecture: Architecture) -> tuple[object, ...]:
    return (
        architecture.activation,
        architecture.norm,
        architecture.activate_output,
        len(architecture.layer_structure),
    )


def _linears(side: SequentialSide) -> list[nn.Linear]:
    return [module for module in side.linear if isinstance(module, nn.Linear)]


def _beside(found: list[_Branch], together: Architecture, width: int) -> dict[str, Tensor]:
    layers = [_linears(branch.side) for branch in found]
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
            f"the sizes of the hidden layers of width {width} are no multiples that layer_structure can state"
        )
    return tensors


def _bias(linear: nn.Linear) -> Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features, dtype=torch.float64)
    return linear.bias.detach().double()


def _baked(
    branches: dict[tuple[int, SideName], list[_Branch]], architecture: Architecture
) -> tuple[_Tensors, Architecture, str]:
    tensors: _Tensors = {}
    for (width, side), found in branches.items():
        if found:
            tensors[width, side] = _scaled(found[0])
        else:  # this side is not changed: a network whose output is zero
            tensors[width, side] = _scaled(replace(_other_side(branches, width), factor=0.0))
    padded = (*architecture.dropout, *(0,) * (len(architecture.layer_structure) - len(architecture.dropout)))
    return tensors, replace(architecture, dropout=padded), "the strength is in the last layer"


def _other_side(branches: dict[tuple[int, SideName], list[_Branch]], width: int) -> _Branch:
    found = [each for side in SIDES for each in branches[width, side]]
    if not found:
        raise NotMergeableError(f"the width {width} is held, but changed by nothing; leave that file out")
    return found[0]


def _scaled(branch: _Branch) -> dict[str, Tensor]:
    """The tensors with the factor in the last module that has a scale."""
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
            f"the strength {branch.factor:g} cannot be put into this file: its output passes {type(module).__name__}, "
            "through which a factor does not go. Apply it at that strength, or keep a composition (.hns) with it"
        )
    raise AssertionError("a side has a Linear")


# -- averages


def _averaged(parts: Sequence[Part]) -> tuple[_Tensors, Architecture, str, bool]:
    first = parts[0].hypernetwork
    for part in parts:
        other = part.hypernetwork
        if other.architecture is None or not _alike(other, first):
            raise NotMergeableError(
                f"weights are averaged over files of one architecture: {first.name} has {first.architecture} and the "
                f"widths {first.widths}, {other.name} has {other.architecture} and {other.widths}"
            )
    assert first.architecture is not None
    tensors: _Tensors = {}
    for width, side in _keys(parts):
        shares = [part.strength(side) for part in parts]
        total = sum(shares)
        if total == 0:
            raise NotMergeableError("the strengths add up to 0; give shares such as 1 and 1, or 0.7 and 0.3")
        states = [part.hypernetwork.side(width, side).state_dict() for part in parts]
        pairs = list(zip(states, shares, strict=True))
        tensors[width, side] = {
            name: sum((s[name].double() * (share / total) for s, share in pairs), torch.zeros((), dtype=torch.float64))
            for name in states[0]
        }
    # The mean of one-matrix networks is the mean of what they compute; with more layers it is not.
    exact = first.architecture.affine and len(first.architecture.layer_structure) == 2
    how = "the weights are averaged" + ("" if exact else ", which does not average what they compute")
    return tensors, first.architecture, how, exact


def _alike(one: Hypernetwork, two: Hypernetwork) -> bool:
    """Whether both have the same tensors, used alike; without an activation, none follows the output either."""
    built = [
        replace(
            each.architecture, activate_output=each.architecture.activate_output and bool(each.architecture.activation)
        )
        for each in (one, two)
        if each.architecture is not None
    ]
    return len(built) == 2 and built[0] == built[1] and one.widths == two.widths


# -- the result


def _built(
    sides: _Tensors,
    architecture: Architecture,
    name: str,
    dtype: str,
    parts: Sequence[Part],
    mode: Mode,
    exact: bool,
) -> Hypernetwork:
    kind: torch.dtype = getattr(torch, dtype)
    widths = _widths(parts)
    built: dict[int, tuple[Side, Side]] = {}
    for width in widths:
        k, v = (
            build_side(architecture, width, {n: t.to(kind).contiguous() for n, t in sides[width, side].items()})
            for side in SIDES
        )
        built[width] = (k, v)
    bad = [name for tensors in sides.values() for name, t in tensors.items() if not torch.isfinite(t.to(kind)).all()]
    if bad:
        raise NotMergeableError(f"{bad[0]} of the result has values that {dtype} cannot hold; take bfloat16 or float32")
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
    """Largest difference from what the parts give on random inputs, relative to the largest output."""
    worst = 0.0
    for width, side in _keys(parts):
        generator = torch.Generator().manual_seed(width)
        x = torch.randn(1, _ROWS, width, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            found, wanted = made.transform(side, x), _together(parts, mode, side, x)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)))
    return worst


def _together(parts: Sequence[Part], mode: Mode, side: SideName, x: Tensor) -> Tensor:
    if mode == "chain":
        for part in parts:
            x = part.hypernetwork.transform(side, x, part.strength(side))
        return x
    total = sum(part.strength(side) for part in parts)
    shares = [part.strength(side) / (total if mode == "average" else 1) for part in parts]
    changes = [part.hypernetwork.transform(side, x) - x for part in parts]
    return x + sum((change * share for change, share in zip(changes, shares, strict=True)), torch.zeros_like(x))


def composition(parts: Sequence[Part], target: str | os.PathLike[str] | None = None) -> str:
    """Return the text of a `.hns` file that keeps a chain exactly; its members are found by name beside it.

    Args:
        parts: The chain.
        target: Where the text is to be written. Default: a new file beside the first part.

    Raises:
        NotMergeableError: A strength is not between 0 and 1, or keys and values differ, which `.hns` cannot say; or the
            file, read where it stands, would not find these parts. The message says why.
    """
    paths: list[Path] = []
    for part in parts:
        if part.path is None:
            raise NotMergeableError("a composition names files, and one of these hypernetworks is none")
        if not (part.k == part.v and 0 <= part.k <= 1):
            raise NotMergeableError(
                f"a .hns composition has strengths from 0 to 1, the same for keys and values; {part.path.name} has "
                f"{part.k:g} and {part.v:g}"
            )
        paths.append(part.path)
    file = None if target is None else Path(target)
    library = Library([file.parent if file is not None else path.parent for path in (paths[:1] or [Path()])])
    files = _files_beside(paths, file, library)
    for part, path in zip(parts, paths, strict=True):
        _check_nested(part.hypernetwork, path, file)
    members = [(_name_of(path, files[path], library, file), part.k) for part, path in zip(parts, paths, strict=True)]
    try:
        return chain_text(members)
    except UnsupportedArchitectureError as error:
        raise NotMergeableError(str(error)) from error


def _files_beside(paths: Sequence[Path], target: Path | None, library: Library) -> dict[Path, list[LibraryFile]]:
    """What each part is among the files that a composition finds; raises NotMergeableError where it does not."""
    (folder,) = library.folders
    files: dict[Path, list[LibraryFile]] = {}
    for path in paths:
        if target is not None and same_file(path, target):
            raise NotMergeableError(f"{target} is one of the files to merge. Write the result elsewhere.")
        if path.suffix.lower() not in suffixes():
            raise NotMergeableError(
                f"{path}: a composition names files that end in {', '.join(suffixes())}. Rename it to one of these."
            )
        same = [file for file in library.files() if same_file(file.path, path)]
        files[path] = sorted(same, key=lambda file: file.relative.name != path.name)
    away = list(dict.fromkeys(path.name for path, found in files.items() if not found))
    if away:
        raise NotMergeableError(
            f"{target or folder}: a composition finds its members beside it: put {', '.join(away)} into "
            f"{folder.resolve()} as well, or write the composition beside them."
        )
    return files


def _name_of(path: Path, found: Sequence[LibraryFile], library: Library, target: Path | None) -> str:
    """The name by which a composition at `target` finds this file, and no other."""
    for name in (name for file in found for name in library.names_of(file)):
        if is_member_name(name) and not _answers(target, name):
            return name
    raise NotMergeableError(f"{path}: no name in a composition means this file and no other. Rename it.")


def _answers(target: Path | None, name: str) -> bool:
    """Whether the composition that is about to be written may answer to `name` itself."""
    own = () if target is None else (target.stem, target.name)
    return not name.startswith("./") and folded(PurePosixPath(name).name) in map(folded, own)


def _check_nested(given: Hypernetwork, path: Path, target: Path | None) -> None:
    """Raise NotMergeableError where a part is a composition that would give something else within another one."""
    if given.architecture is not None:
        return
    _check_members(path, target, MAX_NESTED_COMPOSITIONS - 1)
    alone = load(path)
    for width, side in itertools.product(given.widths, SIDES):
        x = torch.randn(1, _ROWS, width, generator=torch.Generator().manual_seed(width))
        same = alone.widths == given.widths and torch.equal(alone.transform(side, x), given.transform(side, x))
        if not same:
            raise NotMergeableError(
                f"{path}: this composition gives something else without the folders that its members were found in. "
                "Put its members beside it."
            )


def _check_members(path: Path, target: Path | None, depth: int) -> None:
    if target is not None and same_file(path, target):
        raise NotMergeableError(f"{path}: the composition would name itself. Write it elsewhere.")
    with open_source(path) as source:
        composition = read_composition(source)
        if composition is None:
            return
        if depth == 0:
            raise NotMergeableError(f"{path}: compositions would be nested too deeply. Merge some of them first.")
        library = member_library(source, ())
        for name in composition.structure.names():
            if _answers(target, name):
                raise NotMergeableError(
                    f"{path}: it names {shown(name)}, and so is the result called. Choose another name."
                )
            try:
                _check_members(library.find(name), target, depth - 1)
            except HypernetworkNotFoundError as error:
                raise NotMergeableError(
                    f"{path}: its member {shown(name)} is not beside it. Put it there. {error}"
                ) from error
