"""Callbacks of the stand-in host: run in the order of registration, but two kinds in the reverse order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import errors

KINDS = (
    "app_started",
    "before_reload",
    "model_loaded",
    "ui_tabs",
    "ui_train_tabs",
    "ui_settings",
    "before_image_saved",
    "image_saved",
    "cfg_denoiser",
    "cfg_denoised",
    "cfg_after_cfg",
    "before_component",
    "after_component",
    "infotext_pasted",
    "script_unloaded",
    "before_ui",
    "list_optimizers",
    "list_unets",
)
REVERSED = ("script_unloaded", "before_ui")

callbacks: dict[str, list[Callable]] = {kind: [] for kind in KINDS}


@dataclass
class CFGDenoiserParams:
    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


def clear_callbacks() -> None:
    for registered in callbacks.values():
        registered.clear()


def run(kind: str, *args: Any) -> list[Any]:
    """Call all of a kind; an error in one is reported and the rest is called."""
    results = []
    order = reversed(callbacks[kind]) if kind in REVERSED else callbacks[kind]
    for callback in list(order):
        try:
            results += callback(*args) or []
        except Exception:
            errors.report(f"Error executing callback {kind}", exc_info=True)
    return results


def _registration(kind: str) -> Callable[..., None]:
    def register(callback: Callable, *, name: str | None = None) -> None:
        callbacks[kind].append(callback)

    return register


for _kind in KINDS:
    globals()[f"on_{_kind}"] = _registration(_kind)
