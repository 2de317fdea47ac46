"""Forge and its forks: AUTOMATIC1111's interface around their own model code.

Forge 2 has `backend`: Forge, ersatzForge and Forge Neo. Forge 1 has `ldm_patched`: reForge and Forge Classic.
"""

import importlib.util

from ..protocol import WebuiHost

MARKERS = ("modules", "modules_forge")
# Parts of the versions of the forks. Forge's own begins with `f` or `2`, reForge's with `1`.
_NAMES = {"classic": "Forge Classic", "neo": "Forge Neo", "ersatz": "ersatzForge"}


def webui_name(version: str) -> str:
    """Return the name of the webui with this `modules_forge.forge_version.version`."""
    for part, name in _NAMES.items():
        if part in version:
            return name
    return "reForge" if version.startswith("1") else "Forge"


def make() -> WebuiHost:
    """Return the host."""
    if importlib.util.find_spec("modules_forge.main_entry") is not None:
        from .forge_host import Forge

        return Forge()
    from .forge1_host import Forge1

    return Forge1()
