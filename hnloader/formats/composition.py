"""Compositions: hypernetworks that a file combines by name, one after the other or side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hnloader.affine import AffineMap
from hnloader.errors import CorruptFileError
from hnloader.formats.source import Source
from hnloader.network import SIDES, Hypernetwork, Side, SideName
from hnloader.scopes import Scope, refined

__all__ = ["Composed", "Composition", "Member", "Structure", "all_scopes", "build_composition"]

MAX_WIDTHS = 64  # of all members; the known models have 8


@dataclass(frozen=True)
class Member:
    """A hypernetwork by name, or a structure, at a strength from 0 to 1."""

    of: str | Structure
    strength: float = 1.0


@dataclass(frozen=True)
class Structure:
    """Members one after the other (`weights` is None), or side by side with weights that add up to 1."""

    members: tuple[Member, ...]
    weights: tuple[float, ...] | None = None

    def names(self) -> list[str]:
        """Return the names of the hypernetworks in it, each once, in order."""
        found: list[str] = []
        for member in self.members:
            found += [member.of] if isinstance(member.of, str) else member.of.names()
        return list(dict.fromkeys(found))

    def unfolded(self, sizes: Mapping[str, int]) -> int:
        """Return the number of members, each counted at every mention; `sizes` has the number for each name."""
        return sum(
            sizes[member.of] if isinstance(member.of, str) else member.of.unfolded(sizes) for member in self.members
        )


@dataclass(frozen=True)
class Composition:
    """The contents of a composition file: the structure, its text, and the program that defines the format."""

    structure: Structure
    text: str
    program: str


class Composed(Side):
    """One side of a composition for one scope. Members without sides there leave the context unchanged.

    At strength 1 it computes the composition. Other strengths interpolate between the context and that result; the
    original program ignores the strength of a tag for these files.
    """

    def __init__(
        self, width: int, sides: list[Side], strengths: list[float], weights: tuple[float, ...] | None
    ) -> None:
        super().__init__()
        self.width = width
        self.members = nn.ModuleList(sides)
        self.strengths = strengths
        self.weights = weights

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Return the changed context; at strength 1 exactly the members' result, without further rounding."""
        return self._composed(x) if strength == 1 else super().forward(x, strength)

    def residual(self, x: Tensor) -> Tensor:
        """Return what the composition adds to `x` [..., width] at strength 1."""
        return self._composed(x) - x

    def _composed(self, x: Tensor) -> Tensor:
        if self.weights is None:
            result = x
            for side, strength in zip(self.members, self.strengths, strict=True):
                result = side(result, strength) if strength else result
            return result
        parts = zip(self.members, self.strengths, self.weights, strict=True)
        total = sum((side(x, strength) if strength else x) * weight for side, strength, weight in parts)
        assert isinstance(total, Tensor)
        return total

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """Return the members' maps composed; None if a member has none. See `Side.affine_map`."""
        maps = [side.affine_map(dtype, device) for side in self.members if isinstance(side, Side)]
        if any(each is None for each in maps):
            return None
        identity = AffineMap.identity(self.width, dtype, device)
        applied = [identity + each.scaled(s) for each, s in zip(maps, self.strengths, strict=True) if each is not None]
        if self.weights is None:
            result = identity
            for each in applied:
                result = result.then(each)
            return result - identity
        result = AffineMap.zero(self.width, dtype, device)
        for each, weight in zip(applied, self.weights, strict=True):
            result = result + each.scaled(weight)
        return result - identity


class Unchanged(Side):
    """The side of a member that leaves the sites unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def residual(self, x: Tensor) -> Tensor:
        """Return zeros of the shape of `x`."""
        return x.new_zeros(x.shape)

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """Return the zero map."""
        return AffineMap.zero(self.width, dtype, device)


def build_composition(source: Source, found: Composition, members: dict[str, Hypernetwork]) -> Hypernetwork:
    """Build the hypernetwork of a composition from its members."""
    scopes = all_scopes(source, [member.scopes for member in members.values()])
    sides: dict[Scope, tuple[Side, Side]] = {}
    for scope, within in scopes.items():
        held = dict(zip(members, zip(members.values(), within, strict=True), strict=True))
        k, v = (_composed(found.structure, held, scope.width, side) for side in SIDES)
        sides[scope] = (k, v)
    return Hypernetwork(
        sides,
        name=source.stem,
        metadata={"structure": found.text, "members": {name: member.metadata for name, member in members.items()}},
        variant="composition",
    )


def all_scopes(source: Source, members: Sequence[Sequence[Scope]]) -> dict[Scope, tuple[Scope | None, ...]]:
    """Return the scopes of a composition, each with those of the members that contain it.

    Raises CorruptFileError for more than any model has.
    """
    widths = {scope.width for member in members for scope in member}
    if len(widths) > MAX_WIDTHS:
        raise CorruptFileError(
            f"{source.label}: the members have {len(widths):,} widths, more than {MAX_WIDTHS}. "
            "Leave out members that fit no model."
        )
    try:
        return refined(members)
    except ValueError as error:
        raise CorruptFileError(f"{source.label}: {error}") from error


# Each member with its scope at the sites of a composed side; None for a member that leaves them unchanged.
_Within = dict[str, tuple[Hypernetwork, "Scope | None"]]


def _composed(structure: Structure, members: _Within, width: int, side: SideName) -> Side:
    def built(of: str | Structure) -> Side:
        if isinstance(of, Structure):
            return _composed(of, members, width, side)
        member, scope = members[of]
        return Unchanged(width) if scope is None else member.side(scope, side)

    sides = [built(member.of) for member in structure.members]
    return Composed(width, sides, [member.strength for member in structure.members], structure.weights)
