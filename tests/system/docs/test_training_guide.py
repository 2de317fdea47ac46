"""The commands of docs/training.md run as written, with fewer steps, on a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.demo import drawing, pipeline_folder
from hnloader.embeddings import load_embedding
from hnloader.training.config import template
from tests.support.paths import ROOT
from tests.support.small_language_models import save_language_model, save_texts, sentences

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
# Installed already; test_trainer_processes.py starts several processes; and the verification takes half an hour.
ELSEWHERE = ("pip ", "accelerate ", "torchrun ", "python -m lab.demo.style_study")
# As few steps as there can be, appended: the last word counts.
SHORT = {
    "train": ("--steps", "3", "--set", "previews.num_inference_steps=2", "--set", "validate_every_n_steps=1"),
    "compare": ("--set", "steps=2", "--set", "previews.num_inference_steps=2", "--set", "previews.every_n_steps=0"),
    "generate": ("--steps", "2"),
}


def commands() -> list[str]:
    """Each command of the guide, in order."""
    joined = GUIDE.replace("\\\n", " ")
    lines = re.findall(r"^    ((?:hnloader|python|pip|accelerate|torchrun) .*)$", joined, re.MULTILINE)
    return [line for line in lines if not line.startswith(ELSEWHERE)]


def run(command: str) -> str:
    """Run it in this process, in the present folder; what it printed."""
    words = shlex.split(
        command.replace(
            "\"$(python -c 'import hnloader.demo as d; print(d.pipeline_folder())')\"", str(pipeline_folder())
        )
    )
    target = Path(words[words.index(">") + 1]) if ">" in words else None
    words = words[: words.index(">")] if target is not None else words
    if words[:3] == ["python", "-m", "hnloader.demo.drawing"]:
        assert drawing.main(words[3:]) == 0
        return ""
    assert words[0] == "hnloader"
    more = () if "--init" in words else SHORT.get(words[1], ())
    done = CliRunner().invoke(app, [*words[1:], *more])
    assert done.exit_code == 0, f"$ {command}\n{done.output}"
    if target is not None:
        target.write_text(done.stdout, encoding="utf-8")
    return done.output


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the whole guide was followed, with twenty images and a model."""
    place = tmp_path_factory.mktemp("guide")
    (place / "images").mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        values = random.integers(0, 255, (48, 40 + index % 2 * 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(place / "images" / f"{index}.png")
        (place / "images" / f"{index}.txt").write_text("a hill")
    (place / "sd15").symlink_to(tiny_model)
    save_language_model(place / "llm")
    save_texts(place / "stories", sentences(20))
    (place / "prompts.txt").write_text("a cat\na dog\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for command in commands():
            if command == "hnloader train config.yaml":
                fill_in(place / "config.yaml")
            run(command)
    return place


def fill_in(config: Path) -> None:
    """Set what the guide asks for between the two commands."""
    text = config.read_text(encoding="utf-8")
    for key, value in {"model": "./sd15", "images": "images", "output": "by-config.pt"}.items():
        assert f"\n{key}: ''" in f"\n{text}"
        text = text.replace(f"{key}: ''", f"{key}: {value}", 1)
    config.write_text(text, encoding="utf-8")


def test_the_guide_has_the_commands_that_are_run(place: Path) -> None:
    verbs = [tuple(command.split()[:2]) for command in commands()]
    assert verbs.count(("hnloader", "train")) == 5
    for verb in ("dataset", "generate", "compare"):
        assert ("hnloader", verb) in verbs


def test_there_is_a_file_that_webuis_load(place: Path) -> None:
    for name in ("style.pt", "by-config.pt", "blueprint.pt"):
        written = torch.load(place / name, weights_only=True)
        widths = [key for key in written if isinstance(key, int)]
        assert widths
        for width in widths:
            key_side, value_side = written[width]
            assert set(key_side) == set(value_side)
            # The tiny model is narrow, so its hidden layers are wide.
            assert key_side["linear.0.weight"].shape == (8 * width, width)
        # What AUTOMATIC1111's webui and Forge read beside the weights.
        for key in ("step", "name", "layer_structure", "activation_func", "is_layer_norm", "sd_checkpoint_name"):
            assert key in written
        assert hnloader.load(place / name).metadata["step"] == 3


def test_there_is_a_file_for_the_language_model(place: Path) -> None:
    assert hnloader.load(place / "voice.safetensors").metadata["step"] == 3
    assert (place / "voice.training" / "previews" / "previews.txt").stat().st_size > 0


def test_there_is_a_report_that_needs_nothing_beside_it(place: Path) -> None:
    page = (place / "style.training" / "report.html").read_text(encoding="utf-8")
    for section in ("Summary", "Loss", "Previews", "Images", "Settings", "Environment"):
        assert f"<h2>{section}</h2>" in page
    assert page.count("<figure>") == 20
    assert "polyline" in page
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', page) == []
    for name in ("previews.png", "previews.gif"):
        with Image.open(place / "style.training" / "previews" / name) as image:
            assert image.width > 32


def test_what_else_the_guide_promises_is_there(place: Path) -> None:
    for name in ("sheet.png", "castle.png", "comparison/grid.png"):
        with Image.open(place / name) as image:
            image.load()
    assert (place / "style.training" / "best.pt").is_file()
    assert list((place / "style.training").glob("state-*.safetensors"))
    for rate in (place / "by-config-embedding-rates").iterdir():
        assert load_embedding(rate / "by-config-embedding.pt").step == 2
    assert (place / "comparison" / "report.html").is_file()
    assert (place / "comparison" / "comparison.json").is_file()


def test_settings_that_the_guide_names_are_there() -> None:
    known = template()
    for key in (
        "learning_rate",
        "early_stopping_patience",
        "precision",
        "trackers",
        "optimizer",
        "start_from",
        "model_config",
    ):
        assert f"\n{key}:" in known
    for name in re.findall(r"--set ([\w.]+)=", GUIDE):
        assert name.split(".")[-1] + ":" in known
