"""The result of a LoRA export: changes of weights, their errors, and a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hnloader.attention.layout import AttentionSite
from hnloader.conversion.lora.base_model import Projection
from hnloader.conversion.lora.fitting import Error
from hnloader.conversion.lora.lora_options import Kind
from hnloader.network import SIDES, SideName

__all__ = ["ALPHA", "POOR_FIT", "Errors", "LayerChange", "LoraExport", "Refinement"]

# The scale of low-rank factors is alpha / rank. All layers share one alpha: diffusers 0.42 with peft 0.21 ignores
# alphas that differ, and then scales layers of other ranks wrongly.
ALPHA = 1.0
# A file with a larger error, relative to the change of keys or values, represents its source poorly.
POOR_FIT = 0.2


@dataclass(frozen=True, eq=False)
class LayerChange:
    """The addition to one projection of one attention layer, in the dtype of the file.

    Attributes:
        site: The attention layer.
        projection: `to_q`, `to_k`, `to_v` or `to_out.0`, or a feed-forward layer of the same block.
        down, up: Low-rank factors [rank, inputs] and [outputs, rank], or None. `ALPHA / rank * up @ down` is added.
        diff: The full difference [outputs, inputs], or None.
        diff_b: The addition to the output [outputs], or None; only beside `diff`.
    """

    site: AttentionSite
    projection: Projection
    down: Tensor | None = None
    up: Tensor | None = None
    diff: Tensor | None = None
    diff_b: Tensor | None = None

    @property
    def name(self) -> str:
        """Dotted name of the projection in diffusers."""
        # The feed-forward layers are beside the attention layer.
        place = self.site.name.rpartition(".")[0] if self.projection.startswith("ff.") else self.site.name
        return f"{place}.{self.projection}"

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None for a full difference."""
        return None if self.down is None else len(self.down)

    def delta(self) -> Tensor:
        """Return the addition to the weight [outputs, inputs], in float64."""
        if self.diff is not None:
            return self.diff.double()
        assert self.up is not None and self.down is not None
        return self.up.double() @ self.down.double() * (ALPHA / len(self.down))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the file by the last part of their names."""
        if self.down is not None and self.up is not None:
            alpha = torch.tensor(ALPHA, dtype=self.down.dtype)
            return {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": alpha}
        named = {"diff": self.diff, "diff_b": self.diff_b}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass
class Errors:
    """Errors of keys and values by block and overall, on contexts that the fit never saw.

    Attributes:
        blocks: Error by block (`down.0`, `mid`, `up.2`, ...) and side (`k`, `v`).
    """

    blocks: dict[str, dict[SideName, Error]] = field(default_factory=dict)

    def add(self, site: AttentionSite, side: SideName, error: Error) -> None:
        """Add the error of a layer to its block."""
        sides = self.blocks.setdefault(site.block, {})
        sides[side] = sides.get(side, Error()) + error

    def overall(self, side: SideName) -> Error:
        """Return the error of all layers together."""
        return sum((sides[side] for sides in self.blocks.values() if side in sides), Error())

    @property
    def worst(self) -> float:
        """The larger overall error of keys and values, relative to the change."""
        return max(self.overall(side).of_change for side in SIDES)

    def to_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return `of_change` and `of_whole` by block and `overall`, by side, rounded to 4 significant digits."""
        overall = {side: self.overall(side) for side in SIDES if self.overall(side).change}
        return {
            block: {
                side: {"of_change": float(f"{error.of_change:.4g}"), "of_whole": float(f"{error.of_whole:.4g}")}
                for side, error in sides.items()
            }
            for block, sides in {**self.blocks, "overall": overall}.items()
        }


@dataclass(frozen=True)
class Refinement:
    """The gain of refining.

    Attributes:
        before: Error of the UNet's output with the fitted file, relative to the change that the hypernetworks make, on
            trajectories that were never learned from.
        after: The same with the refined file.
        steps: Number of optimization steps.
        seconds: Time that it took.
        interrupted: It was stopped before its time was over.
    """

    before: float
    after: float
    steps: int
    seconds: float
    interrupted: bool = False


@dataclass(frozen=True)
class LoraExport:
    """The result of `hnloader.export_lora`: the written file and its accuracy.

    Attributes:
        path: The file.
        kind: `lora` or `lycoris`.
        base: Name of the model that the file is for.
        family: `SD 1`, `SD 2`, `SDXL`, or None.
        exact: The file is exact up to rounding: a full difference of affine hypernetworks.
        ranks: Rank by projection (`down_blocks.0. ... .attn2.to_k`); empty for full differences.
        errors: Errors on contexts that the fit never saw.
        statistics: Description of these contexts.
        warnings: Sentences for the user, such as one about a fidelity that was not reached.
        image_differences: Mean difference of pixels from images with the hypernetworks, 0 to 255: of images `without`
            them, and of images with the file (`converted`). None without a grid.
        size: Size of the file in bytes.
        refinement: The gain of refining. None without it.

    Example:
        >>> import hnloader.demo, tempfile
        >>> outline = hnloader.demo.hypernetwork_paths()["outline"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = hnloader.export_lora(
        ...         outline,
        ...         hnloader.demo.pipeline_folder(),
        ...         f"{folder}/outline.safetensors",
        ...         hnloader.LoraOptions(kind="lycoris"),
        ...     )
        >>> made.exact, made.fidelity > 0.999
        (True, True)
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
    image_differences: Mapping[str, float] | None
    size: int
    refinement: Refinement | None = None

    @property
    def fidelity(self) -> float:
        """1 minus the larger overall error of keys and values, at least 0."""
        return max(0.0, 1 - self.errors.worst)
