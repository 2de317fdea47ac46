"""LoRA files: the least rank for a fidelity, fitted to the contexts of the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

import hnloader
from hnloader.attention import find_sites
from hnloader.conversion.lora import LoraOptions, export_lora
from hnloader.conversion.lora.context_samples import KEPT_SEQUENCES
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.network import Architecture
from hnloader.pipelines import load_model
from tests.support.lora_models import PROMPTS, QUICK, Pipelines, errors_of, make_affine, make_random, read, with_file
from tests.support.small_models import WIDTHS, assert_same, make_unet, run

KINDS = ("sd1", "sd2", "sdxl")


def live(unet: nn.Module, hypernetworks: Any, kind: str) -> Tensor:
    with hnloader.attach(unet, hypernetworks):
        return run(unet, kind)


@pytest.mark.parametrize(("kind", "names"), [("sd1", "auto"), ("sd2", "auto"), ("sdxl", "auto"), ("sdxl", "original")])
def test_full_rank_in_diffusers_is_the_live_hypernetwork(
    tmp_path: Path, pipelines: Pipelines, kind: str, names: Any
) -> None:
    pipeline, hypernetwork = pipelines(kind), make_affine(WIDTHS[kind], bias=False)
    made = export_lora(
        hypernetwork, pipeline, tmp_path / "x.safetensors", LoraOptions(rank="full", names=names, **QUICK)
    )
    expected = live(pipeline.unet, hypernetwork, kind)
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    assert_same(run(pipeline.unet, kind), expected, 2e-5)
    assert made.errors.worst < 1e-5
    pipeline.unload_lora_weights()
    assert not torch.allclose(run(pipeline.unet, kind), expected, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_it(tmp_path: Path, pipelines: Pipelines, kind: str) -> None:
    pipeline, hypernetwork = pipelines(kind), make_affine(WIDTHS[kind])
    made = export_lora(
        hypernetwork, pipeline, tmp_path / "x.safetensors", LoraOptions(fidelity=0.7, names="diffusers", **QUICK)
    )
    assert len(set(made.ranks.values())) > 1
    with with_file(pipeline.unet, made.path) as changed:
        expected = run(changed, kind)
    tensors = read(made.path)[0]
    weights = {}
    for name in made.ranks:
        layer = "lora_unet_" + name.replace(".", "_")
        weights[f"{name}.lora_A.weight"] = tensors[f"{layer}.lora_down.weight"]
        weights[f"{name}.lora_B.weight"] = tensors[f"{layer}.lora_up.weight"]
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(made.ranks),
        rank_pattern=dict(made.ranks),
    )
    model = inject_adapter_in_model(config, pipeline.unet)
    outcome = set_peft_model_state_dict(model, weights)
    assert not outcome.unexpected_keys
    assert_same(run(model.eval(), kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_mixed_ranks(tmp_path: Path, pipelines: Pipelines, kind: str) -> None:
    """It ignores alphas that differ between layers, so there must be one."""
    pipeline, hypernetwork = pipelines(kind), make_affine(WIDTHS[kind])
    made = export_lora(hypernetwork, pipeline, tmp_path / "x.safetensors", LoraOptions(fidelity=0.7, **QUICK))
    with with_file(pipeline.unet, made.path) as changed:
        expected = run(changed, kind)
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    assert_same(run(pipeline.unet, kind), expected)


def observed_errors(pipeline: Any, hypernetwork: Any, path: Path, prompt: str, seed: int) -> dict[str, float]:
    """Errors of keys and values by another way: both models' own outputs of to_k and to_v on a new image."""
    wrong, change = {"k": 0.0, "v": 0.0}, {"k": 0.0, "v": 0.0}
    twins: dict[str, nn.Module] = {}

    def watch(name: str, side: str, hn: Any) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            plain = module.weight.double()
            live_change = hn.transform(side, inputs[0]).double() @ plain.T - inputs[0].double() @ plain.T
            made = inputs[0].double() @ (twins[name].weight.double() - plain).T
            off = live_change - made
            if side == "k":
                live_change, off = (x - x.mean(1, keepdim=True) for x in (live_change, off))
            change[side] += float(live_change.square().sum())
            wrong[side] += float(off.square().sum())
            return (hn.transform(side, inputs[0]).double() @ plain.T).to(output.dtype)

        return hook

    with with_file(pipeline.unet, path) as changed:
        twins |= dict(changed.named_modules())
    handles = [
        getattr(site.module, f"to_{side}").register_forward_hook(watch(f"{site.name}.to_{side}", side, hypernetwork))
        for site in find_sites(pipeline.unet)
        for side in "kv"
    ]
    with torch.no_grad():
        pipeline(prompt, num_inference_steps=6, generator=torch.Generator().manual_seed(seed), output_type="latent")
    for handle in handles:
        handle.remove()
    return {side: (wrong[side] / change[side]) ** 0.5 for side in "kv"}


@pytest.mark.slow
@pytest.mark.parametrize("style", ["outline", "halftone"])
def test_the_stated_error_holds_for_new_images(tmp_path: Path, style: str) -> None:
    pipeline = load_model(pipeline_folder()).pipeline
    made = export_lora(hypernetwork_paths()[style], pipeline_folder(), tmp_path / "x.safetensors", LoraOptions(steps=6))
    stated = errors_of(made.path)["overall"]
    hypernetwork = hnloader.load(hypernetwork_paths()[style])
    prompt = "a small blue star at the bottom left and a large red square at the top right on a white background"
    found = observed_errors(pipeline, hypernetwork, made.path, prompt, seed=4321)
    for side in "kv":
        assert found[side] < 1.3 * stated[side]["of_change"], (found, stated)
    if style == "outline":  # affine, so the fidelity is in reach
        assert made.fidelity > 0.94 and not made.warnings
    else:
        assert any("Poor fit" in warning for warning in made.warnings)


@pytest.mark.slow
def test_the_fit_beats_a_plain_svd(tmp_path: Path) -> None:
    from lab.benchmarks.lora_fit import compare_fits

    for row in compare_fits(ranks=(2, 4), images=5, steps=4):
        for side in "kv":
            assert row.fitted[side] < 0.9 * row.plain[side], row


def test_ranks_follow_the_fidelity(tmp_path: Path, pipelines: Pipelines) -> None:
    pipeline, hypernetwork = pipelines("sd1"), make_affine(WIDTHS["sd1"], bias=False)
    made = [
        export_lora(
            hypernetwork, pipeline, tmp_path / f"{fidelity}.safetensors", LoraOptions(fidelity=fidelity, **QUICK)
        )
        for fidelity in (0.5, 0.8, 0.95)
    ]
    ranks = [sum(one.ranks.values()) for one in made]
    worst = [one.errors.worst for one in made]
    assert ranks == sorted(ranks) and ranks[0] < ranks[2]
    assert worst == sorted(worst, reverse=True)
    assert worst[2] < 0.06


def test_the_weight_carries_the_constant_of_values(tmp_path: Path, pipelines: Pipelines) -> None:
    """Text contexts begin with the same token, and self-attention contexts have a mean."""
    pipeline = pipelines("sd1")
    hypernetwork = make_random(WIDTHS["sd1"], Architecture((1, 1)))
    for name, parameter in hypernetwork.named_parameters():
        if name.endswith("weight"):
            parameter.zero_()  # nothing but a constant
    made = export_lora(hypernetwork, pipeline, tmp_path / "x.safetensors", LoraOptions(rank="full", **QUICK))
    error = errors_of(made.path)
    assert error["overall"]["v"]["of_change"] < 0.9
    assert all(block.get("k", {"of_change": 0})["of_change"] == 0 for block in error.values())


def test_a_nonlinear_network_becomes_its_best_affine_fit(tmp_path: Path, pipelines: Pipelines) -> None:
    pipeline = pipelines("sd1")
    gentle = make_random(WIDTHS["sd1"], Architecture((1, 2, 1), "softplus"), bias=False)
    made = export_lora(
        gentle, pipeline, tmp_path / "x.safetensors", LoraOptions(kind="lycoris", prompts=PROMPTS, images=10, steps=3)
    )
    assert not made.exact
    assert made.errors.overall("v").of_change < 0.3
    expected, untouched = live(pipeline.unet, gentle, "sd1"), run(pipeline.unet)
    with with_file(pipeline.unet, made.path) as changed:
        found = run(changed)
    assert (found - expected).norm() < 0.5 * (untouched - expected).norm()


def test_several_become_one_lora(tmp_path: Path, pipelines: Pipelines) -> None:
    pipeline = pipelines("sd1")
    chain = [(make_affine(WIDTHS["sd1"], bias=False, seed=1), 0.7), (make_affine((48, 20), bias=False, seed=2), -0.5)]
    made = export_lora(chain, pipeline, tmp_path / "x.safetensors", LoraOptions(rank="full", **QUICK))
    with with_file(pipeline.unet, made.path) as changed:
        assert_same(run(changed), live(pipeline.unet, chain, "sd1"), 2e-5)


@pytest.mark.slow
def test_the_model_stays_unchanged(tmp_path: Path, pipelines: Pipelines) -> None:
    pipeline, hypernetwork = pipelines("sd1"), make_affine(WIDTHS["sd1"])
    before = copy.deepcopy(pipeline.unet.state_dict())
    export_lora(hypernetwork, pipeline, tmp_path / "x.safetensors", LoraOptions(**QUICK))
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.unet.state_dict().items())
    assert not any(module._forward_pre_hooks for module in pipeline.unet.modules())


@pytest.mark.slow
def test_exports_are_deterministic(tmp_path: Path, pipelines: Pipelines) -> None:
    hypernetwork = make_affine(WIDTHS["sd1"])
    first, again = (
        read(
            export_lora(
                hypernetwork, pipelines("sd1"), tmp_path / f"{name}.safetensors", LoraOptions(rank=4, **QUICK)
            ).path
        )[0]
        for name in "ab"
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_a_unet_alone_is_noted(tmp_path: Path) -> None:
    hypernetwork = make_affine(WIDTHS["sdxl"], bias=False)
    made = export_lora(hypernetwork, make_unet("sdxl"), tmp_path / "x.safetensors", LoraOptions(rank="full", **QUICK))
    assert made.statistics.startswith("UNet alone")
    assert any("UNet" in warning for warning in made.warnings)
    with with_file(make_unet("sdxl"), made.path) as changed:
        assert_same(run(changed, "sdxl"), live(make_unet("sdxl"), hypernetwork, "sdxl"), 2e-5)


def test_contexts_are_sampled_with_the_hypernetwork_applied(pipelines: Pipelines) -> None:
    from hnloader.conversion.lora.base_model import open_base
    from hnloader.conversion.lora.context_samples import Sampling, sample
    from hnloader.conversion.lora.lora_chain import Chain

    pipeline, hypernetwork = pipelines("sd1"), make_affine(WIDTHS["sd1"])
    base = open_base(pipeline)
    last = [site for site in base.sites if site.kind == "self"][-1]
    chain = Chain([hnloader.Application(hypernetwork)], base.sites)
    found = sample(base, chain, Sampling(PROMPTS, 5, 2), lambda *_: None).of(last).moments.cc
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].double().flatten(0, 1))

    handle = last.module.register_forward_pre_hook(keep)
    with hnloader.attach(pipeline, hypernetwork), torch.no_grad():
        for index in (0, 1, 3):  # those that are for fitting
            generator = torch.Generator().manual_seed(index)
            pipeline(
                PROMPTS[index], num_inference_steps=2, guidance_scale=5.0, generator=generator, output_type="latent"
            )
    handle.remove()
    contexts = torch.cat(seen)  # a layer of 256 tokens, which are all taken
    assert_same(found, contexts.T @ contexts, 1e-4)


@pytest.mark.slow
def test_the_number_of_samples_is_bounded(pipelines: Pipelines) -> None:
    from hnloader.conversion.lora.base_model import open_base
    from hnloader.conversion.lora.context_samples import Sampling, sample
    from hnloader.conversion.lora.lora_chain import Chain

    base = open_base(pipelines("sd1"))
    chain = Chain([hnloader.Application(make_affine(WIDTHS["sd1"]))], base.sites)
    found = sample(base, chain, Sampling(PROMPTS * 20 + tuple("abcdefgh"), 30, 2), lambda *_: None)
    assert {site.index for site in base.sites} == found.layers.keys()
    for layer in found.layers.values():
        assert 0 < len(layer.samples("test")) <= KEPT_SEQUENCES
        assert layer.moments.count > 100


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_layer_that_sees_a_single_token(tmp_path: Path, pipelines: Pipelines, activation: str | None) -> None:
    """As self-attention in the middle of a model does in its smallest images, where no key changes anything."""
    pipeline = pipelines("sd1")
    levels = len(pipeline.unet.config.block_out_channels) - 1
    pipeline.unet.register_to_config(sample_size=2**levels)
    made = export_lora(
        make_random(WIDTHS["sd1"], Architecture((1, 2, 1), activation)),
        pipeline,
        tmp_path / "x.safetensors",
        LoraOptions(**QUICK),
    )
    assert all(torch.isfinite(tensor).all() for tensor in read(made.path)[0].values())
    assert 0 <= made.errors.worst < 1
