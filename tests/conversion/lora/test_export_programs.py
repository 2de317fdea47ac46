"""Every name in a file is one that each program finds its layer by, in UNets of the real layouts.

How the programs find a layer was read in their sources; the rules below are those facts in our words:

- kohya's sd-scripts name a layer `lora_unet_` and its module's name with underscores: of diffusers' UNet for SD 1 and
  SD 2, of the original one for SDXL.
- AUTOMATIC1111's webui takes what is before the first dot. Names of diffusers' blocks become those of the original
  blocks by arithmetic on their numbers; where that gives no layer, `lora_unet` is replaced by `diffusion_model`. Layers
  are registered as `diffusion_model_` and the original name with underscores.
- ComfyUI, and Forge, list the weights of the original UNet, and each is known by both names after `lora_unet_`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from hnloader.conversion.lora import LoraOptions, export_lora
from hnloader.conversion.lora.lora_file import name_style
from tests.support.lora_models import make_affine, read
from tests.support.small_models import WIDTHS, make_unet

# Where the transformers of the real models are, and of how many blocks each is made: original name, diffusers' name.
_DOWN = {1: (0, 0), 2: (0, 1), 4: (1, 0), 5: (1, 1), 7: (2, 0), 8: (2, 1)}
_UP = {3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (2, 0), 7: (2, 1), 8: (2, 2), 9: (3, 0), 10: (3, 1), 11: (3, 2)}
_SD = [
    *((f"input_blocks.{number}.1", f"down_blocks.{block}.attentions.{at}", 1) for number, (block, at) in _DOWN.items()),
    ("middle_block.1", "mid_block.attentions.0", 1),
    *((f"output_blocks.{number}.1", f"up_blocks.{block}.attentions.{at}", 1) for number, (block, at) in _UP.items()),
]
_SDXL = [
    ("input_blocks.4.1", "down_blocks.1.attentions.0", 2),
    ("input_blocks.5.1", "down_blocks.1.attentions.1", 2),
    ("input_blocks.7.1", "down_blocks.2.attentions.0", 10),
    ("input_blocks.8.1", "down_blocks.2.attentions.1", 10),
    ("middle_block.1", "mid_block.attentions.0", 10),
    ("output_blocks.0.1", "up_blocks.0.attentions.0", 10),
    ("output_blocks.1.1", "up_blocks.0.attentions.1", 10),
    ("output_blocks.2.1", "up_blocks.0.attentions.2", 10),
    ("output_blocks.3.1", "up_blocks.1.attentions.0", 2),
    ("output_blocks.4.1", "up_blocks.1.attentions.1", 2),
    ("output_blocks.5.1", "up_blocks.1.attentions.2", 2),
]
PROJECTIONS = ("to_k", "to_v", "to_out.0")
FAMILIES = {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL"}
LAYOUTS = {"sd1": _SD, "sd2": _SD, "sdxl": _SDXL}


def layers(kind: str, projections: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Original and diffusers' names of these projections of all attention layers."""
    for original, diffusers, depth in LAYOUTS[kind]:
        for block in range(depth):
            for attention in ("attn1", "attn2"):
                for projection in projections:
                    rest = f"transformer_blocks.{block}.{attention}.{projection}"
                    yield f"{original}.{rest}", f"{diffusers}.{rest}"


def underscored(name: str) -> str:
    return name.replace(".", "_")


@functools.cache
def named_by_kohya(kind: str) -> dict[str, str]:
    return {
        f"lora_unet_{underscored(original if kind == 'sdxl' else diffusers)}": original
        for original, diffusers in layers(kind, PROJECTIONS)
    }


@functools.cache
def registered_in_a1111(kind: str) -> dict[str, str]:
    return {f"diffusion_model_{underscored(original)}": original for original, _ in layers(kind, PROJECTIONS)}


@functools.cache
def known_to_comfyui(kind: str) -> dict[str, str]:
    known: dict[str, str] = {}
    for original, diffusers in layers(kind, PROJECTIONS):
        known[f"lora_unet_{underscored(original)}"] = original
        known[f"lora_unet_{underscored(diffusers)}"] = original
    return known


def in_kohya(kind: str, key: str) -> str | None:
    """The original name of the layer that a program applies `key` to; None for none. So do the others."""
    return named_by_kohya(kind).get(key)


def in_comfyui(kind: str, key: str) -> str | None:
    return known_to_comfyui(kind).get(key)


def in_a1111(kind: str, key: str) -> str | None:
    registered = registered_in_a1111(kind)
    translated = key
    if match := re.match(r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        number = 1 + 3 * int(match[1]) + int(match[2])
        translated = f"diffusion_model_input_blocks_{number}_1_{match[3]}"
    elif match := re.match(r"lora_unet_mid_block_attentions_\d+_(.+)", key):
        translated = f"diffusion_model_middle_block_1_{match[1]}"
    elif match := re.match(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        number = 3 * int(match[1]) + int(match[2])
        translated = f"diffusion_model_output_blocks_{number}_1_{match[3]}"
    return registered.get(translated) or registered.get(key.replace("lora_unet", "diffusion_model"))


PROGRAMS = {"kohya": in_kohya, "a1111": in_a1111, "comfyui": in_comfyui}
# Parts of a layer. ComfyUI and the webui read these two forms; alpha is optional.
LORA_PARTS = {"lora_down.weight", "lora_up.weight", "alpha"}
FULL_PARTS = {"diff", "diff_b"}


def real_layout(kind: str) -> Any:
    changes: dict[str, object] = {"layers_per_block": 2}
    if kind == "sdxl":
        changes["transformer_layers_per_block"] = (1, 2, 10)
    return make_unet(kind, **changes)


@pytest.fixture(scope="module", params=["lora", "lycoris"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By family, the names in a file of that form."""
    found = {}
    for kind in LAYOUTS:
        path = tmp_path_factory.mktemp(request.param) / f"{kind}.safetensors"
        settings: dict[str, Any] = {"rank": 1, "images": 5, "steps": 1} if request.param == "lora" else {}
        # As `names="auto"` chooses for a model of this family; these are too narrow to be taken for one.
        settings["names"] = name_style(FAMILIES[kind])
        export_lora(make_affine(WIDTHS[kind]), real_layout(kind), path, LoraOptions(kind=request.param, **settings))
        found[kind] = read(path)[0].keys()
    return request.param, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_find_every_layer(made: Any, program: str, kind: str) -> None:
    form, found = made
    by_layer: dict[str, set[str]] = {}
    for name in found[kind]:
        key, _, part = name.partition(".")
        layer = PROGRAMS[program](kind, key)
        assert layer is not None, f"{program} finds no layer for {name}"
        by_layer.setdefault(layer, set()).add(part)
    projections = ("to_k", "to_v") if form == "lora" else ("to_k", "to_v", "to_out.0")
    assert by_layer.keys() == {original for original, _ in layers(kind, projections)}
    for layer, parts in by_layer.items():
        if form == "lora":
            assert parts == LORA_PARTS
        else:
            assert parts == (FULL_PARTS if layer.endswith("to_out.0") else {"diff"})


def test_other_names_are_not_found() -> None:
    """The rules above can say no."""
    for find in PROGRAMS.values():
        assert find("sd1", "lora_unet_down_blocks_3_attentions_0_transformer_blocks_0_attn2_to_k") is None
        assert find("sdxl", "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k") is None
    sdxl = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert in_kohya("sdxl", sdxl) is None  # which is why files for SDXL have the original names
    assert in_comfyui("sdxl", sdxl) == in_a1111("sdxl", sdxl) == "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
