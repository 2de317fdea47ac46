"""The tag that the stand-in host brings along."""

from __future__ import annotations

from modules import shared
from modules.extra_networks import ExtraNetwork, ExtraNetworkParams
from modules.hypernetworks import hypernetwork


class ExtraNetworkHypernet(ExtraNetwork):
    def __init__(self) -> None:
        super().__init__("hypernet")

    def activate(self, p, params_list) -> None:
        quick, strength = shared.opts.sd_hypernetwork, shared.opts.extra_networks_default_multiplier
        if quick in shared.hypernetworks and all(params.items[0] != quick for params in params_list):
            p.all_prompts = [f"{prompt}<hypernet:{quick}:{strength}>" for prompt in p.all_prompts]
            params_list.append(ExtraNetworkParams([quick, strength]))
        strengths = [float(params.items[1]) if len(params.items) > 1 else 1.0 for params in params_list]
        hypernetwork.load_hypernetworks([params.items[0] for params in params_list], strengths)

    def deactivate(self, p) -> None:
        pass
