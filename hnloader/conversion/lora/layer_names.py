"""Names of a UNet's attention layers: in diffusers, in the original checkpoints, and in LoRA files.

diffusers calls a layer `down_blocks.1.attentions.0.transformer_blocks.0.attn1`; in checkpoints of the original
code (LDM, SGM) the same layer is `input_blocks.4.1.transformer_blocks.0.attn1`. LoRA files of kohya's sd-scripts
put `lora_unet_` before either and write underscores for the dots: SD 1 and SD 2 with diffusers' names, SDXL with
the original ones. docs/lora.md says which program reads which.
"""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["NameStyle", "diffusers_name", "lora_name", "original_name"]

NameStyle = Literal["diffusers", "original"]

# After any prefix, the part before the transformer blocks locates the layer.
_DIFFUSERS = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.(transformer_blocks\..+)")
_ORIGINAL = re.compile(r"(?:(input|output)_blocks\.(\d+)|middle_block)\.1\.(transformer_blocks\..+)")


def original_name(name: str, layers: int) -> str:
    """Return the original name of a layer, given its name in diffusers.

    Args:
        name: Such as `up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k`.
        layers: `layers_per_block` of the UNet; 2 in every Stable Diffusion.

    Raises:
        ValueError: `name` is outside of the attention of a UNet.
    """
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        raise ValueError(f"Expected a layer of a UNet's attention, got {name!r}.")
    section, block, position, rest = match.groups()
    if section is None:
        return f"middle_block.1.{rest}"
    index = int(block) * (layers + 1) + int(position)
    return f"input_blocks.{index + 1}.1.{rest}" if section == "down" else f"output_blocks.{index}.1.{rest}"


def diffusers_name(name: str, layers: int) -> str | None:
    """Return the name in diffusers of a tensor or layer, given its original name; None outside of the attention."""
    match = _ORIGINAL.fullmatch(name)
    if match is None:
        return None
    section, number, rest = match.groups()
    if section is None:
        return f"mid_block.attentions.0.{rest}"
    block, position = divmod(int(number) - (section == "input"), layers + 1)
    return f"{'down' if section == 'input' else 'up'}_blocks.{block}.attentions.{position}.{rest}"


def lora_name(name: str, style: NameStyle, layers: int) -> str:
    """Return the name of a layer in LoRA files: `lora_unet_` and its name with underscores for dots."""
    written = name if style == "diffusers" else original_name(name, layers)
    return "lora_unet_" + written.replace(".", "_")
