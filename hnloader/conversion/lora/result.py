"""What a conversion to LoRA or LyCORIS produced: changes of weights, their errors, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hnloader.attention.sites import AttentionSite
from hnloader.conversion.lora.base import Projection
from hnloader.conversion.lora.fitting import Error
from hnloader.network import SideName

Kind = Literal["lora", "lycoris"]
KIND_NAMES: Mapping[Kind, str] = {"lora": "LoRA", "lycoris": "LyCORIS"}

# The scale of low-rank factors is alpha / rank. One alpha for all layers: diffusers 0.42 with peft 0.21 ignores those
# that differ, and then scales layers of other ranks wrongly.
ALPHA = 1.0

# Above this error, relative to the hypernetworks' change of keys or values, a file counts as badly represented.
POOR = 0.2


@dataclass(frozen=True, eq=False)
class LayerChange:
    """What is added to one projection of one attention layer, in the dtype that is written.

    Attributes:
        site: The attention layer.
        projection: `to_k`, `to_v` or `to_out.0`.
        down, up: Low-rank factors [rank, inputs] and [outputs, rank], or None; `ALPHA / rank * up @ down` is added.
        diff: The full difference [outputs, inputs], or None.
        diff_b: What is added to the output [outputs], or None; only beside `diff`.
    """

    site: AttentionSite
    projection: Projection
    down: Tensor | None = None
    up: Tensor | None = None
    diff: Tensor | None = None
    diff_b: Tensor | None = None

    @property
    def name(self) -> str:
        """The projection's dotted name in diffusers."""
        return f"{self.site.name}.{self.projection}"

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None of a full difference."""
        return None if self.down is None else len(self.down)

    @property
    def values(self) -> int:
        """How many numbers the file holds for it."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def full_values(self) -> int:
        """How many numbers its full difference has."""
        if self.diff is not None:
            return self.diff.numel()
        assert self.up is not None and self.down is not None
        return self.up.shape[0] * self.down.shape[1]

    def delta(self) -> Tensor:
        """What is added to the weight [outputs, inputs], in float64."""
        if self.diff is not None:
            return self.diff.double()
        assert self.up is not None and self.down is not None
        return self.up.double() @ self.down.double() * (ALPHA / len(self.down))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the file, by the last part of their names."""
        if self.down is not None and self.up is not None:
            alpha = torch.tensor(ALPHA, dtype=self.down.dtype)
            return {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": alpha}
        named = {"diff": self.diff, "diff_b": self.diff_b}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass
class Errors:
    """Errors of keys and values, per block and overall, on contexts that nothing was fitted to."""

    blocks: dict[str, dict[SideName, Error]] = field(default_factory=dict)

    def add(self, site: AttentionSite, side: SideName, error: Error) -> None:
        """Count one layer's error to its block."""
        sides = self.blocks.setdefault(site.block, {})
        sides[side] = sides.get(side, Error()) + error

    def overall(self, side: SideName) -> Error:
        """Of all layers together."""
        return sum((sides[side] for sides in self.blocks.values() if side in sides), Error())

    @property
    def worst(self) -> float:
        """The larger of the keys' and the values' overall error, relative to the hypernetworks' change."""
        return max(self.overall(side).of_change for side in ("k", "v"))

    def rows(self) -> Iterable[tuple[str, dict[SideName, Error]]]:
        """Each block with its errors, then `overall`."""
        yield from self.blocks.items()
        yield "overall", {side: self.overall(side) for side in ("k", "v") if self.overall(side).change}

    def to_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """By block and `overall`, by `k` and `v`: `of_change` and `of_whole`, rounded to 4 significant digits."""
        return {
            block: {
                side: {"of_change": _rounded(error.of_change), "of_whole": _rounded(error.of_whole)}
                for side, error in sides.items()
            }
            for block, sides in self.rows()
        }


@dataclass(frozen=True)
class LoraExport:
    """A written LoRA or LyCORIS file and how well it represents its source.

    Attributes:
        path: The file.
        kind: `lora` or `lycoris`.
        base: Name of the model that it is for.
        family: `SD 1`, `SD 2`, `SDXL`, or None.
        exact: It is exact but for rounding: a full difference of affine hypernetworks.
        ranks: Rank by projection (`down_blocks.0. ... .attn2.to_k`); empty for full differences.
        errors: Errors on contexts that nothing was fitted to.
        statistics: In words, where these contexts come from.
        warnings: What a user should know: bad representation, a wanted fidelity that was not reached, ...
        images: Mean difference from the live hypernetworks' images, 0 to 255, of images `without` them and
            with the file (`converted`); None if no images were compared.
        size: Bytes.
    """

    path: Path
    kind: Kind
    base: str
    family: str | None
    exact: bool
    ranks: Mapping[str, int]
    errors: Errors
    statistics: str
    warnings: tuple[str, ...]
    images: Mapping[str, float] | None
    size: int

    @property
    def fidelity(self) -> float:
        """1 less the larger of the keys' and the values' overall error, and at least 0."""
        return max(0.0, 1 - self.errors.worst)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
