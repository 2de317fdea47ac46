"""`hnloader train` and its options."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
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
    code, out, err = run(
        "train", config, "--steps", 3, "--set", "previews.every_n_steps=0", "--set", "learning_rate=1e-3"
    )
    assert code == 0, err
    assert out.strip() == str(tmp_path / "style.pt")
    assert "step 3 of 3: loss" in err
    assert hnloader.load(tmp_path / "style.pt").metadata["step"] == 3


def test_problems_of_the_images_are_printed(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_text("no image")
    given = ["--model", tiny_model, "--steps", 1, "--set", "previews.every_n_steps=0"]
    code, _, err = run("train", *given, "--images", folder, "-o", tmp_path / "a.pt")
    assert code == 0
    assert "broken.png: Cannot be read" in err
    assert "6 of 6 images have no caption" in " ".join(err.split())
    for path in [*folder.glob("[1-5].png"), folder / "broken.png"]:
        path.unlink()
    (folder / "0.txt").write_text("a house")
    code, _, err = run("train", *given, "--images", folder, "-o", tmp_path / "b.pt")
    assert code == 0
    assert "0.png: Found a single image" in err
    assert "no caption" not in err


def test_status(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "style.pt"
    code, _, err = run("train", "-o", output, "--status")
    assert code == 1
    assert "style.pt" in err
    assert "found no training run" in err
    given = ["--model", tiny_model, "--images", folder, "-o", output, "--steps", 4]
    quick = ["--set", "previews.every_n_steps=0", "--set", "validate_every_n_steps=2"]
    assert run("train", *given, *quick)[0] == 0
    code, out, _ = run("train", "-o", output, "--status")
    assert code == 0
    assert "done, step 4 of 4" in out
    assert "validation loss" in out
    # A mistake keeps the status of an earlier training run, and leaves no folder of a new one.
    assert run("train", *given)[0] == 1
    assert "done, step 4 of 4" in run("train", "-o", output, "--status")[1]
    assert run("train", "--model", tiny_model, "--images", "none", "-o", tmp_path / "new.pt")[0] == 1
    assert not (tmp_path / "new.training").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "'model'"),
        (("--set", "stepps=3"), "Did you mean 'steps'?"),
        (("--set", "steps"), "key=value"),
        (("--preset", "portrait"), "'portrait'"),
        (("none.yaml",), "none.yaml"),
        (("--model", "M", "--images", "none", "-o", "a.pt"), "none: the folder does not exist"),
        (("--model", "M", "--images", "P", "-o", "a.jpg"), ".safetensors"),
        (("--model", "M", "--images", "E", "-o", "a.pt"), "found no images"),
        (("--model", "M", "--images", "P", "-o", "P/0.png/a.pt"), "cannot be written"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "learning_rate=20"), "below 10"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "precision=float16"), "GPU"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "hypernetwork.widths=[768]"), "got 768"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "data.resolution=8"), "at least 32"),
        (("--model", "M", "--images", "P", "-o", "a.pt", "--set", "num_epochs=8"), "num_epochs"),
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
                "embedding.placeholder_token=a",
            ),
            "'a'",
        ),
        (("--model", "nowhere/", "--images", "P", "-o", "a.pt"), "nowhere"),
    ],
)
def test_mistakes_give_a_message_without_traceback(
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
    """An uninterrupted training, and one that is interrupted in a separate process and resumed."""

    def __init__(self, model: Path, images: Path, place: Path, *settings: str) -> None:
        self.place = place
        quick = [
            part
            for each in ("previews.every_n_steps=0", "validate_every_n_steps=5", *settings)
            for part in ("--set", each)
        ]
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
        whole, cut = (torch.load(self.file(each), weights_only=True) for each in ("whole", name))
        assert whole.keys() == cut.keys()
        for width in (16, 24):
            for one, two in zip(whole[width], cut[width], strict=True):
                assert one.keys() == two.keys()
                assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_signal_saves_everything_and_resume_gives_the_same_weights(
    tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
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
def test_a_training_killed_at_random_moments_gives_the_same_weights(
    tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    trained = Trained(tiny_model, folder, tmp_path, "steps=40", "save_every_n_steps=3")
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


def test_missing_gradients_are_an_error(
    tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnloader.training.denoiser import Denoiser

    real = Denoiser.losses
    monkeypatch.setattr(Denoiser, "losses", lambda *given: real(*given) * 0)
    given = ["--model", tiny_model, "--images", folder, "-o", tmp_path / "a.pt", "--steps", 2]
    code, out, err = run("train", *given, "--set", "previews.every_n_steps=0")
    assert code == 1
    assert out == ""
    assert "no gradient reaches the hypernetwork" in " ".join(err.split())
    assert not (tmp_path / "a.pt").exists()
