"""`hnloader merge`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.network import Architecture, Hypernetwork


@pytest.fixture
def files(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name, activation in (("a", None), ("b", None), ("curved", "relu"), ("bent", "relu")):
        made = Hypernetwork.new((12,), Architecture(activation=activation), name=name).requires_grad_(False)
        hnloader.save(made, tmp_path / f"{name}.pt")
    return tmp_path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["merge", *(str(each) for each in arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_chains_become_one_file(files: Path) -> None:
    code, out, err = run(f"{files}/a.pt:0.8", f"{files}/b.pt:0.3:k=1,v=0.5", "-o", files / "both.pt")
    assert code == 0, err
    assert out.strip() == str(files / "both.pt")
    assert "exact yes" in err
    x = torch.randn(3, 12)
    a, b, both = (hnloader.load(files / f"{name}.pt") for name in ("a", "b", "both"))
    torch.testing.assert_close(both.transform("k", x), b.transform("k", a.transform("k", x, 0.8), 0.3))
    torch.testing.assert_close(both.transform("v", x), b.transform("v", a.transform("v", x, 0.8), 0.15))
    assert torch.load(files / "both.pt", weights_only=True)["layer_structure"] == [1, 1]


def test_names_are_looked_up_in_the_folders(files: Path, tmp_path: Path) -> None:
    code, _, err = run("a:0.5", "--hypernet-dir", files, "-o", tmp_path / "half.safetensors")
    assert code == 0, err
    assert hnloader.load(tmp_path / "half.safetensors").name == "half"


def test_compositions_keep_chains_that_one_file_cannot_hold(files: Path) -> None:
    given = (f"{files}/curved.pt:0.8", f"{files}/bent.pt:0.5")
    code, _, err = run(*given, "-o", files / "both.pt")
    assert code == 1
    assert ".hns" in err
    assert not (files / "both.pt").exists()
    code, _, err = run(*given, "-o", files / "both.hns")
    assert code == 0, err
    assert "composition" in err
    x = torch.randn(3, 12)
    one, two, both = (hnloader.load(files / name) for name in ("curved.pt", "bent.pt", "both.hns"))
    torch.testing.assert_close(both.transform("k", x), two.transform("k", one.transform("k", x, 0.8), 0.5))
    (files / "else").mkdir()
    code, _, err = run(*given, "-o", files / "else" / "both.hns")
    assert "curved.pt, bent.pt" in err


@pytest.mark.parametrize("mode", ["side-by-side", "average"])
def test_other_modes(mode: str, files: Path) -> None:
    code, _, err = run(f"{files}/curved.pt", f"{files}/bent.pt", "--mode", mode, "-o", files / "both.pt")
    assert code == 0, err
    assert ("exact yes" in err) == (mode == "side-by-side")
    assert hnloader.load(files / "both.pt").architecture.activation == "relu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("A", "-o", "there.pt"), "--overwrite"),
        (("A", "-o", "A", "--overwrite"), "a.pt"),
        (("none.pt", "-o", "new.pt"), "none.pt"),
        (("A", "-o", "new.ckpt"), ".safetensors"),
        (("A:1:block=up", "-o", "new.pt"), "block=up"),
        (("A:1:start=0.5", "-o", "new.pt"), "start=0.5"),
        (("A", "--mode", "averge", "-o", "new.pt"), "averge"),
        (("A", "--dtype", "float8", "-o", "new.pt"), "float8"),
        (("A:1.5", "-o", "new.hns"), "1.5"),
    ],
)
def test_mistakes_print_one_line_and_change_nothing(arguments: tuple[str, ...], words: str, files: Path) -> None:
    (files / "there.pt").write_text("older")
    before = {path: path.read_bytes() for path in files.iterdir()}
    names = {"new.pt", "there.pt", "new.ckpt", "new.hns"}
    given = [each.replace("A", f"{files}/a.pt") if each[0] == "A" else each for each in arguments]
    code, _, err = run(*(files / each if each in names else each for each in given))
    assert code == 1
    assert words in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_hypernetworks_are_baked_into_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    made = Hypernetwork.new((16, 24), Architecture(activation=None), name="ink").requires_grad_(False)
    hnloader.save(made, tmp_path / "ink.pt")
    into = ("--into", tiny_model)
    code, out, err = run(f"{tmp_path}/ink.pt:0.8:block=up", *into, "-o", tmp_path / "baked")
    assert code == 0, err
    assert out.strip() == str(tmp_path / "baked") and (tmp_path / "baked" / "model_index.json").is_file()
    assert "attention layers, float32" in err and "exact yes, up to rounding" in err
    before = sorted(tmp_path.rglob("*"))
    for arguments, exit_code in [
        ((f"{tmp_path}/ink.pt", *into, "-o", tmp_path / "baked"), 1),
        ((f"{tmp_path}/ink.pt", *into, "-o", tmp_path / "new", "--dtype", "float16"), 2),
        ((f"{tmp_path}/ink.pt", *into, "-o", tmp_path / "new", "--mode", "average"), 2),
        ((f"{tmp_path}/ink.pt:1:start=0.5", *into, "-o", tmp_path / "new"), 1),
        ((f"{tmp_path}/ink.pt", "--into", tmp_path / "none", "-o", tmp_path / "new"), 1),
    ]:
        assert run(*arguments)[0] == exit_code
        assert sorted(tmp_path.rglob("*")) == before


def test_nonlinear_hypernetworks_are_not_baked(tiny_model: Path, files: Path) -> None:
    curved = Hypernetwork.new((16, 24), Architecture(activation="relu")).requires_grad_(False)
    hnloader.save(curved, files / "style.pt")
    code, _, err = run(f"{files}/style.pt", "--into", tiny_model, "-o", files / "new")
    assert code == 1 and "export-lora" in err and not (files / "new").exists()
