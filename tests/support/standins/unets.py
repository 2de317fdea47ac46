"""UNets in the layout of the webuis: `input_blocks`, `middle_block`, `output_blocks`, numbered as in SD 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (8, 16, 16, 16)
TEXT_WIDTH = 24
ALL_WIDTHS = (8, 16, 24)

MakeLinear = Callable[..., nn.Module]


class CrossAttention(nn.Module):
    """Attention in the layout of both hosts. In A1111 it also applies the built-in hypernetworks."""

    def __init__(self, width: int, context_width: int, linear: MakeLinear, built_in: Sequence | None) -> None:
        super().__init__()
        self.heads = 2
        self.to_q = linear(width, width, bias=False)
        self.to_k = linear(context_width, width, bias=False)
        self.to_v = linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(linear(width, width), nn.Dropout(0.0))
        self.built_in = SimpleNamespace(hypernetworks=() if built_in is None else built_in)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context_k = context_v = x if context is None else context
        for hypernetwork in self.built_in.hypernetworks:
            context_k, context_v = hypernetwork(context_k, context_v)
        parts = self.to_q(x), self.to_k(context_k), self.to_v(context_v)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class BasicTransformerBlock(nn.Module):
    def __init__(self, width: int, linear: MakeLinear, built_in: Sequence | None) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, linear, built_in)
        self.attn2 = CrossAttention(width, TEXT_WIDTH, linear, built_in)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.attn2(self.norm2(x), context)


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, linear: MakeLinear, built_in: Sequence | None) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(width, linear, built_in)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            rows = block(rows, context)
        return x + rows.transpose(1, 2).reshape(x.shape)


class ResBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(width_in, width_out, 1)
        self.time = nn.Linear(1, width_out)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.skip(x) + self.time(timesteps[:, None].to(x) / 1000)[..., None, None].tanh()


class Downsample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 2, ceil_mode=True)


class Upsample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0)


class Block(nn.Sequential):
    """A sequence of modules, each called with its own arguments."""

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        for module in self:
            if isinstance(module, ResBlock):
                x = module(x, timesteps)
            elif isinstance(module, SpatialTransformer):
                x = module(x, context)
            else:
                x = module(x)
        return x


class UNetModel(nn.Module):
    """Called as `(x [B, 4, H, W], timesteps [B], context=[B, tokens, 24])`."""

    def __init__(self, linear: MakeLinear = nn.Linear, built_in: Sequence | None = None) -> None:
        super().__init__()

        def attention(level: int) -> list[nn.Module]:
            return [SpatialTransformer(WIDTHS[level], linear, built_in)] if level < 3 else []

        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(4, WIDTHS[0], 1))])
        skips = [WIDTHS[0]]
        for level, width in enumerate(WIDTHS):
            for _ in range(2):
                self.input_blocks.append(Block(ResBlock(skips[-1], width), *attention(level)))
                skips.append(width)
            if level < 3:
                self.input_blocks.append(Block(Downsample()))
                skips.append(width)
        width = WIDTHS[-1]
        self.middle_block = Block(
            ResBlock(width, width), SpatialTransformer(width, linear, built_in), ResBlock(width, width)
        )
        self.output_blocks = nn.ModuleList()
        for level in (3, 2, 1, 0):
            for position in range(3):
                up = [Upsample()] if level and position == 2 else []
                self.output_blocks.append(Block(ResBlock(width + skips.pop(), WIDTHS[level]), *attention(level), *up))
                width = WIDTHS[level]
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        kept = []
        for block in self.input_blocks:
            x = block(x, timesteps, context)
            kept.append(x)
        x = self.middle_block(x, timesteps, context)
        for block in self.output_blocks:
            skip = kept.pop()
            x = block(torch.cat([x[..., : skip.shape[-2], : skip.shape[-1]], skip], 1), timesteps, context)
        return self.out(x)


def make_unet(seed: int, linear: MakeLinear = nn.Linear, built_in: Sequence | None = None) -> UNetModel:
    """Return a random UNet; the caller's random state stays unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNetModel(linear, built_in).eval().requires_grad_(False)


def make_sd_model(name: str, unet: nn.Module, *, forge: bool = False) -> SimpleNamespace:
    """Return an object like `p.sd_model`, as far as its UNet is concerned."""
    inner = SimpleNamespace(diffusion_model=unet)
    model = SimpleNamespace(name=name, sd_model_hash=f"{abs(hash(name)):010x}"[:10], is_sdxl=False)
    if forge:
        inner.computation_dtype = torch.float32
        model.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=inner, load_device=torch.device("cpu")))
    else:
        model.model = inner
    return model
