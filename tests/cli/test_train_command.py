"""`hnloader train` and `hnloader dataset check` as they are typed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from tests.support.tiny_model import save_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_init_prints_a_configuration_that_works(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    code, text, _ = run("train", "--init")
    assert code == 0
    config = tmp_path / "config.yaml"
    text = text.replace("model: ''", f"model: {tiny_model}").replace("images: ''", f"images: {folder}")
    config.write_text(text.replace("output: ''", f"output: {tmp_path / 'style.pt'}"))
    code, out, err = run("train", config, "--steps", 3, "--set", "previews.every=0", "--set", "learning_rate=1e-3")
    assert code == 0, err
    assert out.strip() == str(tmp_path / "style.pt")
    assert "step 3 of 3: loss" in err
    assert hnloader.load(tmp_path / "style.pt").metadata["step"] == 3


def test_what_is_odd_about_the_images_is_told(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_text("no image")
    given = ["--model", tiny_model, "--steps", 1, "--set", "previews.every=0"]
    code, _, err = run("train", *given, "--images", folder, "-o", tmp_path / "a.pt")
    assert code == 0
    said = " ".join(err.split())
    assert "broken.png cannot be read: it is no image of a known kind; it is left out" in said
    assert "none of the 6 images has a caption of its own" in said
    for path in [*folder.glob("[1-5].png"), folder / "broken.png"]:
        path.unlink()
    (folder / "0.txt").write_text("a house")
    code, _, err = run("train", *given, "--images", folder, "-o", tmp_path / "b.pt")
    assert code == 0
    assert "0.png is the only image: it will be learned by heart" in " ".join(err.split())
    assert "caption of its own" not in err


def test_how_far_it_is_can_be_asked(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "style.pt"
    code, _, err = run("train", "-o", output, "--status")
    assert code == 1
    assert "no training of" in err
    given = ["--model", tiny_model, "--images", folder, "-o", output, "--steps", 4]
    quick = ["--set", "previews.every=0", "--set", "measure_every=2"]
    assert run("train", *given, *quick)[0] == 0
    code, out, _ = run("train", "-o", output, "--status")
    assert code == 0
    assert "done, step 4 of 4" in out
    assert "held-out loss" in out
    # A mistake leaves the status of the training that is there, and makes no folder where there was none.
    assert run("train", *given)[0] == 1
    assert "done, step 4 of 4" in run("train", "-o", output, "--status")[1]
    assert run("train", "--model", tiny_model, "--images", "none", "-o", tmp_path / "new.pt")[0] == 1
    assert not (tmp_path / "new.training").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "model is missing"),
        (("--set", "stepps=3"), "did you mean 'steps'"),
        (("--set", "steps"), "key=value"),
        (("--preset", "portrait"), "no preset 'portrait'"),
        (("none.yaml",), "none.yaml cannot be read: No such file"),
        (("--model", "M", "--images", "none", "-o", "a.pt"), "none does not exist"),
        (("--model", "M", "--images", "P", "-o", "a.jpg"), ".safetensors"),
        (("--model", "M", "--images", "E", "-o", "a.pt"), "E has no images"),
        (("--model", "M", "--images", "P", "-o", "P/0.png/a.pt"), "cannot write"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "learning_rate=20"), "above 0 and below 10"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "precision=float16"), "needs a graphics card"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "hypernetwork.widths=[768]"), "has 768, which the"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "data.resolution=8"), "0, or 32 and more"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "num_epochs=8"), "lists those of this version"),
        (
            (
                "--model",
                "M",
                "--images",
                "P",
                "-o",
                "a.pt",
                "--set",
                "method=embedding",
                "--set",
                "embedding.token=a",
            ),
            "knows 'a' already",
        ),
        (("--model", "nowhere/", "--images", "P", "-o", "a.pt"), "nowhere"),
    ],
)
def test_mistakes_get_a_line_and_no_traceback(
    arguments: tuple[str, ...], words: str, tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "E").mkdir()
    names = {"M": tiny_model, "P": folder, "E": tmp_path / "E", "a.pt": tmp_path / "a.pt"}
    names["P/0.png/a.pt"] = folder / "0.png" / "a.pt"
    code, _, err = run("train", "--device", "cpu", *(names.get(each, each) for each in arguments))
    assert code in (1, 2)
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "a.pt").exists()


class Trained:
    """One training that nothing disturbs, and one that is cut and resumed: programs are started only to be stopped."""

    def __init__(self, model: Path, images: Path, place: Path, *settings: str) -> None:
        self.place = place
        quick = [part for each in ("previews.every=0", "measure_every=5", *settings) for part in ("--set", each)]
        self.given = ["--model", str(model), "--images", str(images), *quick]
        self.complete("whole")

    def arguments(self, name: str) -> list[str]:
        return ["train", *self.given, "-o", str(self.file(name)), "--resume"]

    def file(self, name: str) -> Path:
        return self.place / name / "style.pt"

    def complete(self, name: str) -> None:
        code, _, err = run(*self.arguments(name))
        assert code == 0, err

    def begin(self, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hnloader", *self.arguments(name)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def assert_like_whole(self, name: str) -> None:
        # The zip containers differ in nothing either: the whole file is the same but for where it lies.
        whole, cut = (torch.load(self.file(each), weights_only=True) for each in ("whole", name))
        assert whole.keys() == cut.keys()
        for width in (16, 24):
            for one, two in zip(whole[width], cut[width], strict=True):
                assert one.keys() == two.keys()
                assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_signal_saves_everything_and_resume_ends_the_same(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    trained = Trained(tiny_model, folder, tmp_path, "steps=60")
    for number in (signal.SIGINT, signal.SIGTERM):
        child = trained.begin(number.name)
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("step 1 "):
                break
        child.send_signal(number)
        child.communicate()
        assert child.returncode == 130
        assert 1 <= hnloader.load(trained.file(number.name)).metadata["step"] < 60
        trained.complete(number.name)
        trained.assert_like_whole(number.name)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    trained = Trained(tiny_model, folder, tmp_path, "steps=40", "save_every=3")
    random = np.random.default_rng(1)
    states = trained.file("cut").with_suffix(".training")
    for _ in range(5):
        child = trained.begin("cut")
        before = set(states.glob("state-*"))
        while child.poll() is None and set(states.glob("state-*")) <= before:
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.05)))
        child.kill()
        child.communicate()
    trained.complete("cut")
    trained.assert_like_whole("cut")


def test_dataset_check_lists_captions_and_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    (folder / "0.txt").write_text("a red house")
    (folder / "broken.png").write_text("no image")
    code, out, err = run("dataset", "check", folder, "--sheet", tmp_path / "sheet.png", "--resolution", 64)
    assert code == 1
    assert "a red house" in out
    assert "48 x 48" in out
    assert "left out" in err
    assert "broken.png cannot be read" in err
    assert "6 images to train on, 1 files left out" in err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 160
    (folder / "broken.png").unlink()
    assert run("dataset", "check", folder)[0] == 0


def test_dataset_check_names_what_a_training_does_not_see(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    (folder / "0.txt").write_text("word " * 80)
    (folder / "1.txt").write_text("a b " * 20)
    (folder / "2.TXT").write_bytes("一座房子".encode("gbk"))
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("RGB", (4000, 90), "red").save(folder / "strip.png")
    code, out, err = run("dataset", "check", folder)
    said = " ".join(err.split())
    assert code == 1
    assert "0.png has a caption of 80 tokens, of which the model reads the first 75; shorten it" in said
    assert "1.png has a caption" not in said
    assert "2.TXT cannot be read: it is not in UTF-8; save it as UTF-8" in said
    assert "phone.HEIC is HEIC, which hnloader does not read; convert it to PNG or JPEG" in said
    assert "strip.png is 4000 x 90: only 4% of it" in said
    assert "704 x 320" in out

    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tiny_model}\noutput: art.pt\nmethod: embedding\nembedding: {{vectors: 8}}\n")
    _, out, err = run("dataset", "check", folder, "--config", config)
    said = " ".join(err.split())
    assert "1.png has a caption of 49 tokens, of which the model reads the first 30" in said  # 40, a comma, 8 vectors
    assert "3.png has a caption" not in said


def test_a_training_without_gradients_ends_with_an_error(
    tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnloader.training.denoiser import Denoiser

    real = Denoiser.losses
    monkeypatch.setattr(Denoiser, "losses", lambda *given: real(*given) * 0)
    given = ["--model", tiny_model, "--images", folder, "-o", tmp_path / "a.pt", "--steps", 2]
    code, out, err = run("train", *given, "--set", "previews.every=0")
    assert code == 1
    assert out == ""
    assert "no gradient arrives at the hypernetwork, so nothing is trained" in " ".join(err.split())
    assert not (tmp_path / "a.pt").exists()
