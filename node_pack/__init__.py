"""ComfyUI node pack: apply, inspect, convert and compare hypernetworks. docs/comfyui.md describes the nodes."""

from __future__ import annotations

from server import PromptServer

from .file_nodes import ConvertHypernetwork, HypernetworkInfo
from .grid_node import HypernetworkGrid
from .hypernetwork_files import add_suffixes
from .model_nodes import CreateHookHypernetwork, HypernetworksFromPrompt, HypernetworkStrengths, LoadHypernetwork
from .preview_route import add_route

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

# Workflows contain the keys.
NODE_CLASS_MAPPINGS = {
    "HnloaderLoadHypernetwork": LoadHypernetwork,
    "HnloaderHypernetworksFromPrompt": HypernetworksFromPrompt,
    "HnloaderCreateHookHypernetwork": CreateHookHypernetwork,
    "HnloaderHypernetworkStrengths": HypernetworkStrengths,
    "HnloaderHypernetworkGrid": HypernetworkGrid,
    "HnloaderHypernetworkInfo": HypernetworkInfo,
    "HnloaderConvertHypernetwork": ConvertHypernetwork,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "HnloaderLoadHypernetwork": "Load Hypernetwork (hnloader)",
    "HnloaderHypernetworksFromPrompt": "Hypernetworks from Prompt",
    "HnloaderCreateHookHypernetwork": "Create Hook Hypernetwork",
    "HnloaderHypernetworkStrengths": "Hypernetwork Strengths",
    "HnloaderHypernetworkGrid": "Hypernetwork Grid",
    "HnloaderHypernetworkInfo": "Hypernetwork Info",
    "HnloaderConvertHypernetwork": "Convert Hypernetwork",
}

add_suffixes()
if PromptServer.instance is not None:
    add_route(PromptServer.instance)
