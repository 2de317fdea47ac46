"""Embeddings in the commands, beside hypernetworks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from hnloader.cli.app import app
from hnloader.conversion.to_format import ToFormat
from hnloader.embeddings import Embedding, load_embedding, save_embedding
from hnloader.embeddings.embedding_conversion import verify_embedding
from hnloader.errors import HypernetworkError, VerificationError
from hnloader.scanning import scan
from tests.support.builders import simple_tree, write

VECTORS = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hypernetwork, an embedding and a LoRA."""
    found = tmp_path / "files"
    found.mkdir()
    write(found / "net.pt", simple_tree())
    about = {"training_config": "{}"}
    embedding = Embedding(VECTORS, step=1200, sd_checkpoint="7460a6fa", sd_checkpoint_name="v1-4", metadata=about)
    save_embedding(embedding, found / "word.pt")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1, 2)}, found / "lora.safetensors")
    return found


def test_inspect_shows_embeddings(folder: Path) -> None:
    result = run("inspect", folder / "word.pt")
    assert result.exit_code == 0
    for text in ("textual-inversion", "2 of 768 (float32)", "SD 1", "1,200 steps on v1-4 (7460a6fa)", "<word>"):
        assert text in result.stdout
    result = run("inspect", folder)
    assert result.exit_code == 1  # the LoRA
    assert "1 hypernetwork, 1 embedding, 1 other file" in result.stderr
    found = {Path(one["path"]).name: one for one in json.loads(run("inspect", folder, "--json").stdout)}
    word = found["word.pt"]
    assert (word["kind"], word["vectors"], word["widths"], word["step"]) == ("embedding", 2, [768], 1200)
    assert "error" in found["lora.safetensors"] and "kind" not in found["net.pt"]


def test_scan_calls_sound_embeddings_safe(folder: Path) -> None:
    assert {path.name: scan(path).verdict for path in folder.iterdir()} == {
        "net.pt": "safe",
        "word.pt": "safe",
        "lora.safetensors": "not a hypernetwork",
    }


def test_convert_takes_embeddings(folder: Path, tmp_path: Path) -> None:
    result = run("convert", folder, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"net.safetensors", "word.safetensors"}
    made = load_embedding(tmp_path / "new" / "word.safetensors")
    assert torch.equal(made.vectors, VECTORS) and made.step == 1200
    assert "emb_params" in load_file(tmp_path / "new" / "word.safetensors")
    again = run("convert", folder, "--out", tmp_path / "new")
    assert again.exit_code == 0 and "2 converted" not in again.output
    assert run("convert", folder, "--out", tmp_path / "new", "--verify-only").exit_code == 0
    back = run("convert", tmp_path / "new" / "word.safetensors", "--to", "pt", "--out", tmp_path / "word.pt")
    assert back.exit_code == 0, back.output
    verify_embedding(folder / "word.pt", tmp_path / "word.pt")


@pytest.mark.parametrize("form", ["bin", "png"])
def test_convert_writes_the_other_forms(form: str, folder: Path, tmp_path: Path) -> None:
    made = tmp_path / f"word.{form}"
    result = run("convert", folder / "word.pt", "--out", made)
    assert result.exit_code == 0, result.output
    assert ("no place for step" in result.stderr) == (form == "bin")
    assert torch.equal(load_embedding(made).vectors, VECTORS)
    assert run("convert", folder / "word.pt", "--to", form, "--out", tmp_path, "--verify-only").exit_code == 0
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64), "white").save(images / "other.png")
    made = made.rename(images / made.name)
    back = run("convert", images, "--to", "pt", "--out", tmp_path / "back")
    assert back.exit_code == 0, back.output
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["word.pt"]
    assert torch.equal(load_embedding(tmp_path / "back" / "word.pt").vectors, VECTORS)
    refused = run("convert", folder / "net.pt", "--out", tmp_path / f"net.{form}")
    assert refused.exit_code == 1 and f".{form}" in refused.output


@pytest.mark.parametrize("form", ["bin", "png"])
def test_folders_show_the_other_forms(form: str, folder: Path) -> None:
    (folder / "lora.safetensors").unlink()
    Image.new("RGB", (64, 64), "white").save(folder / "other.png")
    save_embedding(Embedding(VECTORS), folder / f"ink.{form}")
    result = run("inspect", folder)
    assert result.exit_code == 0 and f"ink.{form}" in result.stdout
    assert "1 hypernetwork, 2 embeddings" in result.stderr
    found = {path.name: scan(path).verdict for path in folder.iterdir()}
    assert (found[f"ink.{form}"], found["other.png"]) == ("safe", "not a hypernetwork")


def test_a_changed_result_is_noticed(folder: Path, tmp_path: Path) -> None:
    converter = ToFormat(".safetensors", dtype="float16")
    target = tmp_path / "word.safetensors"
    converter.convert(folder / "word.pt", target)
    assert load_embedding(target).vectors.dtype == torch.float16
    assert converter.is_current(folder / "word.pt", target)
    assert not ToFormat(".safetensors").is_current(folder / "word.pt", target)
    save_embedding(Embedding(VECTORS.half() + 1, step=1200), target)
    assert not converter.is_current(folder / "word.pt", target)
    with pytest.raises(VerificationError, match="vectors"):
        verify_embedding(folder / "word.pt", target, "float16")
    with pytest.raises(HypernetworkError):
        converter.check_source(folder / "lora.safetensors")


def test_generate_uses_embeddings(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    save_embedding(Embedding(torch.ones(2, 24)), tmp_path / "words" / "ink.pt")
    common = ("generate", "--model", tiny_model, "--device", "cpu", "--steps", 1, "--seed", 1)
    named = run(*common, "a ink", "--embedding", "ink", "--embedding-dir", "words", "--out", "named.png")
    assert named.exit_code == 0, named.output
    pathed = run(*common, "a ink", "-E", "words/ink.pt", "--out", "pathed.png")
    assert pathed.exit_code == 0 and (tmp_path / "named.png").read_bytes() == (tmp_path / "pathed.png").read_bytes()
    assert run(*common, "a ink", "--out", "plain.png").exit_code == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "named.png").read_bytes()
    unused = run(*common, "a cat", "-E", "words/ink.pt", "--out", "unused.png")
    assert unused.exit_code == 0 and "'ink'" in unused.stderr
    assert run(*common, "a ink", "-E", "none", "--out", "none.png").exit_code == 2
    by_word = run(*common, "a ink", "--embedding-dir", "words", "--out", "word.png")
    assert by_word.exit_code == 0 and (tmp_path / "word.png").read_bytes() == (tmp_path / "named.png").read_bytes()
    shown = run("inspect", "named.png", "--embedding-dir", "words")
    assert str(Path("words/ink.pt")) in shown.stdout
