"""Forge and its forks: AUTOMATIC1111's interface around their own model code.

Forge 2 has `backend`: Forge, ersatzForge and Forge Neo. Forge 1 has `ldm_patched`: reForge and Forge Classic.
"""

import importlib.util

from ..protocol import WebuiHost

MARKERS = ("modules", "modules_forge")


def make() -> WebuiHost:
    """Return the host."""
    if importlib.util.find_spec("modules_forge.main_entry") is not None:
        from .forge_host import Forge

        return Forge()
    from .forge1_host import Forge1

    return Forge1()
