"""Compare images of the stand-in webui with images by the formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.standins.reference import wrap
from tests.support.standins.webui import Webui


def by_formula(webui: Webui) -> None:
    """Replace the model's projections by ones that compute the formula."""
    wrap(webui.unet, [(webui.hypernetworks / "ink.pt", 0.7)])


def images(webui: Webui, prompt: str | list[str], **fields: Any) -> Tensor:
    return torch.stack(webui.generate(prompt, **fields).images)


def close(found: Tensor, expected: Tensor, plain: Tensor, tolerance: float = 1e-4) -> bool:
    """Tell if two images are equal within a fraction of the hypernetwork's effect."""
    changed = (expected - plain).abs().max()
    return bool(changed > 0.01) and bool((found - expected).abs().max() < tolerance * changed)
