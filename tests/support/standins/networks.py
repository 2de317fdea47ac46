"""The built-in Lora extension of AUTOMATIC1111. It replaces the forward of all Linears, once the host has started.

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
    load = nn.Linear._load_from_state_dict
    originals = SimpleNamespace(Linear_forward=nn.Linear.forward, Linear_load_state_dict=load)
    nn.Linear.forward = network_Linear_forward
    nn.Linear._load_from_state_dict = network_Linear_load_state_dict


def undo() -> None:
    nn.Linear.forward = originals.Linear_forward
    nn.Linear._load_from_state_dict = originals.Linear_load_state_dict


def assign_network_names_to_compvis_modules(sd_model: Any) -> None:
    for name, module in sd_model.model.diffusion_model.named_modules():
        module.network_layer_name = "diffusion_model_" + name.replace(".", "_")


def network_apply_weights(self: nn.Linear) -> None:
    name = getattr(self, "network_layer_name", None)
    if name is None:
        return
    current = getattr(self, "network_current_names", ())
    wanted = tuple((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in loaded_networks)
    if current == wanted:
        return
    if getattr(self, "network_weights_backup", None) is None:
        self.network_weights_backup = self.weight.to("cpu", copy=True)
    with torch.no_grad():
        self.weight.copy_(self.network_weights_backup)
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


def network_Linear_load_state_dict(self: nn.Linear, *args: Any, **kwargs: Any) -> None:  # noqa: N802
    self.network_current_names, self.network_weights_backup = (), None
    originals.Linear_load_state_dict(self, *args, **kwargs)
