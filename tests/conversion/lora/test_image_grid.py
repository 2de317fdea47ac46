"""The grid of images beside an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from hnloader import HypernetworkError, LoraOptions, export_lora
from hnloader.attention import find_sites
from hnloader.conversion.lora.export_result import LayerChange
from hnloader.conversion.lora.image_grid import merged
from tests.support.lora_models import LYCORIS, PROMPTS, Pipelines, make_affine, read
from tests.support.small_models import WIDTHS, make_unet


def test_images_side_by_side(tmp_path: Path, pipelines: Pipelines) -> None:
    steps = []
    made = export_lora(
        make_affine(WIDTHS["sd1"]),
        pipelines("sd1"),
        tmp_path / "x.safetensors",
        LoraOptions(kind="lycoris", prompts=PROMPTS),
        grid=tmp_path / "grid.png",
        progress=lambda done, total, text: steps.append(text),
    )
    found = made.image_differences
    assert found is not None
    assert found["without"] > 1 > 0.01 > found["converted"]
    assert json.loads(read(made.path)[1]["hnloader.images"])["without"] == round(found["without"], 2)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 192
    assert set(steps) == {"Fitting layers", "Generating images"}


def test_images_need_a_whole_model(tmp_path: Path) -> None:
    with pytest.raises(HypernetworkError, match="UNet"):
        export_lora(
            make_affine(WIDTHS["sd1"]),
            make_unet(),
            tmp_path / "x.safetensors",
            LYCORIS,
            grid=tmp_path / "grid.png",
        )
    assert not list(tmp_path.iterdir())


def test_merging_into_the_unet_is_undone() -> None:
    unet = make_unet()
    site = find_sites(unet)[0]
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    shape = site.module.to_k.weight.shape
    change = LayerChange(site, "to_k", diff=torch.ones(shape), diff_b=torch.ones(shape[0]))
    with merged(unet, [change]):
        assert not torch.equal(site.module.to_k.weight, before[f"{site.name}.to_k.weight"])
        assert site.module.to_k.bias is not None
    assert before.keys() == unet.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
