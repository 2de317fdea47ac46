"""Which family of Stable Diffusion models a set of attention widths belongs to.

A width is the last dimension of what an attention layer's `to_k` and `to_v` receive. In cross-attention that
is the size of the text encoder's output, one per family; in self-attention it is the number of channels of
the layer, and the families share those. So the text width decides, and a file that holds none may fit several
families.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of models: its name, its cross-attention width, and its self-attention widths."""

    name: str
    text_width: int
    self_widths: frozenset[int]

    @property
    def widths(self) -> frozenset[int]:
        """Every width of the family's attention layers."""
        return self.self_widths | {self.text_width}


SD1 = Family("SD 1", 768, frozenset({320, 640, 1280}))
SD2 = Family("SD 2", 1024, frozenset({320, 640, 1280}))
SDXL = Family("SDXL", 2048, frozenset({640, 1280}))
# No hypernetworks are made for the refiner, whose self-attention width 768 is also the text width of SD 1.
SDXL_REFINER = Family("SDXL refiner", 1280, frozenset({768, 1536}))

FAMILIES = (SD1, SD2, SDXL)


def families(widths: Iterable[int]) -> tuple[str, ...]:
    """Name the model families that a hypernetwork with these widths is made for.

    A text width names its family, whatever else the file holds. Without one, every family that has all the
    widths is named: 640 and 1280 alone fit SD 1, SD 2 and SDXL.

    Args:
        widths: The context widths in the file.

    Returns:
        Names out of `FAMILIES`, in that order; empty when no family has these widths.
    """
    held = frozenset(widths)
    by_text = tuple(family.name for family in FAMILIES if family.text_width in held)
    if by_text or not held:
        return by_text
    return tuple(family.name for family in FAMILIES if held <= family.self_widths)


def model_family(text_widths: Iterable[int], self_widths: Iterable[int]) -> str | None:
    """Name the family of a model from the widths of its attention layers.

    Args:
        text_widths: The widths of its cross-attention layers.
        self_widths: The widths of its self-attention layers.

    Returns:
        The name, or None for a model of no known family (a smaller one made for tests, for example).
    """
    text, own = frozenset(text_widths), frozenset(self_widths)
    for family in (*FAMILIES, SDXL_REFINER):
        if text == {family.text_width} and own <= family.self_widths:
            return family.name
    return None


def text_width(family: str) -> int:
    """Cross-attention width of the family of this name.

    Raises:
        KeyError: The name is not a family's.
    """
    return {each.name: each.text_width for each in (*FAMILIES, SDXL_REFINER)}[family]
