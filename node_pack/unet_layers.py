"""The attention layers of a ComfyUI model, and strengths by layer. Other models than UNets are refused by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hnloader.attention.layout import AttentionSite, family_of_sites, find_sites, unet_of
from hnloader.attention.matching import check_match
from hnloader.attention.strengths import Strength, site_strengths
from hnloader.errors import NoMatchingSitesError
from hnloader.families import family_list
from hnloader.network import Hypernetwork

# ComfyUI's name of an attention layer: section, block, transformer block in it, and "self" or "cross".
Place = tuple[str, int, int, str]

_NAME = re.compile(
    r"(?:^|\.)(?P<section>input|middle|output)_blocks?(?:\.(?P<number>\d+))?"
    r"\.\d+\.transformer_blocks\.(?P<index>\d+)\.attn(?P<kind>[12])$"
)


def place_of(options: dict[str, Any], kind: str) -> Place:
    """Return the place of the layer that calls a patch with these `extra_options`."""
    section, number = options.get("block", ("", 0))
    return section, number, options.get("block_index", 0), kind


@dataclass(frozen=True)
class Layers:
    """The attention layers of one model."""

    sites: tuple[AttentionSite, ...]
    places: tuple[Place, ...]

    def strengths(self, strength: Strength) -> dict[Place, float]:
        """Return the strength in each layer.

        Raises:
            NoMatchingSitesError: A pattern matches no layer of the model.
        """
        return dict(zip(self.places, site_strengths(strength, self.sites), strict=True))

    def check(self, hypernetwork: Hypernetwork) -> str | None:
        """Return None if the model has all widths of a hypernetwork, else a description.

        Raises:
            NoMatchingSitesError: The model has none of the widths, or the file is for some of the layers of a width.
        """
        if limited := [scope for scope in hypernetwork.scopes if not scope.whole]:
            raise NoMatchingSitesError(
                f"{hypernetwork.name}: the file holds the scope {limited[0]}, and these nodes apply all sides to all "
                "layers of a width. Use hnloader.attach in diffusers."
            )
        return check_match(hypernetwork, self.sites)


def layers_of(diffusion_model: Any, base_model: Any) -> Layers:
    """Return the attention layers of a UNet.

    Args:
        diffusion_model: The UNet, possibly compiled.
        base_model: The `comfy.model_base.BaseModel` that it belongs to.

    Raises:
        NoMatchingSitesError: The model is not Stable Diffusion 1, 2 or XL.
    """
    unet = unet_of(diffusion_model)
    config = getattr(base_model.model_config, "unet_config", {})
    found = [] if unet is None or config.get("use_temporal_attention") else find_sites(unet)
    named = [(site, match) for site in found if (match := _NAME.search(site.name)) is not None]
    sites = tuple(site for site, _ in named)
    family = family_of_sites(sites)
    if not sites or (family is not None and not family.takes_hypernetworks):
        name = type(base_model.model_config).__name__
        raise NoMatchingSitesError(f"The model is {name}. Hypernetworks work only with {family_list()}; connect one.")
    kinds = {"1": "self", "2": "cross"}
    places = tuple(
        (match["section"], int(match["number"] or 0), int(match["index"]), kinds[match["kind"]]) for _, match in named
    )
    return Layers(sites, places)
