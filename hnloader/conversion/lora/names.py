"""Names of a UNet's attention layers: in diffusers, in the original checkpoints, and in LoRA files.

diffusers calls a layer `down_blocks.1.attentions.0.transformer_blocks.0.attn1`; in checkpoints of the original
code (LDM, SGM) the same layer is `input_blocks.4.1.transformer_blocks.0.attn1`. LoRA files of kohya's sd-scripts
put `lora_unet_` before either and write underscores for the dots: SD 1 and SD 2 with diffusers' names, SDXL with
the original ones. docs/lora.md says which program reads which.
"""

from __future__ import annotations

import re
from typing import Literal

NameStyle = Literal["diffusers", "original"]

# After any prefix, everything up to the transformer blocks says where the layer is.
_DIFFUSERS = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.(transformer_blocks\..+)")
_ORIGINAL = re.compile(r"(?:(input|output)_blocks\.(\d+)|middle_block)\.1\.(transformer_blocks\..+)")


def original_name(name: str, layers: int) -> str:
    """The original code's name of what diffusers calls `name`.

    Args:
        name: Such as `up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k`.
        layers: The UNet's `layers_per_block`; 2 in every Stable Diffusion.

    Raises:
        ValueError: `name` is nothing within the attention of a UNet.
    """
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no layer of a UNet's attention")
    section, block, position, rest = match.groups()
    if section is None:
        return f"middle_block.1.{rest}"
    index = int(block) * (layers + 1) + int(position)
    return f"input_blocks.{index + 1}.1.{rest}" if section == "down" else f"output_blocks.{index}.1.{rest}"


def diffusers_name(name: str, layers: int) -> str | None:
    """What diffusers calls the tensor or layer with this original name; None outside of the attention."""
    match = _ORIGINAL.fullmatch(name)
    if match is None:
        return None
    section, number, rest = match.groups()
    if section is None:
        return f"mid_block.attentions.0.{rest}"
    block, position = divmod(int(number) - (section == "input"), layers + 1)
    return f"{'down' if section == 'input' else 'up'}_blocks.{block}.attentions.{position}.{rest}"


def lora_name(name: str, style: NameStyle, layers: int) -> str:
    """The name of a layer in LoRA files: `lora_unet_` and the layer's name with underscores."""
    written = name if style == "diffusers" else original_name(name, layers)
    return "lora_unet_" + written.replace(".", "_")
