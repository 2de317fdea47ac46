"""The grid of images."""

from __future__ import annotations

import pytest
import torch

from tests.support.standins.comfyui_host import Host


def test_images_are_side_by_side(comfyui: Host) -> None:
    node = comfyui.node("HypernetworkGrid")
    red, blue = torch.zeros(2, 200, 200, 3), torch.zeros(1, 200, 200, 4)
    red[..., 0], blue[..., 2] = 1, 2.0
    (drawn,) = node.draw([red, blue], ["0", "0.5"], ["ink"])
    assert drawn.ndim == 4 and drawn.dtype == torch.float32 and float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    rows = (drawn[0] == torch.tensor([1.0, 0, 0])).all(-1)
    columns = (drawn[0] == torch.tensor([0, 0, 1.0])).all(-1)
    assert (int(rows.sum()), int(columns.sum())) == (2 * 200 * 200, 200 * 200)
    assert int(rows.any(0).nonzero().max()) < int(columns.any(0).nonzero().min())


def test_each_image_needs_a_label(comfyui: Host) -> None:
    with pytest.raises(ValueError, match="2 images and 1 label"):
        comfyui.node("HypernetworkGrid").draw([torch.zeros(1, 8, 8, 3)] * 2, ["0"])
