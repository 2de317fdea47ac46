"""Affine hypernetworks as LyCORIS files are exact up to rounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lycoris
import pytest
import torch
from diffusers import UNet2DConditionModel

import hnloader
from hnloader.attention import find_sites
from hnloader.conversion.lora import LoraOptions, export_lora
from hnloader.conversion.lora.base_model import BaseModel
from hnloader.network import Architecture, Hypernetwork
from tests.support.lora_models import LYCORIS, errors_of, make_affine, make_random, read, with_file
from tests.support.small_models import WIDTHS, assert_same, make_unet, run

KINDS = ("sd1", "sd2", "sdxl")


def live(unet: torch.nn.Module, hypernetworks: Any, kind: str = "sd1", **options: Any) -> torch.Tensor:
    with hnloader.attach(unet, hypernetworks, **options):
        return run(unet, kind)


@pytest.mark.parametrize("bias", ["output", "projection"])
@pytest.mark.parametrize("kind", KINDS)
def test_full_difference_is_exact(tmp_path: Path, kind: str, bias: Any) -> None:
    unet, hypernetwork = make_unet(kind), make_affine(WIDTHS[kind])
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LoraOptions(kind="lycoris", bias=bias))
    expected = live(unet, hypernetwork, kind)
    with with_file(unet, made.path) as changed:
        assert_same(run(changed, kind), expected)
    assert (expected - run(unet, kind)).abs().max() > 100 * 1e-5 * expected.abs().max()
    assert made.exact and made.errors.worst < 1e-5 and not made.warnings


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture((1, 1)),
        Architecture((1, 1.5, 0.5, 1), dropout=(0, 0.3, 0, 0)),
        Architecture((1, 2, 1), residual="interpolate"),
        Architecture((1, 2, 1), residual="linear"),
    ],
    ids=str,
)
def test_every_affine_architecture_is_exact(tmp_path: Path, architecture: Architecture) -> None:
    unet, hypernetwork = make_unet(), make_random(WIDTHS["sd1"], architecture)
    made = export_lora((hypernetwork, -0.6), unet, tmp_path / "x.safetensors", LYCORIS)
    with with_file(unet, made.path) as changed:
        assert_same(run(changed), live(unet, hypernetwork, strength=-0.6), 2e-5)


def test_a_chain_becomes_one_file(tmp_path: Path) -> None:
    unet = make_unet()
    chain = [(make_affine(WIDTHS["sd1"], seed=1), 0.8), (make_affine((48, 80), seed=2), 0.5)]
    made = export_lora(chain, unet, tmp_path / "x.safetensors", LYCORIS)
    with with_file(unet, made.path) as changed:
        assert_same(run(changed), live(unet, chain), 2e-5)
    backwards = export_lora(chain[::-1], unet, tmp_path / "y.safetensors", LYCORIS)
    forth, back = (read(one.path)[0] for one in (made, backwards))
    assert not any(torch.allclose(forth[name], back[name]) for name in forth if name.endswith("attn2_to_k.diff"))


def test_only_the_layers_of_a_scope_change(tmp_path: Path) -> None:
    unet, hypernetwork = make_unet(), make_affine(("48:1,3", "48:5-", "20:self"))
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LYCORIS)
    with with_file(unet, made.path) as changed:
        assert_same(run(changed), live(unet, hypernetwork), 2e-5)
    covered = [site for site in find_sites(unet) if hypernetwork.scope_at(site.width, site.kind, site.index)]
    assert 0 < len(covered) < len(find_sites(unet))
    names = {name.rpartition("_to_")[0] for name in read(made.path)[0]}
    assert len(names) == len(covered)


def test_strength_by_block_and_by_side(tmp_path: Path) -> None:
    unet, hypernetwork = make_unet(), make_affine(WIDTHS["sd1"])
    applied = hnloader.Application(hypernetwork, {"up.cross": 0.5, "mid": -1}, k=0, v=0.7)
    made = export_lora(applied, unet, tmp_path / "x.safetensors", LYCORIS)
    with with_file(unet, made.path) as changed:
        assert_same(run(changed), live(unet, applied))
    assert not [name for name in read(made.path)[0] if "to_k" in name or "down_blocks" in name]


def test_a_composition_becomes_one_file(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("second", 2)):
        hnloader.save(make_affine(WIDTHS["sd1"], seed=seed), tmp_path / f"{name}.pt")
    (tmp_path / "both.hns").write_text("[{'first': 3, 'second': 1}, 'first']")
    unet = make_unet()
    made = export_lora(tmp_path / "both.hns", unet, tmp_path / "x.safetensors", LYCORIS)
    assert made.exact
    with with_file(unet, made.path) as changed:
        assert_same(run(changed), live(unet, tmp_path / "both.hns"), 2e-5)


def test_a_file_applied_at_half_strength_is_half_the_hypernetwork(tmp_path: Path) -> None:
    unet, hypernetwork = make_unet(), make_affine(WIDTHS["sd1"])
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LYCORIS)
    with with_file(unet, made.path, strength=0.5) as changed:
        assert_same(run(changed), live(unet, hypernetwork, strength=0.5))


@pytest.mark.parametrize("multiplier", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_lycoris_package_loads_it(tmp_path: Path, monkeypatch: Any, kind: str, multiplier: float) -> None:
    unet, hypernetwork = make_unet(kind), make_affine(WIDTHS[kind])
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LYCORIS)
    monkeypatch.setattr(lycoris.LycorisNetwork, "LORA_PREFIX", "lora_unet")  # the prefix of kohya
    twin = copy.deepcopy(unet)
    network, _ = lycoris.create_lycoris_from_weights(multiplier, str(made.path), twin)
    assert len(network.loras) == 3 * len(hnloader.attention.find_sites(unet))  # to_k, to_v, the output's bias
    network.apply_to()
    assert_same(run(twin, kind), live(unet, hypernetwork, kind, strength=multiplier), 2e-5)


def test_programs_without_key_and_value_bias_are_exact(tmp_path: Path) -> None:
    """ComfyUI and Forge apply what has a parameter in the model, so every name must have one."""
    unet, hypernetwork = make_unet(), make_affine(WIDTHS["sd1"])
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LYCORIS)
    parameters = {name.replace(".", "_"): value.shape for name, value in unet.named_parameters()}
    endings = {"diff": "weight", "diff_b": "bias"}
    for name, tensor in read(made.path)[0].items():
        layer, _, part = name.removeprefix("lora_unet_").partition(".")
        assert parameters[f"{layer}_{endings[part]}"] == tensor.shape


def test_no_output_bias_without_a_constant(tmp_path: Path) -> None:
    unet, hypernetwork = make_unet(), make_affine(WIDTHS["sd1"], bias=False)
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LYCORIS)
    assert {name.partition(".")[2] for name in read(made.path)[0]} == {"diff"}
    assert not [name for name in read(made.path)[0] if "to_out" in name]


def test_exact_exports_read_only_needed_weights(tmp_path: Path, monkeypatch: Any) -> None:
    make_unet().save_pretrained(tmp_path / "unet")
    hypernetwork = make_affine((48,))
    asked: list[str] = []
    weight = BaseModel.weight
    monkeypatch.setattr(BaseModel, "weight", lambda self, site, part: asked.append(part) or weight(self, site, part))
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    made = export_lora(hypernetwork, tmp_path / "unet", tmp_path / "x.safetensors", LYCORIS)
    cross = [site for site in hnloader.attention.find_sites(make_unet()) if site.kind == "cross"]
    for_the_fingerprint = ["to_k"]
    assert sorted(asked) == sorted(["to_k", "to_v", "to_out.0"] * len(cross) + for_the_fingerprint)
    assert made.exact


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_is_part_of_the_stated_error(tmp_path: Path, dtype: torch.dtype) -> None:
    unet, hypernetwork = make_unet(), make_affine(WIDTHS["sd1"])
    made = export_lora(hypernetwork, unet, tmp_path / "x.safetensors", LoraOptions(kind="lycoris", dtype=dtype))
    assert {tensor.dtype for tensor in read(made.path)[0].values()} == {dtype}
    digits = torch.finfo(dtype).eps
    assert digits / 20 < errors_of(made.path)["overall"]["k"]["of_change"] < digits


def test_hypernetworks_that_change_nothing_are_refused(tmp_path: Path) -> None:
    hypernetwork = make_affine(WIDTHS["sd1"])
    for given in ((hypernetwork, 0.0), _zeros(hypernetwork)):
        with pytest.raises(hnloader.HypernetworkError, match="strength"):
            export_lora(given, make_unet(), tmp_path / "x.safetensors", LYCORIS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["softmax", "softmin", "logsoftmax", "softmax2d"])
@pytest.mark.parametrize("kind", ["lora", "lycoris"])
def test_activations_across_the_batch_are_refused(tmp_path: Path, name: str, kind: Any) -> None:
    hypernetwork = make_random(WIDTHS["sd1"], Architecture((1, 2, 1), name))
    with pytest.raises(hnloader.HypernetworkError, match=f"style.*{name}"):
        export_lora(
            [(make_affine(WIDTHS["sd1"]), 0.3), hypernetwork],
            make_unet(),
            tmp_path / "x.safetensors",
            LoraOptions(kind=kind),
        )
    assert not list(tmp_path.iterdir())


def test_messages_about_an_unnamed_hypernetwork_name_a_subject(tmp_path: Path) -> None:
    hypernetwork = make_random(WIDTHS["sd1"], Architecture((1, 2, 1), "softmax"))
    hypernetwork.name = ""
    with pytest.raises(hnloader.HypernetworkError) as caught:
        export_lora(hypernetwork, make_unet(), tmp_path / "x.safetensors", LYCORIS)
    assert str(caught.value).startswith("Hypernetwork: ")


def _zeros(hypernetwork: Hypernetwork) -> Hypernetwork:
    made = copy.deepcopy(hypernetwork)
    for parameter in made.parameters():
        parameter.zero_()
    return made
