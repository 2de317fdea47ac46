"""The settings of a LoRA export."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from hnloader.attention.strengths import Strength
from hnloader.conversion.lora.layer_names import NameStyle
from hnloader.errors import HypernetworkError
from hnloader.files import read_regular

__all__ = ["KIND_NAMES", "BiasPlace", "Kind", "LoraOptions", "Rank"]

Kind = Literal["lora", "lycoris"]
KIND_NAMES: Mapping[Kind, str] = {"lora": "LoRA", "lycoris": "LyCORIS"}
Rank: TypeAlias = "int | Literal['auto', 'full']"
BiasPlace = Literal["output", "projection"]


@dataclass(frozen=True)
class LoraOptions:
    """The settings of `hnloader.export_lora`.

    Attributes:
        kind: `lora` writes low-rank factors, which every program reads. `lycoris` writes full differences, which are
            exact for affine hypernetworks. Default: `lora`.
        strength: Strength of hypernetworks that come without one; a number, or one per block as in `hnloader.attach`.
            Default: 1.
        rank: Rank of every layer of a LoRA. `auto` takes the least rank per projection that reaches `fidelity`, `full`
            the width of the layer. Default: `auto`.
        fidelity: With `auto`, 1 minus the error of keys and values, relative to the change that the hypernetworks make.
            Between 0 and 1. Default: 0.95.
        dtype: Type of the tensors in the file. Default: float32.
        names: Names of layers, `diffusers` or `original`. `auto` takes the names that every program reads: the original
            ones for SDXL, those of diffusers otherwise. Default: `auto`.
        bias: The place of the constant part of values in a LyCORIS file. `output` is the bias of the attention's output
            projection: exact, and applied by every program. `projection` is `diff_b` of `to_k` and `to_v`, which
            programs drop if their layers lack a bias there. Default: `output`.
        prompts: Prompts to sample contexts with: at least 5, or the path of a file with one per line. Default:
            `prompts.txt` in the folder of the model, otherwise a list of neutral prompts.
        images: Number of images to denoise for self-attention contexts. Default: 10.
        steps: Sampling steps per image. Default: 8.
        seed: Seed of the first image. Default: 0.
        guidance: Classifier-free guidance scale. Default: 5.
        refine: Minutes in which a LoRA learns the UNet's outputs with the hypernetworks, after the fit. Default: 0, no
            refining.

    Raises:
        HypernetworkError: The rank or the fidelity is out of range.

    Example:
        >>> from hnloader import LoraOptions
        >>> LoraOptions(rank=16).kind
        'lora'
    """

    kind: Kind = "lora"
    strength: Strength = 1.0
    rank: Rank = "auto"
    fidelity: float = 0.95
    dtype: torch.dtype = torch.float32
    names: NameStyle | Literal["auto"] = "auto"
    bias: BiasPlace = "output"
    prompts: Sequence[str] | str | os.PathLike[str] | None = None
    images: int = 10
    steps: int = 8
    seed: int = 0
    guidance: float = 5.0
    refine: float = 0.0

    def __post_init__(self) -> None:
        if self.rank not in ("auto", "full") and not (isinstance(self.rank, int) and self.rank >= 1):
            raise HypernetworkError(f"Found the rank {self.rank!r}. Give a whole number from 1, 'auto' or 'full'.")
        if not 0 < self.fidelity < 1:
            raise HypernetworkError(f"Found the fidelity {self.fidelity!r}. Give a number between 0 and 1.")
        if not 0 <= self.refine < math.inf:
            raise HypernetworkError(f"Found {self.refine:g} minutes for refining. Give a number of at least 0.")
        if self.refine and self.kind != "lora":
            raise HypernetworkError("Only a LoRA can be refined. Use kind 'lora', or refine 0.")

    @property
    def dtype_name(self) -> str:
        """Name of the dtype, such as `float16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def allowed_error(self) -> float:
        """Largest error of keys and values at rank `auto`, relative to the change."""
        return 1 - self.fidelity


def prompt_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a file of prompts; raise HypernetworkError if it cannot be read."""
    try:
        return read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HypernetworkError(
            f"{path}: cannot read the prompts ({error}). Save them as UTF-8, one per line."
        ) from error
