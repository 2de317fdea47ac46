"""The page: Library, Convert, Compare, Train and Generate, on its own (`hnloader ui`) and as a tab of a webui.

    from hnloader.ui import Host, build

    with gradio.Blocks() as tab:
        build(Host(folders=..., output=..., generator=...))

`build` works in gradio 3.41 to the current release; what differs between those lies in `compat.py`. Importing this
package takes no gradio, diffusers or Pillow; `build` takes gradio and Pillow.
"""

from __future__ import annotations

from hnloader.errors import CancelledError
from hnloader.ui.page_host import Generator, Host, ImageRequest, ModelChoice, TrainingPlace, Use

__all__ = ["CancelledError", "Generator", "Host", "ImageRequest", "ModelChoice", "TrainingPlace", "Use", "build"]


def build(host: Host) -> None:
    """Make the components for `host` within the `gradio.Blocks` that is open."""
    from hnloader.ui.page import build_page

    build_page(host)
