"""The page: Library, Convert, Compare, Train and Generate, as `hnloader ui` or as a tab of a webui.

    from hnloader.ui import Host, build

    with gradio.Blocks() as tab:
        build(Host(folders=..., output=..., generator=...))

`build` works in gradio 3.41 and newer; `compat.py` holds what differs between releases. Importing this package
requires no gradio, diffusers or Pillow; `build` requires gradio and Pillow.
"""

from __future__ import annotations

from hnloader.errors import CancelledError
from hnloader.ui.page_host import (
    Generator,
    Host,
    ImageRequest,
    ModelChoice,
    ModelDefaults,
    TagButton,
    TrainingPlace,
)

__all__ = [
    "CancelledError",
    "Generator",
    "Host",
    "ImageRequest",
    "ModelChoice",
    "ModelDefaults",
    "TagButton",
    "TrainingPlace",
    "build",
]


def build(host: Host) -> None:
    """Build the pages within the open `gradio.Blocks`.

    Args:
        host: Folders, output and generator.

    Raises:
        RuntimeError: No `gradio.Blocks` is open.

    Example:
        >>> from pathlib import Path
        >>> import gradio
        >>> from hnloader.ui import Host, build
        >>> with gradio.Blocks() as tab:
        ...     build(Host(folders=lambda: [Path("hypernetworks")], output=lambda: Path("images")))
    """
    from hnloader.ui.page import build_page

    build_page(host)
