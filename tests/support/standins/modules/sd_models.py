"""Checkpoints of the stand-in host; `Webui` adds them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from modules import script_callbacks, shared

checkpoints: dict[str, Any] = {}  # name -> function that makes the model
kept: list[Any] = []  # in memory beside the present one
settings = SimpleNamespace(chosen="", filename="", keep=0, into_same_modules=False)


def select_checkpoint() -> Any:
    """Return information about the selected checkpoint, loaded or not."""
    return SimpleNamespace(filename=settings.filename or f"{settings.chosen}.safetensors")


def forge_model_reload() -> tuple[Any, bool]:
    """Forge: load the selected checkpoint if needed."""
    before = shared.sd_model
    reload_model_weights()
    return shared.sd_model, shared.sd_model is not before


def unet_of(model: Any) -> Any:
    return (model.forge_objects.unet if hasattr(model, "forge_objects") else model).model.diffusion_model


def reload_model_weights(name: str | None = None) -> None:
    """Load the named checkpoint, or the one selected in the UI."""
    name = name or settings.chosen
    present = shared.sd_model
    if present is not None and present.name == name:
        return
    for model in kept:
        if model.name == name:
            kept.remove(model)
            kept.append(present)
            shared.sd_model = model  # without on_model_loaded
            return
    loaded = checkpoints[name]()
    if settings.into_same_modules and present is not None:
        with torch.inference_mode(hasattr(present, "forge_objects")):
            unet_of(present).load_state_dict(unet_of(loaded).state_dict())
        present.name, present.sd_model_hash = loaded.name, loaded.sd_model_hash
        loaded = present
    elif present is not None and settings.keep:
        kept.append(present)
    shared.sd_model = loaded
    script_callbacks.run("model_loaded", loaded)


def conditioning(prompts: list[str]) -> Any:
    """Numbers that differ between texts, [batch, 5, 24]. A tag that is left in a prompt changes them."""
    assert not any(re.search(r"<\w+:[^>]+>", prompt) for prompt in prompts), "a tag was left in the prompt"
    seeds = [sum(position * ord(letter) for position, letter in enumerate(text, 1)) for text in prompts]
    return torch.stack([torch.randn(5, 24, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
