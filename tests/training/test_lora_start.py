"""Start a hypernetwork from a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hnloader
from hnloader import LoraOptions, export_lora
from hnloader.attention.layout import find_sites
from hnloader.errors import ConfigError
from hnloader.network import Architecture, Hypernetwork
from hnloader.training import prepare, train
from hnloader.training.lora_start import read_lora, start_from_lora
from tests.support.lora_models import LYCORIS, QUICK, make_affine
from tests.support.small_models import WIDTHS, assert_same, make_unet, run
from tests.support.tiny_model import SELF_WIDTH, TEXT_WIDTH
from tests.support.trainings import Run, raises

EXACT = ("relu", "leakyrelu", "gelu", "swish", "softplus", None)


def changes(unet: torch.nn.Module, rank: int = 3) -> dict[tuple[int, Any], Tensor]:
    """Random changes of the keys and values of every layer, as large as a tenth of the weights."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for site in find_sites(unet):
        for side in ("k", "v"):
            weight = site.module.get_parameter(f"to_{side}.weight").double()
            factors = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in weight.shape)
            delta = next(factors) @ next(factors).T
            found[site.index, side] = delta * 0.1 * weight.norm() / delta.norm()
    return found


def one_scope_a_layer(unet: torch.nn.Module) -> tuple[str, ...]:
    return tuple(f"{site.width}:{site.index}" for site in find_sites(unet))


@pytest.mark.parametrize("activation", EXACT)
def test_a_side_for_each_layer_follows_a_lora_exactly(activation: str | None) -> None:
    unet = make_unet()
    deltas = changes(unet)
    square = [site for site in find_sites(unet) if site.kind == "self"]  # W has an inverse
    made = Hypernetwork.new(one_scope_a_layer(unet), Architecture((1, 2, 1), activation))
    found = start_from_lora(made, square, {key: deltas[key] for key in deltas if key[0] in {s.index for s in square}})
    assert max(found.errors.values()) < 1e-3


@pytest.mark.parametrize("activation", ["mish", "tanh", "elu"])
def test_other_activations_come_close(activation: str) -> None:
    unet = make_unet()
    sites = [site for site in find_sites(unet) if site.kind == "self"]
    made = Hypernetwork.new(one_scope_a_layer(unet), Architecture((1, 2, 1), activation))
    found = start_from_lora(made, sites, changes(unet))
    assert max(found.errors.values()) < 0.05


def test_the_output_of_the_unet_is_that_of_the_lora(tmp_path: Path) -> None:
    """Of a LoRA that was exported from an affine hypernetwork without biases: one side fits all layers."""
    unet, source = make_unet(), make_affine(WIDTHS["sd1"], bias=False)
    export_lora((source, 0.2), unet, tmp_path / "full.safetensors", LYCORIS)
    deltas, others = read_lora(tmp_path / "full.safetensors", find_sites(unet), 1)
    made = Hypernetwork.new(WIDTHS["sd1"], Architecture((1, 2, 1), "relu"))
    found = start_from_lora(made, find_sites(unet), deltas, others)
    assert max(found.errors.values()) < 1e-4 and others == 0
    with hnloader.attach(unet, source, 0.2):
        expected = run(unet)
    with hnloader.attach(unet, made):
        assert_same(run(unet), expected, 1e-4)


def test_one_side_for_several_layers_is_the_best_one() -> None:
    unet, deltas = make_unet(), changes(make_unet())
    sites = [site for site in find_sites(unet) if site.width == 80 and site.kind == "self"]
    assert len(sites) > 1
    made = Hypernetwork.new((80,), Architecture((1, 1), None))
    own = {key: delta for key, delta in deltas.items() if key[0] in {site.index for site in sites}}
    found = start_from_lora(made, sites, own)
    assert 0 < found.errors["k"] < 1
    matrix = made.side(made.scopes[0], "k").linear[0].weight.detach()

    def loss(candidate: Tensor) -> float:
        pairs = ((site.module.to_k.weight.double(), own[site.index, "k"]) for site in sites)
        return sum(float((weight @ candidate.double() - delta).square().sum()) for weight, delta in pairs)

    for seed in range(5):
        noise = torch.randn(80, 80, generator=torch.Generator().manual_seed(seed)) * 1e-3 * matrix.norm() / 80
        assert loss(matrix) <= loss(matrix + noise)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Architecture((1, 2, 2, 1), "relu"), "inner layer"),
        (Architecture((1, 2, 1), "relu", norm=True), "norm"),
        (Architecture((1, 2, 1), "relu", activate_output=True), "activated output"),
        (Architecture((1, 2, 1), "hardshrink"), "hardshrink"),
    ],
)
def test_architectures_that_cannot_follow_are_refused(architecture: Architecture, words: str) -> None:
    unet = make_unet()
    with raises(ConfigError, words):
        start_from_lora(Hypernetwork.new(WIDTHS["sd1"], architecture), find_sites(unet), changes(unet))


# -- files and training


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    export_lora(make_affine((SELF_WIDTH, TEXT_WIDTH), bias=False), tiny_model, path, LoraOptions(rank=4, **QUICK))
    return path


def settings(lora: Path, **changes: Any) -> dict[str, Any]:
    plain = {"hypernetwork__norm": False, "hypernetwork__dropout": 0.0, "ema_decay": 0.0, "steps": 2}
    return {"start_from": str(lora), **plain, **changes}


def test_a_training_starts_from_a_lora(settings_of: Run, lora: Path) -> None:
    training = prepare(settings_of(**settings(lora)))
    (note,) = (each for each in training.notes if "LoRA" in each)
    assert "keys are off by" in note and "%" in note
    assert training.state.previous_steps == 0
    result = train(settings_of("other.pt", **settings(lora)))
    assert hnloader.load(result.output).metadata["step"] == 2


@pytest.mark.parametrize("form", ["original", "peft", "diffusers"])
def test_other_names_give_the_same_start(form: str, settings_of: Run, lora: Path, tmp_path: Path) -> None:
    expected = prepare(settings_of(**settings(lora))).adapter.hypernetwork.state_dict()
    tensors, other = load_file(lora), tmp_path / "other.safetensors"
    if form == "original":
        unet = settings_of().model
        options = LoraOptions(rank=4, names="original", **QUICK)
        export_lora(make_affine((SELF_WIDTH, TEXT_WIDTH), bias=False), unet, other, options)
    else:
        unet = prepare(settings_of("b.pt")).task.denoiser.unet
        layers = [f"{site.name}.to_{side}" for site in find_sites(unet) for side in ("k", "v")]
        names = {"lora_unet_" + layer.replace(".", "_"): f"unet.{layer}" for layer in layers}
        parts = ("lora_A.weight", "lora_B.weight") if form == "peft" else ("lora.down.weight", "lora.up.weight")
        renamed = {}
        for name, new in names.items():
            scale = tensors[f"{name}.alpha"] / len(tensors[f"{name}.lora_down.weight"])
            renamed[f"{new}.{parts[0]}"] = tensors[f"{name}.lora_down.weight"].contiguous()
            renamed[f"{new}.{parts[1]}"] = (tensors[f"{name}.lora_up.weight"] * scale).contiguous()
        save_file(renamed, other)
    found = prepare(settings_of("c.pt", **settings(other))).adapter.hypernetwork
    x = torch.randn(2, 3, TEXT_WIDTH)
    for side in ("k", "v"):
        before = prepare(settings_of("d.pt", **settings(lora))).adapter.hypernetwork
        torch.testing.assert_close(found.transform(side, x), before.transform(side, x), rtol=1e-3, atol=1e-4)
    assert found.state_dict().keys() == expected.keys()


def test_other_layers_of_a_lora_are_counted(settings_of: Run, lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora)
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    more = {f"{name}.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    save_file({**tensors, **more}, tmp_path / "more.safetensors")
    training = prepare(settings_of(**settings(tmp_path / "more.safetensors")))
    assert any("1 other layer" in note for note in training.notes)


def test_a_lora_for_another_model_is_refused(settings_of: Run, tmp_path: Path) -> None:
    export_lora(make_affine(WIDTHS["sd1"]), make_unet(), tmp_path / "x.safetensors", LYCORIS)
    with raises(ConfigError, "start_from"):
        prepare(settings_of(**settings(tmp_path / "x.safetensors")))
    save_file({"lora_te_a.lora_down.weight": torch.ones(2, 2)}, tmp_path / "te.safetensors")
    with raises(ConfigError, "no keys or values"):
        prepare(settings_of(**settings(tmp_path / "te.safetensors")))
