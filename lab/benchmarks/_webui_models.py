"""Make the launch-bound UNet in the layout of the webuis, with their Linear layers and their way to call it.

The layers of the hosts are those of the stand-ins in `tests/support/standins`, and the extension's own code decides
which of them are plain. As in both webuis, each step concatenates the texts into a new tensor.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.benchmarks._models import DEVICE, TOKENS, Subject, filled

_WIDTHS = (32, 64, 64, 64)
_TEXT_WIDTH = 48
_HEADS = 8
_SIZE = 8

MakeLinear = Callable[..., nn.Module]
PlainLinears = Callable[[], Callable[[nn.Module], bool]]


# -- the model, as in the original code of Stable Diffusion 1


class CrossAttention(nn.Module):
    def __init__(self, width: int, context_width: int, linear: MakeLinear) -> None:
        super().__init__()
        self.to_q = linear(width, width, bias=False)
        self.to_k = linear(context_width, width, bias=False)
        self.to_v = linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        parts = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return projected


class FeedForward(nn.Module):
    def __init__(self, width: int, linear: MakeLinear) -> None:
        super().__init__()
        self.proj = linear(width, 8 * width)
        self.out = linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        result: Tensor = self.out(hidden * functional.gelu(gate))
        return result


class BasicTransformerBlock(nn.Module):
    def __init__(self, width: int, linear: MakeLinear) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, linear)
        self.attn2 = CrossAttention(width, _TEXT_WIDTH, linear)
        self.ff = FeedForward(width, linear)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        changed: Tensor = self.ff(self.norm3(x)) + x
        return changed


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, linear: MakeLinear) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(width, linear)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        rows = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        for block in self.transformer_blocks:
            rows = block(rows, context)
        changed: Tensor = self.proj_out(rows.transpose(1, 2).reshape(x.shape)) + x
        return changed


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, linear: MakeLinear) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), linear(4 * _WIDTHS[0], outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = self.in_layers(x) + self.emb_layers(embedded)[..., None, None]
        changed: Tensor = self.skip_connection(x) + self.out_layers(hidden)
        return changed


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wider: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0))
        return wider


class Block(nn.Sequential):
    def forward(  # type: ignore[override]
        self, x: Tensor, embedded: Tensor, context: Tensor
    ) -> Tensor:
        for module in self:
            if isinstance(module, ResBlock):
                x = module(x, embedded)
            elif isinstance(module, SpatialTransformer):
                x = module(x, context)
            else:
                x = module(x)
        return x


class UNetModel(nn.Module):
    """Stable Diffusion 1's UNet with tiny widths.

    Attributes:
        plain_linears: See `extension.hosts.protocol.FindsPlainLinears`.
    """

    plain_linears: ClassVar[PlainLinears]

    def __init__(self, linear: MakeLinear) -> None:
        super().__init__()

        def attention(level: int) -> list[nn.Module]:
            return [SpatialTransformer(_WIDTHS[level], linear)] if level < 3 else []

        width = _WIDTHS[0]
        self.time_embed = nn.Sequential(linear(width, 4 * width), nn.SiLU(), linear(4 * width, 4 * width))
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(4, width, 3, padding=1))])
        skips = [width]
        for level, width in enumerate(_WIDTHS):
            for _ in range(2):
                self.input_blocks.append(Block(ResBlock(skips[-1], width, linear), *attention(level)))
                skips.append(width)
            if level < 3:
                self.input_blocks.append(Block(nn.Conv2d(width, width, 3, stride=2, padding=1)))
                skips.append(width)
        self.middle_block = Block(
            ResBlock(width, width, linear), SpatialTransformer(width, linear), ResBlock(width, width, linear)
        )
        self.output_blocks = nn.ModuleList()
        for level in (3, 2, 1, 0):
            for position in range(3):
                made = ResBlock(width + skips.pop(), _WIDTHS[level], linear)
                width = _WIDTHS[level]
                up = [Upsample(width)] if level and position == 2 else []
                self.output_blocks.append(Block(made, *attention(level), *up))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Return the noise in `x` [batch, 4, 8, 8] at `timesteps` [batch], with `context` [batch, tokens, width]."""
        half = _WIDTHS[0] // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        angles = timesteps[:, None].float() * frequencies
        embedded = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        kept = []
        for block in self.input_blocks:
            x = block(x, embedded, context)
            kept.append(x)
        x = self.middle_block(x, embedded, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], 1), embedded, context)
        noise: Tensor = self.out(x)
        return noise


# -- the hosts


@dataclass(frozen=True)
class WebuiSubject(Subject):
    """A model that a webui calls, and the state of the process in which it does.

    Attributes:
        sampling: Context of each step.
    """

    sampling: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext, repr=False)

    def copy(self) -> nn.Module:
        with torch.inference_mode(self._inference):
            return super().copy()

    def step(self, model: nn.Module, *, new_text: bool = True) -> Callable[[], Tensor]:
        """Return a function that runs one step of a copy. The text is a new tensor in each step."""
        halves = self.inputs["context"].chunk(2)
        timesteps = [torch.full((2,), float(each), device=DEVICE) for each in range(700, 300, -40)]

        def run() -> Tensor:
            timesteps.append(timesteps.pop(0))
            with self.sampling():
                output: Tensor = model(self.inputs["x"], timesteps[0], context=torch.cat(halves))
            return output

        return run

    @property
    def _inference(self) -> bool:
        """True if the webui makes and calls its models in inference mode."""
        return next(self.model.parameters()).is_inference()


def a1111() -> WebuiSubject:
    """Make the model of AUTOMATIC1111's webui, whose Lora extension patches the layers. No LoRA is loaded."""
    webui = _stand_in("a1111")
    webui.lora.undo()  # it is patched in each step only, since other models are measured in the same process
    from extension.hosts.a1111.plain_linears import plain_linears

    @contextmanager
    def sampling() -> Iterator[None]:
        webui.lora.patch()
        try:
            with torch.no_grad():
                yield
        finally:
            webui.lora.undo()

    model = _model(nn.Linear, plain_linears)
    for name, module in model.named_modules():
        module.network_layer_name = name
    return _subject("AUTOMATIC1111's layout", model, sampling)


def forge() -> WebuiSubject:
    """Make the model of Forge, with its Linear. It samples in inference mode."""
    _stand_in("forge")
    from extension.hosts.forge.forge_host import Forge

    operations: ModuleType = __import__("backend.operations").operations
    with torch.inference_mode():
        model = _model(operations.ForgeOperations.Linear, Forge().plain_linears)
        return _subject("Forge's layout", model, torch.inference_mode)


_STACK = ExitStack()
atexit.register(_STACK.close)


def _stand_in(family: str) -> Any:
    """Return a stand-in of a family that stays until this process ends."""
    from tests.support.standins.webui import running

    folder = Path(_STACK.enter_context(TemporaryDirectory()))
    return _STACK.enter_context(running(folder, family))


def _model(linear: MakeLinear, plain_linears: PlainLinears) -> nn.Module:
    kind = type("UNetModel", (UNetModel,), {"plain_linears": staticmethod(plain_linears)})
    return filled(partial(kind, linear), torch.float32)


def _subject(name: str, model: nn.Module, sampling: Callable[[], AbstractContextManager[Any]]) -> WebuiSubject:
    inputs = {
        "x": torch.randn(2, 4, _SIZE, _SIZE, device=DEVICE),
        "timesteps": torch.full((2,), 500.0, device=DEVICE),
        "context": torch.randn(2, TOKENS, _TEXT_WIDTH, device=DEVICE),
    }
    return WebuiSubject(f"Launch-bound, {name}", model, inputs, sampling=sampling)
