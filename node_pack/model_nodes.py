"""Nodes that apply hypernetworks to a model or to one conditioning."""

from __future__ import annotations

import logging
from typing import Any

import comfy.hooks
from server import PromptServer

from hnloader.attention.strengths import Strength, check_number
from hnloader.errors import HypernetworkError
from hnloader.prompt import Tag, parse_blocks, parse_prompt
from hnloader.texts import shown

from . import hypernetwork_files as files
from .attention_patch import Chain, Setting, apply_to_model
from .file_nodes import FileNode, file_input
from .sampling_window import Window

LOADING = "loaders/hypernetworks"
_NUMBER = {"min": -10.0, "max": 10.0, "step": 0.01}
_FRACTION = {"min": 0.0, "max": 1.0, "step": 0.001, "advanced": True}


def strength_input() -> tuple[str, dict[str, object]]:
    """Return the strength as an input of a node."""
    return "FLOAT", {"default": 1.0, **_NUMBER, "tooltip": "1 is the trained effect, 0 none; negative inverts it."}


def detail_inputs() -> dict[str, tuple[Any, dict[str, object]]]:
    """Return the optional inputs: blocks, window, k and v."""
    return {
        "blocks": (
            "STRING",
            {
                "default": "",
                "advanced": True,
                "tooltip": "Blocks that it changes, with factors: up, or mid+up@0.5, or down.1+cross@0.3. Empty: all.",
            },
        ),
        "start": ("FLOAT", {"default": 0.0, **_FRACTION, "tooltip": "Where in the sampling it begins to act."}),
        "end": ("FLOAT", {"default": 1.0, **_FRACTION, "tooltip": "Where in the sampling it stops."}),
        "window": (
            ["percent", "steps"],
            {
                "advanced": True,
                "tooltip": "What start and end count: 'percent' is ComfyUI's percent of the noise schedule, 'steps' "
                "the fraction of the steps, as start= and end= in webuis.",
            },
        ),
        "k": ("FLOAT", {"default": 1.0, **_NUMBER, "advanced": True, "tooltip": "Factor for the keys."}),
        "v": ("FLOAT", {"default": 1.0, **_NUMBER, "advanced": True, "tooltip": "Factor for the values."}),
    }


def setting_of(hypernetwork: str, strength: float, details: dict[str, Any]) -> Setting:
    """Return a file with the optional inputs of a node."""
    window = Window(details.get("start", 0.0), details.get("end", 1.0), details.get("window", "percent"))
    loaded = files.load(files.path_of(hypernetwork))
    by_block = blocks(hypernetwork, details.get("blocks", ""), check_number(strength, "strength"))
    k, v = (check_number(details.get(side, 1.0), side) for side in ("k", "v"))
    return Setting(loaded, by_block, window, k, v)


def blocks(name: str, text: str, strength: float) -> Strength:
    """Return a strength in the blocks that a text names, or everywhere for an empty text."""
    text = text.strip().removeprefix("block=")
    if not text:
        return strength
    return {part.block: strength * part.weight for part in parse_blocks(name, text)}


def tagged_setting(tag: Tag) -> Setting:
    """Return the hypernetwork that a tag names. Its window counts steps, as in the webuis."""
    strength: Strength = tag.strength
    if tag.blocks:
        strength = {part.block: tag.strength * part.weight for part in tag.blocks}
    loaded = files.load(files.tagged_path(tag.name))
    return Setting(loaded, strength, Window(tag.start, tag.end, "steps"), tag.k, tag.v)


def warn(text: str | None, node: str | None) -> None:
    """Log a warning, and show it on the page."""
    if text is None:
        return
    logging.warning("[hnloader] %s", text)
    if PromptServer.instance is not None:
        # Not as a progress text: clients of the API take all binary messages for images.
        PromptServer.instance.send_sync("hnloader.warning", {"node": node, "text": text})


class LoadHypernetwork(FileNode):
    """Apply a hypernetwork to a model."""

    DESCRIPTION = (
        "Applies a hypernetwork to a Stable Diffusion 1, 2 or XL model, exactly as it was trained. "
        "Chain several nodes to apply several files."
    )
    CATEGORY = LOADING
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)
    SEARCH_ALIASES = ("hypernet", "hypernetwork loader", "apply hypernetwork")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Stable Diffusion 1, 2 or XL."}),
                "hypernetwork": file_input(),
                "strength": strength_input(),
            },
            "optional": detail_inputs(),
            "hidden": {"node": "UNIQUE_ID"},
        }

    def load(
        self, model: Any, hypernetwork: str, strength: float, node: str | None = None, **details: Any
    ) -> tuple[Any]:
        """Return a copy of the model with the hypernetwork."""
        changed, warning = apply_to_model(model, setting_of(hypernetwork, strength, details))
        warn(warning, node)
        return (changed,)


class HypernetworksFromPrompt:
    """Apply the hypernetworks that a prompt names in tags."""

    DESCRIPTION = (
        "Applies each <hypernet:name:strength> tag of a prompt to the model, and returns the prompt without these "
        "tags. Prompts from AUTOMATIC1111 and Forge work unchanged."
    )
    CATEGORY = LOADING
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "prompt")
    OUTPUT_TOOLTIPS = ("The model with the hypernetworks.", "The prompt without hypernet tags.")
    SEARCH_ALIASES = ("hypernet tag", "prompt hypernetwork")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        tooltip = "A prompt such as: a castle <hypernet:ink:0.8>. Options: start=, end=, block=, k=, v=."
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Stable Diffusion 1, 2 or XL."}),
                "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True, "tooltip": tooltip}),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, prompt: str | None = None, **others: object) -> object:  # noqa: N802
        """Return a value that changes with the files."""
        if prompt is None:  # connected to another node, so any file can be named
            return tuple(map(files.stamp_of, map(files.path_of, files.names())))
        return tuple(files.stamps_of(files.tagged_path(tag.name)) for tag in parse_prompt(prompt).tags)

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:  # noqa: N802
        """Return True, or the reason why a tag cannot be applied, before anything runs."""
        try:
            for tag in parse_prompt(prompt or "").tags:
                files.tagged_path(tag.name)
        except HypernetworkError as error:
            return str(error)
        return True

    def apply(self, model: Any, prompt: str, node: str | None = None) -> tuple[Any, str]:
        """Return a copy of the model with the hypernetworks, and the prompt without their tags."""
        parsed = parse_prompt(prompt)
        for tag in parsed.tags:
            model, warning = apply_to_model(model, tagged_setting(tag))
            warn(warning, node)
        return model, parsed.prompt


class CreateHookHypernetwork(FileNode):
    """Make a hook that applies a hypernetwork to one conditioning."""

    DESCRIPTION = (
        "Makes a hook for a hypernetwork. Connect it to 'Cond Set Props' or 'Set CLIP Hooks' so that the hypernetwork "
        "acts only on that conditioning, for example on one region of the image."
    )
    CATEGORY = "advanced/hooks/create"
    FUNCTION = "create"
    RETURN_TYPES = ("HOOKS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        return {
            "required": {"hypernetwork": file_input(), "strength": strength_input()},
            "optional": {**detail_inputs(), "prev_hooks": ("HOOKS", {"tooltip": "Hooks that act first."})},
        }

    def create(self, hypernetwork: str, strength: float, prev_hooks: Any = None, **details: Any) -> tuple[Any]:
        """Return a group of hooks with the new one."""
        chain = Chain([setting_of(hypernetwork, strength, details)])
        hook = comfy.hooks.TransformerOptionsHook(chain.options(), comfy.hooks.EnumHookScope.HookedOnly)
        group = comfy.hooks.HookGroup()
        group.add(hook)
        return (group if prev_hooks is None else prev_hooks.clone_and_combine(group),)


class HypernetworkStrengths(FileNode):
    """Return one copy of a model for each strength."""

    DESCRIPTION = (
        "Makes one model for each strength. ComfyUI then samples each of them, with the same seed. "
        "Connect 'Hypernetwork Grid' to the images to see them side by side."
    )
    CATEGORY = LOADING
    FUNCTION = "sweep"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("models", "labels")
    OUTPUT_IS_LIST = (True, True)
    SEARCH_ALIASES = ("hypernetwork sweep", "xy plot")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Stable Diffusion 1, 2 or XL."}),
                "hypernetwork": file_input(),
                "strengths": ("STRING", {"default": "0, 0.5, 1", "tooltip": "Numbers, separated by commas."}),
            },
            "optional": detail_inputs(),
            "hidden": {"node": "UNIQUE_ID"},
        }

    def sweep(
        self, model: Any, hypernetwork: str, strengths: str, node: str | None = None, **details: Any
    ) -> tuple[list[Any], list[str]]:
        """Return the models and their labels."""
        labels = [text.strip() for text in strengths.split(",") if text.strip()]
        models = []
        warning = None
        for label in labels:
            changed, warning = apply_to_model(model, setting_of(hypernetwork, number(label), details))
            models.append(changed)
        if not models:
            raise ValueError("Strengths: found none. Write numbers such as 0, 0.5, 1.")
        warn(warning, node)
        return models, labels


def number(text: str) -> float:
    """Return a strength, or raise ValueError."""
    try:
        return check_number(text, "strength")
    except TypeError:
        raise ValueError(f"Strengths: found {shown(text)}. Write numbers such as 0, 0.5, 1.") from None
