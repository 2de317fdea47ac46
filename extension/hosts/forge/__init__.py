"""Forge: AUTOMATIC1111's interface around its own model code."""

from ..protocol import WebuiHost

MARKERS = ("modules", "modules_forge")


def make() -> WebuiHost:
    """Return the host."""
    from .forge_host import Forge

    return Forge()
