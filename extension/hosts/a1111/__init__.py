"""AUTOMATIC1111's webui, 1.7 to 1.10, and forks that kept its model code."""

from ..protocol import WebuiHost

MARKERS = ("modules",)


def make() -> WebuiHost:
    """Return the host."""
    from .automatic1111 import Automatic1111

    return Automatic1111()
