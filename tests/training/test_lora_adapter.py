"""Train a LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from hnloader.errors import ConfigError
from hnloader.training import prepare, train
from hnloader.training.lora_adapter import target_names
from tests.support.small_models import assert_untouched, fingerprint, make_unet
from tests.support.trainings import Run, raises

LORA = {"method": "lora", "lora__rank": 3, "lora__dropout": 0.2}


def lora_of(settings_of: Run, name: str = "style.safetensors", **changes: object) -> object:
    return settings_of(name, **{**LORA, **changes})


@pytest.mark.parametrize("targets", ["kv", "attention", "all"])
def test_diffusers_reads_the_file(targets: str, settings_of: Run, tiny_model: Path) -> None:
    training = prepare(lora_of(settings_of, lora__targets=targets, steps=4, lora__alpha=6.0, ema_decay=0.0))
    unet = training.task.denoiser.unet
    before, names = fingerprint(unet), [name for name, _ in unet.named_modules()]
    result = training.run()
    assert_untouched(unet, before)
    assert [name for name, _ in unet.named_modules()] == names
    inputs = {
        "sample": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(
            1, 7, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2)
        ),
    }
    with torch.no_grad():
        plain = unet(**inputs).sample
        with training.applied():
            expected = unet(**inputs).sample
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
        pipeline.load_lora_weights(result.output)
        found = pipeline.unet(**inputs).sample
    assert (expected - plain).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    changed = {"kv": 2, "attention": 4, "all": 4}[targets]
    layers = {name.partition(".")[0] for name in load_file(result.output)}
    per_block = len([name for name in layers if "attn1" in name]) / len([n for n in layers if "attn1_to_k" in n])
    assert per_block == changed
    assert any("ff_net" in name for name in layers) == (targets == "all")


def test_resume_gives_the_same_bits(settings_of: Run) -> None:
    expected = load_file(train(lora_of(settings_of, "whole/style.safetensors", steps=6)).output)
    config = lora_of(settings_of, steps=6)
    training = prepare(config)
    training.run(lambda event: training.stop() if event.step == 3 else None)
    found = load_file(train(config, resume=True).output)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_new_lora_changes_nothing_and_depends_on_the_seed(settings_of: Run) -> None:
    first, again, other = (prepare(lora_of(settings_of, f"{n}.safetensors", seed=s)) for n, s in enumerate((1, 1, 2)))
    downs = [each.adapter.parameters[0] for each in (first, again, other)]
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])
    assert all(not parameter.any() for parameter in first.adapter.parameters[1::2])


def test_start_from_a_file(settings_of: Run, tmp_path: Path) -> None:
    start = train(lora_of(settings_of, "start.safetensors", steps=2, ema_decay=0.0, lora__alpha=9.0)).output
    training = prepare(lora_of(settings_of, "next.safetensors", start_from=str(start), lora__rank=7, steps=1))
    assert training.state.previous_steps == 2
    assert training.adapter.alpha == 9.0
    assert {parameter.shape[0] for parameter in training.adapter.parameters[::2]} == {3}
    written = load_file(start)
    training.adapter.save(tmp_path / "copy.safetensors", 2, training.task.model)
    copy = load_file(tmp_path / "copy.safetensors")
    assert all(torch.equal(copy[name], value) for name, value in written.items())
    with raises(ConfigError, "lora.targets"):
        prepare(lora_of(settings_of, "other.safetensors", start_from=str(start), lora__targets="kv"))
    first = next(name for name in written if name.endswith("lora_up.weight"))
    save_file({**written, first: torch.zeros(2, 3)}, tmp_path / "wrong.safetensors")
    with raises(ConfigError, "another model"):
        prepare(lora_of(settings_of, "wrong-start.safetensors", start_from=str(tmp_path / "wrong.safetensors")))
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    with raises(ConfigError, "broken.safetensors"):
        prepare(lora_of(settings_of, "broken-start.safetensors", start_from=str(tmp_path / "broken.safetensors")))


def test_prior_preservation_uses_the_model_without_the_lora(settings_of: Run) -> None:
    training = prepare(lora_of(settings_of, steps=2, prior__weight=1.0))
    training.run()
    sites = target_names(training.task.denoiser.unet, "attention")
    assert all(type(training.task.denoiser.unet.get_submodule(name)) is torch.nn.Linear for name in sites)


def test_a_lora_is_a_safetensors_file(settings_of: Run) -> None:
    with raises(ConfigError, ".safetensors"):
        prepare(lora_of(settings_of, "style.pt"))


def test_targets_of_a_family_with_several_blocks_per_layer() -> None:
    unet = make_unet("sdxl")
    names = target_names(unet, "all")
    assert len(names) == len(set(names))
    assert sum(name.endswith("ff.net.2") for name in names) * 2 == sum(name.endswith("to_k") for name in names)
