"""The names of layers in LoRA files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnloader.conversion.lora.layer_names import diffusers_name, lora_name, original_name
from hnloader.conversion.lora.lora_file import name_style

BLOCK = "transformer_blocks.0.attn2.to_k"

# From published checkpoints of both layouts.
KNOWN = {
    f"down_blocks.0.attentions.0.{BLOCK}": f"input_blocks.1.1.{BLOCK}",
    f"down_blocks.2.attentions.1.{BLOCK}": f"input_blocks.8.1.{BLOCK}",
    f"mid_block.attentions.0.{BLOCK}": f"middle_block.1.{BLOCK}",
    f"up_blocks.1.attentions.0.{BLOCK}": f"output_blocks.3.1.{BLOCK}",
    f"up_blocks.3.attentions.2.{BLOCK}": f"output_blocks.11.1.{BLOCK}",
}


@pytest.mark.parametrize("name", KNOWN)
def test_names_of_stable_diffusion(name: str) -> None:
    assert original_name(name, 2) == KNOWN[name]
    assert diffusers_name(KNOWN[name], 2) == name


@given(st.sampled_from(["down", "up"]), st.integers(0, 5), st.integers(0, 9), st.integers(1, 4))
def test_original_names_round_trip(section: str, block: int, position: int, layers: int) -> None:
    position %= layers + (section == "up")  # up blocks have a layer more
    name = f"{section}_blocks.{block}.attentions.{position}.{BLOCK}"
    assert diffusers_name(original_name(name, layers), layers) == name


def test_names_in_files() -> None:
    name = f"down_blocks.1.attentions.0.{BLOCK}"
    assert lora_name(name, "diffusers", 2) == "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert lora_name(name, "original", 2) == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def test_name_style_of_each_family() -> None:
    assert [name_style(family) for family in ("SD 1", "SD 2", "SDXL", None)] == [
        "diffusers",
        "diffusers",
        "original",
        "diffusers",
    ]


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0.conv1", "conv_in", "mid_block.attentions.0.proj_in"])
def test_layers_outside_of_the_attention_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        original_name(name, 2)


@pytest.mark.parametrize("name", ["input_blocks.0.0.weight", "out.2.bias", "time_embed.0.weight"])
def test_other_original_tensors_are_left_alone(name: str) -> None:
    assert diffusers_name(name, 2) is None
