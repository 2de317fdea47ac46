"""Count the multiply-adds of one call of a diffusers UNet or a decoder from its modules, without running it.

Convolutions, Linear layers and attention count; norms and activations do not. Of a decoder, only Linear layers count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hnloader.attention.decoders import input_width, is_transposed, output_width
from hnloader.attention.layout import AttentionSite

TEXT_TOKENS = 77

# Experts that all run for each token.
_RUN_WHOLE = ("Llama4TextExperts",)
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.|^(mid_block)\.")


@dataclass(frozen=True)
class Step:
    """One call of the model.

    Attributes:
        batch: Number of images; 2 for one image with guidance. For a language model, the number of rows.
        size: Height and width of the latents. None for a language model.
        text_tokens: Number of tokens in the text, or in each row.
        multiply_adds: Multiply-adds of the model without hypernetworks. None if its layout is unknown.
    """

    batch: int
    size: tuple[int, int] | None
    text_tokens: int
    multiply_adds: int | None

    def __str__(self) -> str:
        if self.size is None:
            return f"{self.batch} x {self.text_tokens} tokens"
        height, width = self.size
        return f"{self.batch} x {height} x {width} latents and {self.text_tokens} tokens"


def count_step(model: nn.Module, batch: int, size: tuple[int, int], text_tokens: int) -> Step:
    """Count one call of a diffusers UNet; the multiply-adds of another layout are unknown."""
    levels = _levels(model)
    if levels is None:
        return Step(batch, size, text_tokens, None)
    total = 0
    for name, module in model.named_modules():
        level = _level(name, levels)
        positions = _positions(size, level)
        if isinstance(module, nn.Conv2d):
            per_position = module.weight.numel() if module.weight is not None else 0
            total += per_position * _positions(size, level + (module.stride[0] > 1))
        elif name.endswith((".attn1", ".attn2")) and hasattr(module, "to_k"):
            total += _attention(module, positions, text_tokens)
        elif _is_linear(module) and ".attn1." not in name and ".attn2." not in name:
            rows = positions if ".attentions." in name else 1
            total += int(module.in_features) * int(module.out_features) * rows
    return Step(batch, size, text_tokens, total * batch)


def count_decoder_step(decoder: nn.Module, batch: int, tokens: int) -> Step:
    """Count one call of a decoder. Of the experts in a layer, those that a token uses count."""
    experts_used = getattr(getattr(decoder, "config", None), "num_experts_per_tok", None)
    if not isinstance(experts_used, int):
        if any(re.search("expert|moe", type(module).__name__, re.IGNORECASE) for module in decoder.modules()):
            return Step(batch, None, tokens, None)
        experts_used = 0
    return Step(batch, None, tokens, _per_token(decoder, experts_used) * batch * tokens)


def _per_token(module: nn.Module, experts_used: int) -> int:
    """Return the multiply-adds of a module in a decoder for each token."""
    if not hasattr(module, "base_layer") and (_is_linear(module) or is_transposed(module)):
        return input_width(module) * output_width(module)
    kind, total = type(module).__name__, 0
    for matrix in module.parameters(recurse=False):
        if matrix.dim() == 3 and "expert" in kind.lower():  # all experts in one tensor
            total += matrix.numel() if kind in _RUN_WHOLE else matrix.numel() // len(matrix) * experts_used
        elif matrix.dim() == 2 and "router" in kind.lower():
            total += matrix.numel()
    for name, child in module.named_children():
        found = _per_token(child, experts_used)
        alike = name == "experts" and isinstance(child, nn.ModuleList)
        total += found // len(child) * experts_used if alike else found  # type: ignore[arg-type]
    return total


def contexts_at(model: nn.Module, site: AttentionSite, step: Step) -> int:
    """Return the number of contexts that a site receives in a call."""
    if site.kind == "cross" or step.size is None:
        return step.batch * step.text_tokens
    return step.batch * _positions(step.size, _level(site.name, _levels(model) or {}))


def _attention(module: Any, positions: int, text_tokens: int) -> int:
    """Count the projections, and the products of queries with keys and of weights with values."""
    inner, queries = int(module.to_q.out_features), int(module.to_q.in_features)
    keys = text_tokens if getattr(module, "is_cross_attention", False) else positions
    projections = queries * inner * positions * 2 + input_width(module.to_k) * inner * keys * 2
    return projections + 2 * positions * keys * inner


def _is_linear(module: Any) -> bool:
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def _levels(model: Any) -> dict[str, int] | None:
    """Return how often the latents are halved before each block, by the block's name."""
    downs, ups = getattr(model, "down_blocks", None), getattr(model, "up_blocks", ())
    if not isinstance(downs, nn.ModuleList):
        return None
    levels, level = {}, 0
    for index, block in enumerate(downs):
        levels[f"down_blocks.{index}"] = level
        level += bool(getattr(block, "downsamplers", None))
    levels["mid_block"] = level
    for index, block in enumerate(ups if isinstance(ups, nn.ModuleList) else ()):
        levels[f"up_blocks.{index}"] = level
        level -= bool(getattr(block, "upsamplers", None))
    return levels


def _level(name: str, levels: dict[str, int]) -> int:
    """Return how often the latents are halved before a module, by its name."""
    match = _BLOCK.match(name)
    if match is None:
        return 0
    return levels[match[3] or f"{match[1]}_blocks.{match[2]}"] - (".upsamplers." in name)


def _positions(size: Sequence[int], level: int) -> int:
    return math.prod(math.ceil(length / 2**level) for length in size)
