from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import hnloader.generation
from hnloader.cli.app import app
from hnloader.infotext import read_infotext


@pytest.fixture
def run(tiny_model: Path, styles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `generate` with the tiny model in an empty folder, by default with 2 steps and seed 7."""
    monkeypatch.chdir(tmp_path)

    def generate(*arguments: object, **environment: str):
        defaults = ["--model", tiny_model, "--hypernet-dir", styles, "--device", "cpu", "--steps", 2, "--seed", 7]
        return CliRunner().invoke(app, ["generate", *map(str, [*defaults, *arguments])], env=environment)

    return generate


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_images_are_numbered_and_their_paths_printed(run, tmp_path: Path) -> None:
    result = run("a cat", "-n", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["images/00001-7.png", "images/00002-8.png"]
    assert run("a cat", "--seed", 1).stdout == "images/00003-1.png\n"
    assert written(tmp_path) == ["images/00001-7.png", "images/00002-8.png", "images/00003-1.png"]


def test_number_taken_by_another_process_is_skipped(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("a cat").exit_code == 0
    before = (tmp_path / "images" / "00001-7.png").read_bytes()
    monkeypatch.setattr("hnloader.cli.generate_command._Target._next_number", lambda self: 1)
    assert run("a dog").stdout == "images/00002-7.png\n"
    assert (tmp_path / "images" / "00001-7.png").read_bytes() == before


def test_init_image_is_not_overwritten(run, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "start.png")
    before = (tmp_path / "start.png").read_bytes()
    (tmp_path / "link.png").symlink_to("start.png")
    for out in ("start.png", "link.png"):
        assert run("a cat", "--init", "start.png", "--out", out).exit_code == 2
    assert (tmp_path / "start.png").read_bytes() == before


def test_folder_name_with_a_dot(run) -> None:
    assert run("a cat", "--out", "try-1.5").stdout == f"{Path('try-1.5') / '00001-7.png'}\n"


def test_options_and_tags_reach_the_parameters(run, tmp_path: Path, styles: Path) -> None:
    result = run(
        *("a cat <hypernet:ink:0.8>", "-H", f"{styles / 'oil.safetensors'}:0.5:end=0.8", "--negative", "dog"),
        *("--size", "48x32", "--guidance", 4.5, "--sampler", "euler_a", "--out", "one.png"),
    )
    assert result.exit_code == 0, result.output
    assert pixels(tmp_path / "one.png").shape == (32, 48, 3)
    info = read_infotext(tmp_path / "one.png")
    assert info is not None
    assert info.prompt == "a cat <hypernet:ink:0.8> <hypernet:oil:0.5:end=0.8>"
    assert info.negative_prompt == "dog"
    expected = {"Steps": "2", "Seed": "7", "Size": "48x32", "CFG scale": "4.5", "Sampler": "Euler a", "Model": "tiny"}
    assert expected.items() <= info.settings.items()


def test_name_path_and_tag_are_equivalent(run, tmp_path: Path, styles: Path) -> None:
    run("a cat", "--out", "plain.png")
    run("a cat", "-H", "ink:0.8", "--out", "name.png")
    run("a cat", "-H", f"{styles / 'ink.pt'}:0.8", "--out", "path.png")
    run("a cat<hypernet:ink:0.8>", "--out", "tag.png")
    plain, name, path, tag = (pixels(tmp_path / f"{kind}.png") for kind in ("plain", "name", "path", "tag"))
    assert np.abs(name - plain).max() > 0
    assert np.array_equal(name, path)
    assert np.array_equal(name, tag)


def test_init_image(run, tmp_path: Path) -> None:
    Image.radial_gradient("L").save(tmp_path / "start.png")
    assert run("a cat", "--init", "start.png", "--denoise", 0.5, "--out", "to.png").exit_code == 0
    info = read_infotext(tmp_path / "to.png")
    assert info is not None
    assert info.settings["Denoising strength"] == "0.5"


def test_sweep_is_one_labeled_grid(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hnloader.grids

    seen = {}
    real = hnloader.grids.labeled_grid

    def spy(images, **labels):
        seen.update(labels, shape=(len(images), len(images[0])))
        return real(images, **labels)

    monkeypatch.setattr(hnloader.grids, "labeled_grid", spy)
    result = run("a cat <hypernet:ink:0.8>", "--sweep", "0,0.5,1", "-n", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == "images/sweep-00001-7.png\n"
    assert seen == {
        "shape": (2, 3),
        "columns": ["ink 0", "ink 0.4", "ink 0.8"],
        "rows": ["seed 7", "seed 8"],
        "caption": "a cat",
    }
    info = read_infotext(tmp_path / "images" / "sweep-00001-7.png")
    assert info is not None
    assert info.prompt == "a cat <hypernet:ink:0.8>"


def test_notes_about_the_prompt(run, styles: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "ink.pt").write_bytes((styles / "ink.pt").read_bytes())
    result = run("a cat <lora:x:1> <hypernet:ink:1>", "--hypernet-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Note: <lora:x:1>:" in result.stderr
    assert "2 files" in result.stderr and str(styles / "ink.pt") in result.stderr


def test_partial_match_is_noted_once(run, tmp_path: Path) -> None:
    from tests.support.tiny_model import save_hypernetwork

    save_hypernetwork(tmp_path / "both.pt", widths=(16, 24, 48))
    result = run("a cat", "-H", "both.pt", "-n", 2)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Note:") == 1
    assert "48" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-H", "inc:0.8"], 1, "'ink'"),
        (["-H", "sd1"], 1, "768"),
        (["-H", "./gone.pt"], 1, "./gone.pt"),
        (["-H", "gone.pt"], 1, "--hypernet-dir"),
        (["-H", "ink:0,8"], 2, "--hypernet"),
        (["-H", "ink:1:foo=2"], 2, "foo"),
        (["--size", "big"], 2, "512x768"),
        (["--size", "30"], 1, "30"),
        (["--sweep", "a,b"], 2, "0,0.5,1"),
        (["--sweep", "0,1"], 1, "hypernetwork"),
        (["--sampler", "eular"], 1, "euler_a"),
        (["--out", "image.jpg"], 2, "PNG"),
        (["--out", "one.png", "-n", "2"], 2, "Name a folder"),
        (["--init", "gone.png"], 1, "gone.png"),
        (["--hypernet-dir", "gone"], 2, "gone"),
        (["--model", "gone.safetensors"], 1, "gone.safetensors"),
        (["--device", "tpu"], 1, "tpu"),
        (["--dtype", "int8"], 1, "int8"),
        (["-n", "0"], 2, "--count"),
        (["--seed", "-1"], 2, "--seed"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_failures_leave_no_files(run, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    result = run("a cat", *arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if code == 1:
        assert len(result.stderr.strip().splitlines()) == 1
    assert written(tmp_path) == []


def test_invalid_tag_is_a_usage_error(run) -> None:
    result = run("a cat <hypernet:ink:strong>")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


def test_invalid_hypernetwork_file(run, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    result = run("a cat", "-H", "empty.pt")
    assert result.exit_code == 1
    assert "empty.pt" in result.stderr


def test_ctrl_c_keeps_only_finished_images(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hnloader.generation._Run.image

    def interrupted(self, index, applied, progress):
        if index == 1:
            raise KeyboardInterrupt
        return real(self, index, applied, progress)

    monkeypatch.setattr(hnloader.generation._Run, "image", interrupted)
    result = run("a cat", "-n", 3)
    assert result.exit_code == 130
    assert "Interrupted." in result.stderr
    assert written(tmp_path) == ["images/00001-7.png"]


def test_full_disk_leaves_no_files(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("a cat")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert written(tmp_path) == []
