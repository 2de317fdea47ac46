"""Start a hypernetwork from a LoRA: the sides that come closest to its changes of keys and values.

A LoRA adds D to the weight W of a projection of one layer. A side changes the context of all layers of its scope, so
its map A should give W A = D in each of them. Least squares over the layers, with all contexts equally likely, give
A = (sum W^T W)^-1 sum W^T D. The side then computes A: exactly if the activation allows it, as relu(x) - relu(-x) = x
does, otherwise near zero, where an activation is nearly linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hnloader.attention.layout import AttentionSite
from hnloader.attention.matching import scope_at
from hnloader.conversion.lora.layer_names import NameStyle, lora_name
from hnloader.conversion.lora.lora_file import load
from hnloader.errors import ConfigError
from hnloader.network import SIDES, Hypernetwork, SequentialSide, SideName
from hnloader.scopes import Scope

__all__ = ["LoraStart", "read_lora", "start_from_lora"]

_STYLES: tuple[NameStyle, ...] = ("diffusers", "original")
# peft's and diffusers' names of the factors, after the name of the layer.
_PEFT = (("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight"))
# Added to the diagonal, relative to its mean, because some widths have fewer outputs than inputs.
_RIDGE = 1e-9
# Input of a nonlinear activation, relative to a context of variance 1.
_SMALL = 0.02
_ROWS = 64


@dataclass(frozen=True)
class LoraStart:
    """The error of a hypernetwork that follows a LoRA.

    Attributes:
        errors: Error of keys and values, relative to the change of the LoRA, on random contexts.
        layers: Projections of keys and values that the LoRA changes.
        others: Its other tensors' layers, which a hypernetwork cannot change.
    """

    errors: Mapping[SideName, float]
    layers: int
    others: int

    def note(self, path: str) -> str:
        """Return a message for the user."""
        left_out = f" It leaves out {self.others} other layers of the LoRA." if self.others else ""
        keys, values = (f"{self.errors[side]:.0%}" for side in SIDES)
        return (
            f"{path} is a LoRA. The hypernetwork starts near it: keys are off by {keys} and values by {values} of its "
            f"change, on random contexts.{left_out}"
        )


def read_lora(
    path: Path, sites: Sequence[AttentionSite], layers: int
) -> tuple[dict[tuple[int, SideName], Tensor], int]:
    """Return the changes of keys and values by index of the site and side, and the number of other layers.

    Args:
        path: A LoRA of kohya's, diffusers' or peft's names, or a LyCORIS file of full differences.
        sites: The attention layers of the UNet.
        layers: `layers_per_block` of the UNet, which the original names depend on.

    Raises:
        ConfigError: The file cannot be read, or changes no keys and values of this model.
    """
    try:
        tensors, _ = load(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"Setting 'start_from': {path} cannot be read as a LoRA ({error}).") from error
    found: dict[tuple[int, SideName], Tensor] = {}
    used: set[str] = set()
    for site in sites:
        for side in SIDES:
            name = f"{site.name}.to_{side}"
            prefixes = [lora_name(name, style, layers) for style in _STYLES] + [f"unet.{name}", name]
            for prefix in prefixes:
                if (delta := _delta(tensors, prefix)) is not None:
                    found[site.index, side] = delta
                    used.add(prefix)
    if not found:
        raise ConfigError(
            f"Setting 'start_from': {path} changes no keys or values of this model. Use a LoRA for this kind of model."
        )
    width = {site.index: site.width for site in sites}
    for (index, _), delta in found.items():
        if delta.shape[1] != width[index]:
            raise ConfigError(
                f"Setting 'start_from': {path} is for another model: it holds a change of {list(delta.shape)} for a "
                f"layer of width {width[index]}."
            )
    stems = {_stem(name) for name in tensors}
    return found, len(stems - used)


def start_from_lora(
    hypernetwork: Hypernetwork,
    sites: Sequence[AttentionSite],
    deltas: Mapping[tuple[int, SideName], Tensor],
    others: int = 0,
) -> LoraStart:
    """Set the sides of a new hypernetwork to come close to a LoRA, and measure how close they are.

    Args:
        hypernetwork: The hypernetwork, which is changed.
        sites: The attention layers of the UNet, with its modules.
        deltas: Changes of the projections, as from `read_lora`.
        others: Number of layers that are left out.

    Raises:
        ConfigError: Its architecture cannot compute a linear map.
    """
    wrong = dict.fromkeys(SIDES, 0.0)
    total = dict.fromkeys(SIDES, 0.0)
    by_scope: dict[tuple[Scope, SideName], list[tuple[Tensor, Tensor]]] = {}
    for site in sites:
        scope = scope_at(hypernetwork, site)
        for side in SIDES:
            weight = site.module.get_parameter(f"to_{side}.weight").detach().cpu().double()
            delta = deltas.get((site.index, side), torch.zeros_like(weight))
            if scope is None:
                total[side] += float(delta.square().sum()) * _ROWS
                wrong[side] += float(delta.square().sum()) * _ROWS
            else:
                by_scope.setdefault((scope, side), []).append((weight, delta))
    for (scope, side), pairs in by_scope.items():
        made = hypernetwork.side(scope, side)
        if not isinstance(made, SequentialSide):
            raise ConfigError("Setting 'start_from': a LoRA can only start a new hypernetwork of the usual kind.")
        _set_map(made.linear, _fitted(pairs))
        generator = torch.Generator().manual_seed(scope.width)
        context = torch.randn(1, _ROWS, scope.width, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            change = hypernetwork.transform(side, context, scope=scope) - context
        for weight, delta in pairs:
            wanted = context @ delta.T
            wrong[side] += float((change @ weight.T - wanted).square().sum())
            total[side] += float(wanted.square().sum())
    errors = {side: math.sqrt(wrong[side] / total[side]) if total[side] else 0.0 for side in SIDES}
    return LoraStart(errors, len(deltas), others)


def _stem(name: str) -> str:
    for end in (".lora_down.", ".lora_up.", ".alpha", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", ".diff"):
        name = name.partition(end)[0]
    return name


def _delta(tensors: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """Return the addition to a weight [outputs, inputs], in float64, or None."""
    if (diff := tensors.get(f"{prefix}.diff")) is not None:
        return diff.double()
    for down_name, up_name in (("lora_down.weight", "lora_up.weight"), *_PEFT):
        down, up = tensors.get(f"{prefix}.{down_name}"), tensors.get(f"{prefix}.{up_name}")
        if down is None or up is None:
            continue
        alpha = tensors.get(f"{prefix}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        # Some trainers store projections as convolutions of one pixel.
        return scale * up.double().flatten(1) @ down.double().flatten(1)
    return None


def _fitted(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the map A [width, width] of least squares for W A = D."""
    square = sum((weight.T @ weight for weight, _ in pairs), torch.zeros(()))
    product = sum((weight.T @ delta for weight, delta in pairs), torch.zeros(()))
    ridge = _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    found: Tensor = torch.linalg.solve(square + ridge, product)
    return found


@torch.no_grad()
def _set_map(modules: nn.Sequential, matrix: Tensor) -> None:
    """Have a network compute x -> x matrix^T, as nearly as it can."""
    kept = [module for module in modules if not isinstance(module, nn.Dropout)]
    linears = [module for module in kept if isinstance(module, nn.Linear)]
    activations = [module for module in kept if not isinstance(module, nn.Linear)]
    ends_linear = isinstance(kept[-1], nn.Linear)
    if len(linears) > 2 or len(activations) > len(linears) - 1 or not ends_linear:
        raise ConfigError(
            "Setting 'start_from': a LoRA can start a hypernetwork with at most one inner layer, without norm and "
            "without an activated output. Set hypernetwork.layer_structure to [1, 2, 1], for example."
        )
    for linear in linears:
        linear.bias.zero_()
    if len(linears) == 1:
        linears[0].weight.copy_(matrix)
        return
    left, sizes, right = torch.linalg.svd(matrix)
    activation = activations[0] if activations else nn.Identity()
    hidden = linears[0].out_features
    rank = min(len(sizes), hidden // 2 if activations else hidden)
    scale, slope = _slope(activation)
    down = right[:rank] * sizes[:rank].sqrt()[:, None] * scale
    up = left[:, :rank] * sizes[:rank].sqrt() / slope
    linears[1].weight.zero_()  # the other inner values have no effect at first
    linears[0].weight[:rank] = down.to(linears[0].weight)
    linears[1].weight[:, :rank] = up.to(linears[1].weight)
    if activations:
        linears[0].weight[rank : 2 * rank] = -down.to(linears[0].weight)
        linears[1].weight[:, rank : 2 * rank] = -up.to(linears[1].weight)


def _slope(activation: nn.Module) -> tuple[float, float]:
    """Return a scale s and a slope c with f(s x) - f(-s x) = c x, exactly or near zero; c = s for the identity."""
    if isinstance(activation, nn.Identity):
        return 1.0, 1.0
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    odd = activation(x) - activation(-x)
    slope = float(odd[-1] / x[-1])
    if torch.allclose(odd, slope * x, atol=1e-9) and abs(slope) > 1e-3:
        return 1.0, slope
    small = torch.tensor([_SMALL], dtype=torch.float64)
    slope = float(activation(small) - activation(-small)) / _SMALL
    if abs(slope) < 1e-3:
        raise ConfigError(
            f"Setting 'start_from': the activation {type(activation).__name__.lower()} is flat near zero, so it cannot "
            "follow a LoRA. Use another one, such as relu."
        )
    return _SMALL, _SMALL * slope
