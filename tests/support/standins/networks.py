"""The built-in Lora extension of AUTOMATIC1111. It replaces the forward of all Linears, convolutions and norms.

A layer writes the LoRAs of the job into its weight, in place, when it is next called. It records in
`network_current_names` what its weight holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from modules import shared
from torch import Tensor, nn


@dataclass
class Network:
    """A LoRA: what it adds to a weight, by the name of the layer."""

    name: str
    modules: dict[str, Tensor]
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0
    dyn_dim: int | None = None
    bundle_embeddings: dict[str, Any] = field(default_factory=dict)


loaded_networks: list[Network] = []  # those of the running job
originals: Any = None


def patch() -> None:
    global originals
    originals = SimpleNamespace(Linear_load_state_dict=nn.Linear._load_from_state_dict)
    nn.Linear._load_from_state_dict = network_Linear_load_state_dict
    for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
        setattr(originals, f"{kind.__name__}_forward", kind.forward)
        kind.forward = globals()[f"network_{kind.__name__}_forward"]


def undo() -> None:
    nn.Linear._load_from_state_dict = originals.Linear_load_state_dict
    for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
        kind.forward = getattr(originals, f"{kind.__name__}_forward")


def assign_network_names_to_compvis_modules(sd_model: Any) -> None:
    for name, module in sd_model.model.diffusion_model.named_modules():
        module.network_layer_name = "diffusion_model_" + name.replace(".", "_")


def network_apply_weights(self: nn.Module) -> None:
    name = getattr(self, "network_layer_name", None)
    if name is None:
        return
    current = getattr(self, "network_current_names", ())
    wanted = tuple((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in loaded_networks)
    weight = getattr(self, "network_weights_backup", None)
    if weight is None and wanted:
        weight = self.network_weights_backup = self.weight.to("cpu", copy=True)
    bias = getattr(self, "network_bias_backup", None)
    if bias is None and wanted and self.bias is not None:
        bias = self.network_bias_backup = self.bias.to("cpu", copy=True)
    if current == wanted:
        return
    with torch.no_grad():
        self.weight.copy_(weight)
        for network in loaded_networks:
            if name in network.modules:
                self.weight += network.unet_multiplier * network.modules[name].to(self.weight)
    self.network_current_names = wanted


def network_forward(self: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002
    result = originals.Linear_forward(self, input)
    for network in loaded_networks:
        delta = network.modules.get(getattr(self, "network_layer_name", None))
        if delta is not None:
            result = result + network.unet_multiplier * (input @ delta.to(input).T)
    return result


def network_Linear_forward(self: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002, N802
    if shared.opts.lora_functional:
        return network_forward(self, input)
    network_apply_weights(self)
    return originals.Linear_forward(self, input)


def network_Conv2d_forward(self: nn.Conv2d, input: Tensor) -> Tensor:  # noqa: A002, N802
    network_apply_weights(self)
    return originals.Conv2d_forward(self, input)


def network_GroupNorm_forward(self: nn.GroupNorm, input: Tensor) -> Tensor:  # noqa: A002, N802
    network_apply_weights(self)
    return originals.GroupNorm_forward(self, input)


def network_LayerNorm_forward(self: nn.LayerNorm, input: Tensor) -> Tensor:  # noqa: A002, N802
    network_apply_weights(self)
    return originals.LayerNorm_forward(self, input)


def network_Linear_load_state_dict(self: nn.Linear, *args: Any, **kwargs: Any) -> None:  # noqa: N802
    self.network_current_names = ()
    self.network_weights_backup = self.network_bias_backup = None
    originals.Linear_load_state_dict(self, *args, **kwargs)
