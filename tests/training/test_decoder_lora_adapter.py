"""Train a LoRA on a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from hnloader.errors import ConfigError
from hnloader.language_models import load_language_model
from hnloader.training import prepare, read_config, train
from tests.support.small_language_models import save_language_model, save_texts, sentences
from tests.support.trainings import raises


def config_of(folder: Path, family: str = "llama", name: str = "style", **changes: object) -> Any:
    model, texts = folder / family, folder / "texts"
    if not model.exists():
        save_language_model(model, family)
    if not texts.exists():
        save_texts(texts, sentences(12))
    given = {"model": str(model), "texts": str(texts), "output": str(folder / name), "method": "lora", "steps": 4}
    given |= {"learning_rate": "1e-2", "lora.rank": 3, "lora.alpha": 6.0, "text.block_size": 32}
    given |= {"save_every_n_steps": 2, "validate_every_n_steps": 2, "previews.every_n_steps": 0}
    return read_config(None, {**given, **{key.replace("__", "."): value for key, value in changes.items()}})


# peft asks transformers for a deprecated name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        ("llama", "kv", {"k_proj", "v_proj"}),
        ("llama", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("llama", "all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", "attention", {"c_attn", "c_proj"}),
    ],
)
def test_peft_reads_the_folder(family: str, targets: str, layers: set[str], tmp_path: Path) -> None:
    training = prepare(config_of(tmp_path, family, lora__targets=targets))
    model = training.task.language.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = training.run()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ids = torch.arange(5)[None] + 5
    with torch.no_grad():
        plain = model(ids).logits
        with training.applied():
            expected = model(ids).logits
        fresh = load_language_model(tmp_path / family, device="cpu").model
        found = PeftModel.from_pretrained(fresh, result.output)(ids).logits
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    names = load_file(result.output / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == layers
    assert json.loads((result.output / "adapter_config.json").read_text())["r"] == 3
    assert (result.best.path / "adapter_config.json").is_file()


def test_resume_gives_the_same_bits(tmp_path: Path) -> None:
    expected = train(config_of(tmp_path, name="whole/style", steps=6, lora__dropout=0.2)).output
    config = config_of(tmp_path, steps=6, lora__dropout=0.2)
    training = prepare(config)
    training.run(lambda event: training.stop() if event.step == 3 else None)
    found = train(config, resume=True).output
    for name, tensor in load_file(expected / "adapter_model.safetensors").items():
        assert torch.equal(load_file(found / "adapter_model.safetensors")[name], tensor), name


def test_errors(tmp_path: Path) -> None:
    with raises(ConfigError, "'lora.targets'", "kv"):
        prepare(config_of(tmp_path, "gpt2", lora__targets="kv"))
    with raises(ConfigError, "'start_from'"):
        prepare(config_of(tmp_path, start_from=str(tmp_path / "other")))
