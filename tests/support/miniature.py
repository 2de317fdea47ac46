"""The smallest model with attention layers of diffusers: a call takes a fraction of a millisecond."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, TEXT_WIDTH = 8, 12


class Layers(nn.Module):
    """Self- and cross-attention, as in a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"query_dim": WIDTH, "heads": 2, "dim_head": 4}
        self.attn1 = Attention(**sizes)
        self.attn2 = Attention(**sizes, cross_attention_dim=TEXT_WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.attn1(self.norm(x))
        return x + self.attn2(self.norm(x), text)


class Block(nn.Module):
    """A block with the names of modules in diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([nn.Module()])
        self.attentions[0].transformer_blocks = nn.ModuleList([Layers()])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.attentions[0].transformer_blocks[0](x, text)


class Miniature(nn.Module):
    """A down and an up block, with two attention layers each; call it as a UNet of diffusers.

    Attributes:
        checkpointing: True to compute the blocks again in the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down_blocks = nn.ModuleList([Block()])
        self.up_blocks = nn.ModuleList([Block()])
        self.checkpointing = False
        self.eval().requires_grad_(False)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        x = sample + timestep.to(sample.dtype) / 1000
        for block in (*self.down_blocks, *self.up_blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, encoder_hidden_states, use_reentrant=False)
            else:
                x = block(x, encoder_hidden_states)
        return x

    def attention_layers(self) -> list[Attention]:
        """Return the layers in the order in which they run."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    def fuse(self) -> None:
        """Fuse the projections, as `fuse_qkv_projections` of a UNet does."""
        for layer in self.attention_layers():
            layer.fuse_projections(fuse=True)
            layer.set_processor(FusedAttnProcessor2_0())

    def unfuse(self) -> None:
        """Go back to the separate projections, as `unfuse_qkv_projections` of a UNet does."""
        for layer in self.attention_layers():
            layer.set_processor(AttnProcessor2_0())
