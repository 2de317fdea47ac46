"""Export hypernetworks for language models as LoRAs of peft."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.conversion.lora.decoder_export import export_decoder_lora
from hnloader.conversion.lora.lora_options import LoraOptions
from hnloader.errors import ExistingFileError, HypernetworkError, NoMatchingSitesError
from hnloader.language_models import LanguageModel, load_language_model
from hnloader.network import Architecture, Hypernetwork
from tests.support.small_decoders import WIDTH
from tests.support.small_language_models import save_language_model
from tests.support.trainings import raises

# peft asks transformers for a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.arange(6)[None] + 5


def made_of(*scopes: str, activation: str | None = None, bias: bool = False, size: float = 0.1) -> Hypernetwork:
    made = Hypernetwork.new(scopes or (f"{WIDTH}:self",), Architecture(activation=activation), name="style")
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
        if parameter.dim() == 1 and not bias:
            parameter.data.zero_()
    return made


def model_of(folder: Path, family: str) -> LanguageModel:
    return load_language_model(save_language_model(folder / family, family), device="cpu")


def umask() -> int:
    present = os.umask(0)
    os.umask(present)
    return present


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "falcon_new", "codegen"])
def test_an_affine_hypernetwork_is_exact(family: str, tmp_path: Path) -> None:
    language = model_of(tmp_path, family)
    made = made_of(f"{WIDTH}:self:0", f"{WIDTH}:self:2-")
    plain = logits(language.model)
    with hnloader.attach(language.model, made, 0.7):
        expected = logits(language.model)
    options = LoraOptions(strength=0.7, rank="full", images=5)
    result = export_decoder_lora(made, language, tmp_path / "lora", options, base="here")
    assert torch.equal(logits(language.model), plain)
    assert result.exact
    assert result.errors.worst < 1e-5
    fresh = load_language_model(tmp_path / family, device="cpu").model
    found = logits(PeftModel.from_pretrained(fresh, tmp_path / "lora"))
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "here"
    assert len(config["target_modules"]) == (4 if family == "llama" else 2)
    # The safetensors library writes files that other users cannot read.
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "lora").iterdir()}
    assert modes == {0o666 & ~umask()}


def test_the_error_of_others_is_stated(tmp_path: Path) -> None:
    language = model_of(tmp_path, "llama")
    curved = made_of(activation="relu", bias=True, size=0.4)
    result = export_decoder_lora(curved, language, tmp_path / "lora", LoraOptions(rank=4, images=5))
    assert not result.exact
    assert 0.01 < result.errors.worst < 1
    assert set(result.ranks.values()) == {4}
    with safe_open(tmp_path / "lora" / "adapter_model.safetensors", "pt") as file:
        about = file.metadata()
    assert about["hnloader.exact"] == "false"
    assert json.loads(about["hnloader.errors"])["overall"]["k"]["of_change"] == pytest.approx(
        result.errors.overall("k").of_change, rel=1e-3
    )
    better = export_decoder_lora(curved, language, tmp_path / "better", LoraOptions(rank="full", images=20))
    assert better.errors.worst < result.errors.worst
    assert better.warnings


def test_a_constant_is_no_lora(tmp_path: Path) -> None:
    """A LoRA has no bias, and rotary positions turn a constant key, so an affine file with biases is not exact."""
    language = model_of(tmp_path, "llama")
    result = export_decoder_lora(made_of(bias=True), language, tmp_path / "lora", LoraOptions(rank="full", images=5))
    assert not result.exact
    assert result.errors.overall("k").of_change > 1e-3


def test_the_rank_that_reaches_the_fidelity(tmp_path: Path) -> None:
    language = model_of(tmp_path, "llama")
    ranks = []
    for fidelity in (0.5, 0.99):
        options = LoraOptions(fidelity=fidelity, images=10)
        result = export_decoder_lora(made_of(), language, tmp_path / f"{fidelity}", options)
        ranks.append(next(iter(result.ranks.values())))
        # Fitted and measured on different texts.
        assert result.errors.worst < 1.2 * (1 - fidelity)
    assert 1 <= ranks[0] < ranks[1] <= 16


def test_a_chain_and_one_side(tmp_path: Path) -> None:
    language = model_of(tmp_path, "llama")
    chain = [hnloader.Application(made_of(), 0.5, k=0), hnloader.Application(made_of(size=0.05), 1.0, k=0)]
    with hnloader.attach(language.model, chain):
        expected = logits(language.model)
    export_decoder_lora(chain, language, tmp_path / "lora", LoraOptions(rank="full", images=5))
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"v_proj"}
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(language.model, tmp_path / "lora")), expected, rtol=0, atol=1e-4
    )


def test_refusals(tmp_path: Path) -> None:
    language = model_of(tmp_path, "llama")
    target = tmp_path / "lora"
    for options, fact in ((LoraOptions(kind="lycoris"), "lycoris"), (LoraOptions(rank=33), "33")):
        with raises(HypernetworkError, fact):
            export_decoder_lora(made_of(), language, target, options)
    with raises(HypernetworkError, "folder"):
        export_decoder_lora(made_of(), language, tmp_path / "lora.safetensors")
    with raises(NoMatchingSitesError, "99"):
        export_decoder_lora(made_of("99:self"), language, target)
    with raises(HypernetworkError, "softmax"):
        export_decoder_lora(made_of(activation="softmax"), language, target)
    with raises(HypernetworkError, "strength"):
        export_decoder_lora(made_of(), language, target, LoraOptions(strength=0))
    with hnloader.attach(language.model, made_of()), raises(HypernetworkError, "Detach"):
        export_decoder_lora(made_of(), language, target)
    assert not target.exists()
    export_decoder_lora(made_of(), language, target, LoraOptions(images=5))
    with pytest.raises(ExistingFileError):
        export_decoder_lora(made_of(), language, target, LoraOptions(images=5), overwrite=False)


def test_the_python_function_takes_the_path_of_a_model(tmp_path: Path) -> None:
    llm = save_language_model(tmp_path / "llm")
    made = hnloader.export_lora(made_of(), llm, tmp_path / "lora", LoraOptions(rank="full", images=5))
    assert made.exact
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llm)
    with raises(HypernetworkError, "grid"):
        hnloader.export_lora(made_of(), llm, tmp_path / "more", grid=tmp_path / "grid.png")


def test_the_command(tmp_path: Path) -> None:
    llm = save_language_model(tmp_path / "llm")
    file = tmp_path / "style.safetensors"
    hnloader.save(made_of(), file)

    def run(*arguments: object) -> Any:
        given = ["export-lora", file, "--base", llm, "--device", "cpu", "--images", 5, *arguments]
        return CliRunner().invoke(app, [*map(str, given)])

    result = run("--rank", "full")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "style-lora")
    assert "exact up to rounding" in result.stderr
    assert (tmp_path / "style-lora" / "adapter_config.json").is_file()
    assert run().exit_code == 1
    assert run("--on-existing", "overwrite", "--strength", "0.5").exit_code == 0
    assert run("--grid", tmp_path / "grid.png").exit_code == 2
    assert run(file).exit_code == 2
    chained = run(file, "--chain", "--out", tmp_path / "both")
    assert chained.exit_code == 0, chained.output
    assert run(file, "--chain", "--out", tmp_path / "both.safetensors").exit_code == 2
