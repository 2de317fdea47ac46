"""The section 'Hypernetworks (hnloader)' of the host's settings."""

from __future__ import annotations

from typing import Any

from .runtime import Extension

SECTION = ("hnloader", "Hypernetworks (hnloader)")


def register(extension: Extension) -> None:
    """Add the options when the host asks for them."""
    from modules import script_callbacks

    script_callbacks.on_ui_settings(add_options)


def add_options() -> None:
    """Add every option, each with its default; `WebuiHost.option` reads them by the same keys."""
    from modules import shared

    for key, option in _options(shared.OptionInfo).items():
        option.section = SECTION
        shared.opts.add_option(key, option)


def _options(option: Any) -> dict[str, Any]:
    import gradio

    return {
        "hnloader_folders": option(
            "", "More folders with hypernetworks, one per line", gradio.Textbox, {"lines": 3}, restrict_api=True
        ).info("the host's own folder comes first; subfolders are searched"),
        "hnloader_panel": option(True, "Show the panel 'Hypernetworks' in txt2img and img2img").needs_reload_ui(),
        "hnloader_exact": option(False, "Compute hypernetworks in float32, as the original programs do").info(
            "slower; the difference is too small to see in nearly all images"
        ),
    }
