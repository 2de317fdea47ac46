"""Bake affine hypernetworks into checkpoints of every form."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import hnloader
from hnloader.attention.layout import find_sites
from hnloader.conversion.baking import bake
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.errors import ExistingFileError, HypernetworkError, ModelError, NoMatchingSitesError, NotMergeableError
from hnloader.network import Architecture
from hnloader.pipelines import load_model
from tests.support.lora_models import make_affine, make_random, read
from tests.support.small_models import WIDTHS, assert_same, make_unet, run
from tests.support.tiny_model import SELF_WIDTH, TEXT_WIDTH, save_checkpoint

TINY = (SELF_WIDTH, TEXT_WIDTH)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def saved(folder: Path, kind: str = "sd1", **options: Any) -> tuple[UNet2DConditionModel, Path]:
    unet = make_unet(kind)
    unet.save_pretrained(folder, **options)
    return unet, folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_baked_unet_computes_what_the_attached_one_does(kind: str, tmp_path: Path) -> None:
    unet, folder = saved(tmp_path / "unet", kind)
    before = hashes(folder)
    chain = [(make_affine(WIDTHS[kind], seed=1), 0.8), (make_affine(WIDTHS[kind], seed=2), -0.4)]
    made = bake(chain, folder, tmp_path / "baked")
    with hnloader.attach(unet, chain):
        expected = run(unet, kind)
    assert_same(run(UNet2DConditionModel.from_pretrained(made.path), kind), expected, 2e-5)
    assert (expected - run(unet, kind)).abs().max() > 100 * 1e-5 * expected.abs().max()
    assert (made.layers, made.dtypes) == (len(find_sites(unet)), ("float32",)) and 0 < made.error < 1e-6
    assert hashes(folder) == before


def test_strengths_of_blocks_and_sides_count(tmp_path: Path) -> None:
    unet, folder = saved(tmp_path / "unet")
    application = hnloader.Application(make_affine(WIDTHS["sd1"]), {"up": 0.7, "mid.cross": 0.3}, k=0.5, v=1.5)
    made = bake(application, folder, tmp_path / "baked")
    with hnloader.attach(unet, [application]):
        assert_same(run(UNet2DConditionModel.from_pretrained(made.path)), run(unet), 2e-5)
    assert 0 < made.layers < len(find_sites(unet))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_are_rounded_once(kind: torch.dtype, tmp_path: Path) -> None:
    unet = make_unet().to(kind)
    unet.save_pretrained(tmp_path / "unet")
    hypernetwork = make_affine(WIDTHS["sd1"])
    made = bake(hypernetwork, tmp_path / "unet", tmp_path / "baked")
    tensors = load_file(made.path / WEIGHTS)
    for site in find_sites(unet):
        weights = {name: site.module.get_parameter(f"{name}.weight").double() for name in ("to_k", "to_v", "to_out.0")}
        scope = hypernetwork.scope_at(site.width, site.kind, site.index)
        assert scope is not None
        maps = {side: hypernetwork.side(scope, side).affine_map() for side in ("k", "v")}
        for side in ("k", "v"):
            exact = weights[f"to_{side}"] + weights[f"to_{side}"] @ maps[side].matrix
            assert torch.equal(tensors[f"{site.name}.to_{side}.weight"], exact.to(kind))
        bias = site.module.get_parameter("to_out.0.bias").double()
        exact = bias + weights["to_out.0"] @ (weights["to_v"] @ maps["v"].bias)
        assert torch.equal(tensors[f"{site.name}.to_out.0.bias"], exact.to(kind))
    assert 1e-6 < made.error < torch.finfo(kind).eps


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_files_get_the_same_weights(suffix: str, tiny_model: Path, tmp_path: Path) -> None:
    source = save_checkpoint(tiny_model, tmp_path / f"model{suffix}")
    before = source.read_bytes()
    hypernetwork = make_affine(TINY)
    made = bake((hypernetwork, 0.6), source, tmp_path / "baked.safetensors")
    whole = bake((hypernetwork, 0.6), tiny_model, tmp_path / "baked")
    twin = save_checkpoint(whole.path, tmp_path / "twin.safetensors")
    assert {name: _bits(tensor) for name, tensor in load_file(made.path).items()} == {
        name: _bits(tensor) for name, tensor in load_file(twin).items()
    }
    assert source.read_bytes() == before
    original = load_file(save_checkpoint(tiny_model, tmp_path / "original.safetensors"))
    changed = {name for name, tensor in load_file(made.path).items() if not torch.equal(tensor, original[name])}
    assert changed and all(name.endswith(("to_k.weight", "to_v.weight", "to_out.0.bias")) for name in changed)
    assert len(changed) == 3 * made.layers


def _bits(tensor: Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.contiguous().numpy().tobytes()


def test_folders_are_complete(tiny_model: Path, tmp_path: Path) -> None:
    made = bake(make_affine(TINY), tiny_model, tmp_path / "baked")
    old, new = hashes(tiny_model), hashes(made.path)
    assert old.keys() == new.keys()
    assert {name for name in old if old[name] != new[name]} == {f"unet/{WEIGHTS}"}


def test_shards_pickles_and_variants(tmp_path: Path) -> None:
    unet, shards = saved(tmp_path / "shards", max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    hypernetwork = make_affine(WIDTHS["sd1"])
    with hnloader.attach(unet, hypernetwork):
        expected = run(unet)
    pickles = saved(tmp_path / "pickles", safe_serialization=False)[1]
    (pickles / "diffusion_pytorch_model.fp16.bin").write_bytes(b"another variant")
    for folder in (shards, pickles):
        made = bake(hypernetwork, folder, tmp_path / f"baked-{folder.name}")
        assert_same(run(UNet2DConditionModel.from_pretrained(made.path)), expected, 2e-5)
        assert not list(made.path.glob("*.bin"))


def test_metadata_says_what_was_baked(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in make_unet().state_dict().items()}
    hashed = {"sshs_model_hash": "0123", "modelspec.hash_sha256": "0x0123"}
    save_file(tensors, tmp_path / "model.safetensors", {"modelspec.title": "Mine", **hashed})
    hnloader.save(make_affine(WIDTHS["sd1"]), tmp_path / "ink.pt")
    bake((tmp_path / "ink.pt", 0.5), tmp_path / "model.safetensors", tmp_path / "once.safetensors")
    bake(tmp_path / "ink.pt", tmp_path / "once.safetensors", tmp_path / "twice.safetensors")
    about = read(tmp_path / "twice.safetensors")[1]
    assert about["modelspec.title"] == "Mine" and not about.keys() & hashed.keys()
    first, second = json.loads(about["hnloader.baked"])
    assert (first["base"], second["base"]) == ("model", "once") and first["fingerprint"] != second["fingerprint"]
    sha = hashlib.sha256((tmp_path / "ink.pt").read_bytes()).hexdigest()
    assert first["from"] == [{"name": "style", "strength": 0.5, "sha256": sha}]


def test_nonlinear_hypernetworks_are_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "unet")
    for architecture in (Architecture((1, 2, 1), "relu"), Architecture((1, 2, 1), norm=True)):
        with pytest.raises(NotMergeableError, match="export-lora"):
            bake(make_random(WIDTHS["sd1"], architecture), folder, tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def test_a_model_without_the_bias_holds_only_maps_without_one(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in make_unet().state_dict().items()}
    bare = {name: tensor for name, tensor in tensors.items() if not name.endswith("to_out.0.bias")}
    save_file(bare, tmp_path / "model.safetensors")
    with pytest.raises(NotMergeableError, match=r"to_out\.0\.bias"):
        bake(make_affine(WIDTHS["sd1"]), tmp_path / "model.safetensors", tmp_path / "baked.safetensors")
    made = bake(make_affine(WIDTHS["sd1"], bias=False), tmp_path / "model.safetensors", tmp_path / "baked.safetensors")
    assert made.error < 1e-6


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    make_unet().half().save_pretrained(tmp_path / "unet")
    large = make_affine(WIDTHS["sd1"])
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(1e3)
    with pytest.raises(NotMergeableError, match="float16"):
        bake((large, 60_000), tmp_path / "unet", tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def test_mistakes_write_nothing(tiny_model: Path, tmp_path: Path) -> None:
    fits, other = make_affine(TINY), make_affine((40,))
    file = save_checkpoint(tiny_model, tmp_path / "model.safetensors")
    (tmp_path / "there").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for given, base, target, error in [
        (fits, tiny_model, tmp_path / "there", ExistingFileError),
        (fits, tiny_model, tiny_model / "unet" / "baked", HypernetworkError),
        (fits, file, file, HypernetworkError),
        (fits, file, tmp_path / "other.safetensors", ExistingFileError),
        (fits, file, tmp_path / "baked.ckpt", HypernetworkError),
        (fits, tmp_path / "none", tmp_path / "baked", ModelError),
        (fits, tmp_path / "broken.safetensors", tmp_path / "baked.safetensors", ModelError),
        (fits, tmp_path / "other.safetensors", tmp_path / "baked.safetensors", ModelError),
        (fits, tmp_path / "there", tmp_path / "baked", ModelError),
        (other, file, tmp_path / "baked.safetensors", NoMatchingSitesError),
        ((fits, 0), file, tmp_path / "baked.safetensors", HypernetworkError),
        (hnloader.Application(fits, start=0.5), file, tmp_path / "baked.safetensors", HypernetworkError),
    ]:
        before = hashes(tmp_path)
        with pytest.raises(error):
            bake(given, base, target)
        assert hashes(tmp_path) == before
    assert not (tiny_model / "unet" / "baked").exists()


@pytest.mark.parametrize("form", ["folder", "file"])
def test_an_interruption_leaves_nothing(form: str, tiny_model: Path, tmp_path: Path) -> None:
    base = tiny_model if form == "folder" else save_checkpoint(tiny_model, tmp_path / "model.safetensors")
    before = sorted(tmp_path.iterdir())

    def interrupt(done: int, total: int, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bake(make_affine(TINY), base, tmp_path / "baked.safetensors", progress=interrupt)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_memory_does_not_grow_with_the_checkpoint(suffix: str, tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in make_unet().state_dict().items()}
    # As large as 12 blocks of a checkpoint; each tensor has 4 MiB.
    tensors |= {f"first_stage_model.{index}.weight": torch.zeros(1 << 20) for index in range(24)}
    source = tmp_path / f"model{suffix}"
    torch.save({"state_dict": tensors}, source) if suffix == ".ckpt" else save_file(tensors, source)
    tracemalloc.start()  # tensors read from a file are backed by Python bytes
    bake(make_affine(WIDTHS["sd1"]), source, tmp_path / "baked.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.stat().st_size > 96 << 20 and peak < 16 << 20


def test_images_of_the_baked_pipeline_are_those_with_the_hypernetwork(tmp_path: Path) -> None:
    file, prompt = hypernetwork_paths()["outline"], "a large red circle in the center on a white background"
    made = bake((file, 0.8), pipeline_folder(), tmp_path / "baked")
    assert made.dtypes == ("float16",)

    def image(pipeline: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        found = pipeline(prompt, num_inference_steps=8, guidance_scale=3.0, generator=generator).images[0]
        return np.asarray(found, dtype=np.int16)

    original, baked = (load_model(folder, device="cpu").pipeline for folder in (pipeline_folder(), made.path))
    plain = image(original)
    with hnloader.attach(original, file, 0.8):
        expected = image(original)
    found = image(baked)
    assert np.abs(found - expected).max() <= 2 and np.abs(plain - expected).mean() > 5
