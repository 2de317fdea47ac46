"""Section 'Hypernetworks (hnloader)' of the webui's settings."""

from __future__ import annotations

from .core import Extension
from .hosts.protocol import HasOptions, Option

SECTION = "Hypernetworks (hnloader)"
OPTIONS = (
    Option(
        "hnloader_folders",
        "",
        "Additional hypernetwork folders, one per line",
        "searched after the webui's own folder, including subfolders",
        restrict_api=True,
    ),
    Option("hnloader_panel", True, "Show the panel 'Apply hypernetworks' in txt2img and img2img", needs_reload=True),
    Option(
        "hnloader_controlnet",
        True,
        "Apply hypernetworks in ControlNets, too",
        "as the original webui does; off: in the UNet alone",
    ),
    Option(
        "hnloader_exact",
        False,
        "Compute hypernetworks in float32, like the original webui",
        "slower; the difference is rarely visible",
    ),
)


def register(extension: Extension, host: HasOptions) -> None:
    """Add the options to the settings."""
    host.add_options(SECTION, OPTIONS)
