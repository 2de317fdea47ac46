"""The base model in every form, and other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import hnloader
from hnloader.attention import find_sites
from hnloader.conversion.lora import LoraOptions, export_lora
from hnloader.conversion.lora.base_model import open_base
from hnloader.errors import ModelError
from hnloader.families import family_named
from hnloader.network import Architecture
from tests.support.lora_models import LYCORIS, QUICK, Pipelines, make_affine, make_random, read
from tests.support.small_models import WIDTHS, make_unet
from tests.support.tiny_model import SELF_WIDTH, TEXT_WIDTH, save_checkpoint

TINY = (SELF_WIDTH, TEXT_WIDTH)


def described(base: Any) -> list[tuple[object, ...]]:
    return [(site.index, site.name, site.block, site.kind, site.width) for site in base.sites]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_files_have_the_layers_of_the_model(tmp_path: Path, kind: str) -> None:
    unet = make_unet(kind)
    unet.save_pretrained(tmp_path)
    stored, live = open_base(tmp_path), open_base(unet)
    assert described(stored) == described(live)
    assert stored.layers == live.layers == unet.config.layers_per_block
    for site in stored.sites:
        assert torch.equal(stored.weight(site, "to_v"), live.weight(live.sites[site.index], "to_v"))
    assert stored.fingerprint() == live.fingerprint()


def test_ten_blocks_are_in_numeric_order(tmp_path: Path) -> None:
    unet = make_unet("sdxl", transformer_layers_per_block=(1, 1, 11))
    unet.save_pretrained(tmp_path)
    assert described(open_base(tmp_path)) == described(open_base(unet))


@pytest.fixture(scope="module")
def expected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    target = tmp_path_factory.mktemp("expected") / "x.safetensors"
    export_lora(make_affine(TINY), tiny_model, target, LYCORIS)
    return read(target)[0]


def test_every_form_of_a_model_gives_the_same_lora(
    tiny_model: Path, tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    weights = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    original = load_file(save_checkpoint(tiny_model, tmp_path / "whole.safetensors"))
    prefix = "model.diffusion_model."
    unet_alone = {name.removeprefix(prefix): tensor for name, tensor in original.items() if name.startswith(prefix)}
    save_file(weights, tmp_path / "diffusers-unet.safetensors")
    save_file(unet_alone, tmp_path / "original-unet.safetensors")
    shards = tmp_path / "shards"
    UNet2DConditionModel.from_pretrained(tiny_model / "unet").save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    variant = tmp_path / "variant"
    UNet2DConditionModel.from_pretrained(tiny_model / "unet").save_pretrained(variant, variant="fp16")
    pickled = tmp_path / "pickled"
    UNet2DConditionModel.from_pretrained(tiny_model / "unet").save_pretrained(pickled, safe_serialization=False)
    torch.save({"state_dict": original, "global_step": 1}, tmp_path / "whole.ckpt")
    forms = [
        tiny_model / "unet",
        tmp_path / "whole.safetensors",
        tmp_path / "whole.ckpt",
        tmp_path / "diffusers-unet.safetensors",
        tmp_path / "original-unet.safetensors",
        shards,
        variant,
        pickled,
    ]
    for form in forms:
        found = read(export_lora(make_affine(TINY), form, tmp_path / "out.safetensors", LYCORIS).path)[0]
        assert found.keys() == expected.keys(), form
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items()), form


@pytest.mark.parametrize("whole", [True, False])
def test_a_single_file_runs_with_the_configuration_of_a_folder(tiny_model: Path, tmp_path: Path, whole: bool) -> None:
    path = save_checkpoint(tiny_model, tmp_path / "model.safetensors")
    if not whole:
        tensors = {name: tensor for name, tensor in load_file(path).items() if name.startswith("model.diffusion")}
        save_file(tensors, path)
    made = export_lora(
        make_affine(TINY), open_base(path, config=tiny_model), tmp_path / "x.safetensors", LoraOptions(rank=2, **QUICK)
    )
    assert made.statistics.startswith("pipeline" if whole else "UNet alone")


def test_unknown_families_need_a_configuration(tiny_model: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match=r"unet\.safetensors.*config"):
        export_lora(make_affine(TINY), tmp_path / "unet.safetensors", tmp_path / "x.safetensors", LoraOptions(**QUICK))
    made = export_lora(
        make_affine(TINY),
        open_base(tmp_path / "unet.safetensors", config=tiny_model),
        tmp_path / "x.safetensors",
        LoraOptions(**QUICK),
    )
    assert made.statistics.startswith("UNet alone")


@pytest.mark.parametrize(
    ("family", "millions", "layers"), [("SD 1", 859.5, 32), ("SD 2", 865.9, 32), ("SDXL", 2567.5, 140)]
)
def test_configurations_match_the_published_models(family: str, millions: float, layers: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(family_named(family).unet_config())
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6, 1) == millions
    assert len(find_sites(unet)) == layers
    assert open_base(unet).family == family


def test_a_hypernetwork_of_another_family_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        sdxl = UNet2DConditionModel.from_config(family_named("SDXL").unet_config())
    sd1 = make_random((768, 320, 640, 1280), Architecture((1, 0.1, 1)))
    with pytest.raises(hnloader.NoMatchingSitesError, match=r"SD 1 \(768\).*SDXL"):
        export_lora(sd1, sdxl, tmp_path / "x.safetensors", LYCORIS)
    sd2 = make_affine((40, 64))
    with pytest.raises(hnloader.NoMatchingSitesError, match="style"):
        export_lora(sd2, make_unet("sd1"), tmp_path / "x.safetensors", LYCORIS)
    assert not list(tmp_path.iterdir())


def test_missing_widths_are_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    export_lora(
        make_affine((48, 64)),
        make_unet("sd1"),
        tmp_path / "x.safetensors",
        LYCORIS,
        note=notes.append,
    )
    assert "64" in notes[0]


@pytest.mark.parametrize("content", ["nothing", "folder", "text", "vae", "broken", "pickle"])
def test_other_files_than_models_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.safetensors"
    if content == "folder":
        path = tmp_path / "folder"
        path.mkdir()
    elif content == "text":
        path.write_text("hello")
    elif content == "vae":
        save_file({"first_stage_model.decoder.conv_in.weight": torch.zeros(2, 2)}, path)
    elif content == "broken":
        save_file({"input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight": torch.zeros(64, 64)}, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "pickle":
        path = tmp_path / "model.ckpt"
        torch.save({"state_dict": {}, "callbacks": make_unet}, path)
    with pytest.raises(ModelError, match=str(path)):
        export_lora(make_affine((48,)), path, tmp_path / "x.safetensors", LYCORIS)


def test_a_model_with_hypernetworks_attached_is_refused(tmp_path: Path, pipelines: Pipelines) -> None:
    pipeline, hypernetwork = pipelines("sd1"), make_affine(WIDTHS["sd1"])
    with hnloader.attach(pipeline, hypernetwork), pytest.raises(hnloader.HypernetworkError, match="attached"):
        export_lora(hypernetwork, pipeline, tmp_path / "x.safetensors", LoraOptions(**QUICK))


def test_prompts_in_the_model_folder(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "prompts.txt").write_text("one\ntwo\n\n three \nfour\nfive\nsix\nsix\n")
    quick = {"images": 5, "steps": 1, "rank": 2}
    made = export_lora(make_affine(TINY), model, tmp_path / "x.safetensors", LoraOptions(**quick))
    assert "text contexts of 6 prompts" in made.statistics
    made = export_lora(make_affine(TINY), tiny_model, tmp_path / "x.safetensors", LoraOptions(**quick))
    assert "text contexts of 60 prompts" in made.statistics
