"""The result of reading any weight format: a hypernetwork as a file describes it, before any tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hnloader.errors import CorruptFileError, UnsupportedArchitectureError
from hnloader.formats.architecture import SideShapes, normalize_name, verify
from hnloader.formats.trees import has_at_most, mapped
from hnloader.network import Architecture, Hypernetwork, Side, SideName, make_side
from hnloader.scopes import Scope, check_apart
from hnloader.texts import as_text, shown

__all__ = [
    "Contents",
    "SideTensors",
    "TensorInfo",
    "all_named_tensors",
    "build_side",
    "check_finite",
    "is_tensor_info",
]

MAX_METADATA = 30_000  # values; programs write about twenty
FLOATING = ("float32", "float16", "bfloat16", "float64")


class TensorInfo(Protocol):
    """A tensor in a file, without its data."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size in each dimension."""

    @property
    def dtype(self) -> str:
        """Name of the torch dtype."""

    @property
    def count(self) -> int:
        """Number of values."""


SideTensors = dict[str, TensorInfo]


@dataclass(kw_only=True)
class Contents:
    """A hypernetwork file with verified architecture, whose tensors are not read yet.

    Attributes:
        label: Name of the file in messages.
        format: Name of the format, such as "pt".
        container: Form of the bytes, such as "zip", "legacy" or "safetensors".
        program: The program that wrote the file, as far as the file shows; "hnloader" for a format that only hnloader
            writes.
        variant: The kind of file of that program. A format that only hnloader writes gives `stated_origin`.
        metadata: All keys besides the widths; tensors in it are `TensorInfo`.
        sides: (scope, side) -> tensors by normalized name. Most scopes are a whole width.
        old_names: The file uses the names linear1 and linear2.
        read: Returns the tensor that a `TensorInfo` describes. The format gives this function: `Checkpoint.read` for
            `.pt`. `build_side` puts the tensors into modules.
        forget: Drops what `read` keeps for tensors that share memory; for callers that need each tensor once.
        stream: Returns the bytes of a tensor in pieces; None for a tensor that must be read whole.
        notes: Further text in the file's header, by key.
        ordered: The state dicts are OrderedDicts; None if only some are.
        stated_origin: The `Outgoing.variant` that the file stores: program and variant of the file that it was made
            from. None for a format that does not store it.
        architecture: How the sides are built, verified from the tensors.
    """

    label: str
    format: str
    container: str
    program: str
    variant: str
    metadata: dict[str, object]
    sides: dict[tuple[Scope, SideName], SideTensors]
    old_names: bool
    read: Callable[[Any], Tensor] = field(repr=False)
    forget: Callable[[], None] = field(default=lambda: None, repr=False)
    stream: Callable[[Any], Iterator[memoryview] | None] = field(default=lambda info: None, repr=False)
    notes: Mapping[str, str] = field(default_factory=dict)
    ordered: bool | None = False
    stated_origin: str | None = None
    architecture: Architecture = field(init=False)

    def __post_init__(self) -> None:
        """Verify the architecture.

        Raises:
            CorruptFileError: The metadata holds more than any program writes.
            UnsupportedArchitectureError: Metadata and tensors contradict each other, or scopes have a site in common.
        """
        if not has_at_most(self.metadata, MAX_METADATA):
            raise CorruptFileError(f"{self.label}: the metadata holds more than {MAX_METADATA:,} values. Remove some.")
        shapes = [
            SideShapes(scope, side, {name: info.shape for name, info in tensors.items()})
            for (scope, side), tensors in self.sides.items()
        ]
        try:
            check_apart(self.scopes)
            self.architecture = verify(shapes, self.metadata)
            for (scope, side), tensors in self.sides.items():
                _check_dtypes(tensors, f"the {side} side of {scope.label}")
        except (UnsupportedArchitectureError, ValueError) as error:
            raise UnsupportedArchitectureError(f"{self.label}: {error}") from error

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Scopes in the order of the file."""
        return tuple(dict.fromkeys(scope for scope, _ in self.sides))

    @property
    def widths(self) -> tuple[int, ...]:
        """Context widths in the order of the file."""
        return tuple(dict.fromkeys(scope.width for scope in self.scopes))

    @property
    def origin(self) -> str:
        """Program and variant in one line; for a converted file, those of its source."""
        return f"{self.program}, {self.variant}" if self.stated_origin is None else self.stated_origin

    def name(self, stem: str) -> str:
        """Return the name in the file; `stem` if it holds none."""
        name = self.metadata.get("name")
        return name if isinstance(name, str) and name else stem

    def hypernetwork(self, stem: str) -> Hypernetwork:
        """Read the tensors and build the hypernetwork; `stem` is its name if the file holds none.

        Raises:
            CorruptFileError: The data is damaged, or values are not finite.
        """
        return Hypernetwork(
            {scope: (self._side(scope, "k"), self._side(scope, "v")) for scope in self.scopes},
            name=self.name(stem),
            architecture=self.architecture,
            metadata={
                key: mapped(value, lambda part: self.read(part) if is_tensor_info(part) else part)
                for key, value in self.metadata.items()
            },
            variant=self.origin,
            old_names=self.old_names,
        )

    def _side(self, scope: Scope, side: SideName) -> Side:
        tensors = {}
        for name, info in self.sides[scope, side].items():
            tensors[name] = self.read(info)
            check_finite(tensors[name], f"{self.label}: {name} of the {side} side of {scope.label}")
        return build_side(self.architecture, scope.width, tensors)


def build_side(architecture: Architecture, width: int, tensors: Mapping[str, Tensor]) -> Side:
    """Build a side in eval mode whose parameters are these tensors, not copies of them."""
    with torch.device("meta"):
        made = make_side(architecture, width)
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        made.get_submodule(path).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return made.eval()


def is_tensor_info(value: object) -> bool:
    """Return whether a value of a pickle or header describes a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def all_named_tensors(
    given: Mapping[tuple[Scope, SideName], Mapping[object, object]],
) -> tuple[dict[tuple[Scope, SideName], SideTensors], bool]:
    """Return the tensors of each side by normalized name, and whether the file uses the old names.

    Raises:
        UnsupportedArchitectureError: A side holds other things than named tensors, a name occurs twice, or the file
            mixes old and new names.
    """
    sides: dict[tuple[Scope, SideName], SideTensors] = {}
    first: dict[bool, str] = {}  # old name or new one -> the first of them
    for (scope, side), named in given.items():
        where = f"the {side} side of {scope.label}"
        tensors: SideTensors = {}
        for name, info in named.items():
            if not isinstance(name, str) or not is_tensor_info(info):
                raise UnsupportedArchitectureError(
                    f"Found {shown(as_text(name))} in {where}. Expected tensors with names of text."
                )
            normal = normalize_name(name)
            if normal in tensors:
                raise UnsupportedArchitectureError(
                    f"Found {shown(normal)} twice in {where}, under its old and its new name. Remove one."
                )
            first.setdefault(normal != name, f"{shown(name)} on {where}")
            tensors[normal] = info  # type: ignore[assignment]
        sides[scope, side] = tensors
    if len(first) > 1:
        raise UnsupportedArchitectureError(
            f"The tensors have old names ({first[True]}) and new names ({first[False]}). Use one kind of names."
        )
    return sides, True in first


def _check_dtypes(tensors: SideTensors, where: str) -> None:
    for name, info in tensors.items():
        if info.dtype not in FLOATING:
            raise UnsupportedArchitectureError(f"{name} of {where} is {info.dtype}. Use one of {', '.join(FLOATING)}.")


def check_finite(tensor: Tensor, where: str) -> None:
    """Raise CorruptFileError if a value is NaN or infinite; `where` names the tensor."""
    # The sum is far quicker than a look at each value, and NaN or infinite if one is. A sum of finite values may
    # overflow; the count below then finds nothing.
    if torch.isfinite(tensor.sum()):
        return
    bad = int(tensor.numel() - torch.isfinite(tensor).sum())
    if bad:
        raise CorruptFileError(
            f"{where} has {bad:,} of {tensor.numel():,} values that are NaN or infinite: its training diverged or the "
            "file is damaged, and images would be black or noisy. Use an earlier step of the training."
        )
