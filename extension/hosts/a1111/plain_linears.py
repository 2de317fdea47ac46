"""The layers of AUTOMATIC1111's model that only multiply by their weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import shared
from torch import nn


def plain_linears() -> Callable[[nn.Module], bool]:
    """See `protocol.FindsPlainLinears`.

    The Lora extension replaces `nn.Linear.forward`. Its forward first writes the job's LoRAs into the weight, unless
    `network_current_names` shows that the weight has them. The webui replaces the forward too where it casts weights
    itself, and other extensions do for their own ends. Then no layer is plain.
    """
    forward = nn.Linear.forward
    if getattr(shared.sd_model, "lowvram", False):  # its weights come and go during the call
        return _none
    if _is_of_torch(forward):
        return lambda module: type(module) is nn.Linear
    lora: dict[str, Any] = getattr(forward, "__globals__", {})
    original = getattr(lora.get("originals"), "Linear_forward", None)
    if lora.get("network_Linear_forward") is not forward or not _is_of_torch(original):
        return _none
    loaded = lora.get("loaded_networks", ())
    if loaded and getattr(shared.opts, "lora_functional", False):  # adds the LoRAs to the result
        return _none
    wanted = tuple(tuple(getattr(each, name, None) for name in _IDENTITY) for each in loaded)
    return lambda module: type(module) is nn.Linear and module.__dict__.get("network_current_names", ()) == wanted


# What the Lora extension (1.5 to 1.10) compares of each LoRA. If a version compares anything else, no layer is plain.
_IDENTITY = ("name", "te_multiplier", "unet_multiplier", "dyn_dim")


def _is_of_torch(forward: object) -> bool:
    return getattr(forward, "__module__", None) == "torch.nn.modules.linear"


def _none(module: nn.Module) -> bool:
    return False
