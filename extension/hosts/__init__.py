"""The webuis that the extension runs in, one file each."""

from __future__ import annotations

import importlib.util
import sys

from ..host import WebuiHost  # noqa: TID252 - the package has another name in a webui


def detect() -> WebuiHost:
    """The host that this process is."""
    if "modules_forge" in sys.modules or importlib.util.find_spec("modules_forge") is not None:
        from .forge import Forge

        return Forge()
    from .a1111 import Automatic1111

    return Automatic1111()
