"""What every weight format gives: a hypernetwork as found in a file, before any tensor data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hnloader.errors import CorruptFileError, UnsupportedArchitectureError
from hnloader.formats.architecture import OLD_NAMES, SideShapes, normalise_name, verify
from hnloader.formats.trees import has_at_most, mapped
from hnloader.network import Architecture, Hypernetwork, Side, SideName, make_side
from hnloader.texts import as_text, shown

MAX_METADATA = 30_000  # values; programs write some twenty
FLOATING = ("float32", "float16", "bfloat16", "float64")


class TensorInfo(Protocol):
    """A tensor in a file: what is known of it without reading its data."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size in each dimension."""

    @property
    def dtype(self) -> str:
        """Name of the torch dtype."""

    @property
    def count(self) -> int:
        """Number of values."""


SideTensors = dict[str, TensorInfo]


@dataclass
class Contents:
    """A hypernetwork file, its architecture verified, its tensors not read yet.

    Attributes:
        label: what messages call the file.
        format: "pt" or "safetensors".
        container: how the bytes are wrapped: "zip", "legacy", "safetensors".
        program: which program wrote it, as far as the file tells.
        variant: which kind of file of that program.
        metadata: its keys besides the widths; tensors in it are `TensorInfo`.
        sides: (width, side) -> tensors by normalized name.
        old_names: the file says linear1 and linear2.
        read: gives the tensor that a `TensorInfo` describes.
        forget: drops what `read` keeps for tensors that share memory; called by who needs each tensor once.
        stream: gives the bytes of the tensor in pieces; None for one that must be read whole.
        notes: further text in the file's header, by key.
        ordered: The state dicts are OrderedDicts; None where some are and others are not.
        stated_origin: Program and variant of the file that a converted one was made from.
    """

    label: str
    format: str
    container: str
    program: str
    variant: str
    metadata: dict[str, object]
    sides: dict[tuple[int, SideName], SideTensors]
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
            CorruptFileError: The metadata hold more than any program writes.
            UnsupportedArchitectureError: Metadata and tensors contradict each other.
        """
        if not has_at_most(self.metadata, MAX_METADATA):
            raise CorruptFileError(f"{self.label}: its metadata hold more than {MAX_METADATA:,} values. Remove some.")
        shapes = [
            SideShapes(width, side, {name: info.shape for name, info in tensors.items()})
            for (width, side), tensors in self.sides.items()
        ]
        try:
            self.architecture = verify(shapes, self.metadata)
            for (width, side), tensors in self.sides.items():
                _check_dtypes(tensors, f"the {side} side of width {width}")
        except UnsupportedArchitectureError as error:
            raise UnsupportedArchitectureError(f"{self.label}: {error}") from error

    @property
    def widths(self) -> tuple[int, ...]:
        """The context widths, in the order of the file."""
        return tuple(dict.fromkeys(width for width, _ in self.sides))

    @property
    def origin(self) -> str:
        """Program and variant in one line; for a converted file, those of its source."""
        return f"{self.program}, {self.variant}" if self.stated_origin is None else self.stated_origin

    def hypernetwork(self, stem: str) -> Hypernetwork:
        """Read the tensors and build the hypernetwork; `stem` is its name where the file holds none.

        Raises:
            CorruptFileError: damaged data, or values that are not finite.
        """
        sides = {width: (self.side(width, "k"), self.side(width, "v")) for width in self.widths}
        name = self.metadata.get("name")
        return Hypernetwork(
            sides,
            name=name if isinstance(name, str) and name else stem,
            architecture=self.architecture,
            metadata={key: self._with_tensors(value) for key, value in self.metadata.items()},
            variant=self.origin,
            old_names=self.old_names,
        )

    def side(self, width: int, side: SideName) -> Side:
        """Read one side; raises CorruptFileError for damaged data, or values that are not finite."""
        tensors = {}
        for name, info in self.sides[width, side].items():
            tensors[name] = self.read(info)
            check_finite(tensors[name], f"{self.label}: {name} of the {side} side of width {width}")
        return build_side(self.architecture, width, tensors)

    def _with_tensors(self, value: object) -> object:
        """`value` with each `TensorInfo` in it replaced by its tensor."""
        return mapped(value, lambda part: self.read(part) if is_tensor_info(part) else part)


def build_side(architecture: Architecture, width: int, tensors: Mapping[str, Tensor]) -> Side:
    """A side in eval mode whose parameters are these tensors, not copies of them."""
    with torch.device("meta"):
        made = make_side(architecture, width)
    for name, tensor in tensors.items():
        _set_parameter(made, name, tensor)
    return made.eval()


def is_tensor_info(value: object) -> bool:
    """True for a tensor that was not read yet, among what a file's pickle or header can hold."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def all_named_tensors(
    given: Mapping[tuple[int, SideName], Mapping[object, object]],
) -> tuple[dict[tuple[int, SideName], SideTensors], bool]:
    """Return the tensors of each side by normalized name, and whether the file uses the old names.

    Raises:
        UnsupportedArchitectureError: A side holds something else than named tensors, one name twice, or the file uses
            old and new names.
    """
    sides: dict[tuple[int, SideName], SideTensors] = {}
    first: dict[bool, str] = {}  # old name or new one -> the first of them
    for (width, side), named in given.items():
        where = f"the {side} side of width {width}"
        tensors: SideTensors = {}
        for name, info in named.items():
            if not isinstance(name, str) or not is_tensor_info(info):
                raise UnsupportedArchitectureError(
                    f"{where} holds {shown(as_text(name))}, which is no tensor with a name"
                )
            normal = normalise_name(name)
            if normal in tensors:
                raise UnsupportedArchitectureError(
                    f"{where} holds {shown(normal)} twice, under its old and its new name"
                )
            first.setdefault(normal != name, f"{shown(name)} on {where}")
            tensors[normal] = info  # type: ignore[assignment]
        sides[width, side] = tensors
    if len(first) > 1:
        raise UnsupportedArchitectureError(
            f"its tensors have old names ({first[True]}) and new ones ({first[False]}). Rename them alike."
        )
    return sides, True in first


def state_dict(hypernetwork: Hypernetwork, width: int, side: SideName) -> dict[str, Tensor]:
    """The tensors of one side by the names of the file that it came from, on the CPU and contiguous."""
    old_names = {new: old for old, new in OLD_NAMES.items()} if hypernetwork.old_names else {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in hypernetwork.side(width, side).state_dict().items():
        module, _, leaf = name.rpartition(".")
        tensors[old_names.get(f"{module}.", f"{module}.") + leaf] = tensor.detach().cpu().contiguous()
    return tensors


def _check_dtypes(tensors: SideTensors, where: str) -> None:
    for name, info in tensors.items():
        if info.dtype not in FLOATING:
            raise UnsupportedArchitectureError(
                f"{name} of {where} is {info.dtype}; one of {', '.join(FLOATING)} was expected"
            )


def check_finite(tensor: Tensor, where: str) -> None:
    """Raise CorruptFileError where a value is NaN or infinite; `where` names the tensor."""
    # One NaN or infinity makes the sum one too, and a sum is far quicker than a look at each value. A sum of
    # finite values may overflow; the count below then finds nothing.
    if torch.isfinite(tensor.sum()):
        return
    bad = int(tensor.numel() - torch.isfinite(tensor).sum())
    if bad:
        raise CorruptFileError(
            f"{where} has {bad:,} of {tensor.numel():,} values that are NaN or infinite. Its training diverged or the "
            "file is damaged: it can only give black or noisy images. Use an earlier step of it."
        )


def _set_parameter(side: Side, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    side.get_submodule(path).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
