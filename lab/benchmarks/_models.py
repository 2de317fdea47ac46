"""Make the models whose steps are timed, with random weights, real shapes and fixed inputs."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.utils import logging
from torch import Tensor, nn

from hnloader.attention import find_sites
from hnloader.demo import pipeline_folder

logging.set_verbosity_error()

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS = 77
# The diffusers configuration of the SDXL UNet; `sdxl` reduces the number of layers but keeps the widths.
_SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "projection_class_embeddings_input_dim": 2816,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
}


@dataclass(frozen=True)
class Subject:
    """A model and the inputs of one step.

    Attributes:
        title: Name in headings.
        model: The UNet, or another module with attention layers.
        inputs: Keyword arguments of a call.
        compiled: True if copies of the model are compiled.
    """

    title: str
    model: nn.Module
    inputs: dict[str, Any] = field(repr=False)
    compiled: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths of all contexts."""
        return tuple(sorted({site.width for site in find_sites(self.model)}))

    @property
    def cross_widths(self) -> tuple[int, ...]:
        """Return the widths of the text."""
        return tuple(sorted({site.width for site in find_sites(self.model) if site.kind == "cross"}))

    def as_compiled(self) -> Subject:
        """Return the subject with compiled steps."""
        return replace(self, title=f"{self.title}, compiled", compiled=True)

    def copy(self) -> nn.Module:
        """Return a copy with its own `to_k` and `to_v` that shares all other tensors with the original.

        A hypernetwork can then be folded into each copy, and ten copies of a model of 3.4 GB fit into memory.
        """
        projections = {
            id(parameter)
            for site in find_sites(self.model)
            for part in ("to_k", "to_v")
            for parameter in getattr(site.module, part).parameters()
        }
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(each): each for each in tensors if id(each) not in projections})

    def step(self, model: nn.Module, *, new_text: bool = False) -> Callable[[], Tensor]:
        """Return a function that runs one step of a copy.

        As in a pipeline, each step has the next timestep, and all steps have the same text. If `new_text`, each step
        has a new tensor with the same values, as in a program that concatenates its texts in each step.
        """
        call = torch.compile(model) if self.compiled else model
        timesteps = itertools.cycle(torch.arange(700, 300, -40, device=DEVICE))

        def run() -> Tensor:
            changed = {"timestep": next(timesteps)} if "timestep" in self.inputs else {}
            if new_text:
                changed["encoder_hidden_states"] = self.inputs["encoder_hidden_states"].clone()
            with torch.no_grad():
                output: Tensor = call(**{**self.inputs, **changed})[0]
            return output

        return run


def sd1(size: int, batch: int, dtype: torch.dtype = torch.float32, *, full: bool = True) -> Subject:
    """Make the UNet of Stable Diffusion 1.5; if not `full`, with half its widths and one layer per block."""
    if full:
        model = filled(lambda: UNet2DConditionModel(cross_attention_dim=768), dtype)
    else:
        channels = (160, 320, 640, 640)
        model = filled(
            lambda: UNet2DConditionModel(
                cross_attention_dim=768, block_out_channels=channels, layers_per_block=1, attention_head_dim=8
            ),
            dtype,
        )
    name = "SD 1" if full else "SD 1, reduced"
    return Subject(_title(name, model, size, batch, dtype), model, step_inputs(size, batch, 768, dtype))


def launch_bound() -> Subject:
    """Make a UNet with the depth of Stable Diffusion 1.5 and tiny widths.

    Its time goes into calls of Python and of kernels instead of arithmetic, as for a whole model on a fast GPU.
    """
    model = filled(
        lambda: UNet2DConditionModel(cross_attention_dim=48, block_out_channels=(32, 64, 64, 64)), torch.float32
    )
    return Subject(_title("Launch-bound", model, 8, 1, torch.float32), model, step_inputs(8, 1, 48, torch.float32))


def sdxl(size: int, batch: int, dtype: torch.dtype = torch.float32) -> Subject:
    """Make a UNet with SDXL's widths, one layer per block and fewer transformer layers."""
    model = filled(
        lambda: UNet2DConditionModel(layers_per_block=1, transformer_layers_per_block=(1, 1, 2), **_SDXL), dtype
    )
    inputs = step_inputs(size, batch, 2048, dtype)
    inputs["added_cond_kwargs"] = {
        "text_embeds": torch.randn(batch, 1280, device=DEVICE, dtype=dtype),
        "time_ids": torch.tensor([[8.0 * size, 8.0 * size, 0, 0, 8.0 * size, 8.0 * size]] * batch, device=DEVICE),
    }
    return Subject(_title("SDXL, reduced", model, size, batch, dtype), model, inputs)


def bundled(batch: int = 2) -> Subject:
    """Load the UNet of the bundled pipeline."""
    model = UNet2DConditionModel.from_pretrained(pipeline_folder(), subfolder="unet")
    model = model.to(DEVICE, torch.float32).eval().requires_grad_(False)
    text = json.loads((pipeline_folder() / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    size, width = int(model.config.sample_size), int(model.config.cross_attention_dim)
    channels, tokens = int(model.config.in_channels), int(text["max_position_embeddings"])
    inputs = step_inputs(size, batch, width, torch.float32, channels=channels, tokens=tokens)
    return Subject(_title("Bundled pipeline's UNet", model, size, batch, torch.float32), model, inputs)


def blocks(size: int, batch: int) -> Subject:
    """Make one transformer block for each level of SD 1 at its real size: the layers that hypernetworks change."""
    model = filled(TransformerBlocks, torch.float32)
    inputs = {
        "sample": torch.randn(batch, 320, size, size, device=DEVICE),
        "encoder_hidden_states": torch.randn(batch, TOKENS, 768, device=DEVICE),
    }
    return Subject(_title("Transformer blocks of SD 1", model, size, batch, torch.float32), model, inputs)


class TransformerBlocks(nn.Module):
    """Transformer blocks of SD 1's four levels, with the names of the UNet so that hnloader finds the layers."""

    def __init__(self) -> None:
        super().__init__()

        def level(width: int) -> nn.Module:
            block = BasicTransformerBlock(width, 8, width // 8, cross_attention_dim=768)
            inner = nn.Module()
            inner.transformer_blocks = nn.ModuleList([block])
            outer = nn.Module()
            outer.attentions = nn.ModuleList([inner])
            return outer

        self.down_blocks = nn.ModuleList([level(320), level(640), level(1280)])
        self.mid_block = level(1280)

    def forward(self, sample: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        """Run the levels on `sample` [batch, 320, size, size]; each gets a quarter of the tokens and more channels."""
        for level in [*self.down_blocks, self.mid_block]:
            block: Any = level.attentions[0].transformer_blocks[0]
            width = block.norm1.weight.shape[0]
            if level is not self.down_blocks[0]:
                sample = nn.functional.avg_pool2d(sample, 2).repeat(1, width // sample.shape[1], 1, 1)
            batch, _, height, _ = sample.shape
            hidden = block(sample.flatten(2).transpose(1, 2).contiguous(), encoder_hidden_states=encoder_hidden_states)
            sample = hidden.transpose(1, 2).reshape(batch, width, height, height)
        return (sample,)


def filled(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Return the module with random weights; torch's own initialization takes minutes."""
    with torch.device("meta"):
        module = make().to(dtype)
    module.to_empty(device=DEVICE).eval().requires_grad_(False)
    noise = torch.empty(2**20, device=DEVICE).uniform_(-0.03, 0.03, generator=torch.Generator(DEVICE).manual_seed(0))
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        for part in parameter.view(-1).split(noise.numel()):
            part.copy_(noise[: part.numel()])
    return module


def step_inputs(
    size: int, batch: int, width: int, dtype: torch.dtype, *, channels: int = 4, tokens: int = TOKENS
) -> dict[str, Any]:
    """Return the keyword arguments of a step of a UNet whose text has the given width."""
    return {
        "sample": torch.randn(batch, channels, size, size, device=DEVICE, dtype=dtype),
        "timestep": torch.tensor(500, device=DEVICE),
        "encoder_hidden_states": torch.randn(batch, tokens, width, device=DEVICE, dtype=dtype),
    }


def _title(name: str, model: nn.Module, size: int, batch: int, dtype: torch.dtype) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    type_name = str(dtype).removeprefix("torch.")
    return f"{name} ({millions:.0f} M parameters), {size} x {size} latents, batch {batch}, {type_name}"
