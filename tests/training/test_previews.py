"""Previews over the steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hnloader.training import prepare, train
from hnloader.training.previews import generate_image
from hnloader.training.run_folder import run_folder
from tests.support.trainings import Run, config_in


def test_previews_are_tiled_and_animated(settings_of: Run) -> None:

    changes = {"previews__every_n_steps": 4, "previews__num_inference_steps": 2, "previews__prompts": ["a", "{name} b"]}
    result = train(settings_of(steps=8, learning_rate="1e-2", **changes))
    folder = run_folder(result.output) / "previews"
    names = sorted(path.name for path in folder.glob("step-*.png"))
    assert names == [f"step-{step:08d}-{row}.png" for step in (1, 4, 8) for row in (0, 1)]
    assert (folder / "step-00000001-0.png").read_bytes() != (folder / "step-00000008-0.png").read_bytes()
    with Image.open(folder / "previews.gif") as animation:
        assert animation.n_frames == 3
    with Image.open(folder / "previews.png") as tiled:
        assert tiled.width > tiled.height


@pytest.mark.parametrize("method", ["hypernetwork", "lora", "embedding"])
def test_each_preview_shows_the_plain_model_and_both_strengths(method: str, settings_of: Run) -> None:
    name = "style.safetensors" if method == "lora" else "style.pt"
    changes = {"previews__every_n_steps": 2, "previews__num_inference_steps": 1, "previews__prompts": ["a", "b"]}
    training = prepare(settings_of(name, method=method, steps=4, learning_rate="1e-1", **changes))
    rendered: list[float] = []
    at = training.adapter.at
    training.adapter.at = lambda strength: rendered.append(strength) or at(strength)
    result = training.run()
    grids = sorted((run_folder(result.output) / "previews").glob("strengths-*.png"))
    if method == "embedding":  # which has no strength
        assert grids == [] and rendered == [1.0] * 3
        return
    assert [path.name for path in grids] == [f"strengths-{step:08d}.png" for step in (1, 2, 4)]
    assert rendered == [1.0, 0.0, 0.5, 1.0, 0.5, 1.0, 0.5]
    with Image.open(grids[-1]) as grid:
        assert grid.width > grid.height
    assert "preview images by strength" in (run_folder(result.output) / "report.html").read_text()


def test_no_strengths_make_no_grid(settings_of: Run) -> None:
    changes = {"previews__every_n_steps": 2, "previews__num_inference_steps": 1, "previews__strengths": []}
    result = train(settings_of(steps=2, **changes))
    assert not list((run_folder(result.output) / "previews").glob("strengths-*.png"))


def test_the_plain_preview_is_that_of_the_model(settings_of: Run) -> None:
    changes = {"previews__every_n_steps": 2, "previews__num_inference_steps": 1, "previews__prompts": ["a"]}
    for method in ("hypernetwork", "lora"):
        training = prepare(
            settings_of(f"{method}.safetensors", method=method, steps=2, learning_rate="1e-1", **changes)
        )
        task = training.task
        training.run()
        images = {strength: task._rendered(("a",), strength)[0].tobytes() for strength in (0.0, 0.5, 1.0)}
        plain = generate_image(task.denoiser.pipeline, "a", task.config.previews.seed, task.config.previews)
        assert images[0.0] == plain.tobytes()
        assert len(set(images.values())) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "at"), [("cut", 0.0), ("cut", 0.5), ("flipped", 0.1), ("flipped", 0.5), ("other size", 0.5), ("text", 0.0)]
)
def test_training_continues_with_damaged_previews(at: float, how: str, copied: Path, tiny_model: Path) -> None:

    changes = {"previews.every_n_steps": 1, "previews.num_inference_steps": 1, "previews.count": 2}
    prepare(config_in(copied, tiny_model, **changes), restart=True).run()
    for path in (run_folder(copied / "style.pt") / "previews").iterdir():
        data = path.read_bytes()
        place = int(len(data) * at) + 1
        if how == "cut":
            path.write_bytes(data[:place])
        elif how == "flipped":
            path.write_bytes(data[:place] + bytes(each ^ 0xFF for each in data[place : place + 9]) + data[place + 9 :])
        elif how == "other size":
            Image.new("L", (int(10 * at) + 1, 7)).save(path)
        else:
            path.write_text("x" * int(100 * at))
    messages: list[str] = []
    training = prepare(config_in(copied, tiny_model, steps=3, **changes), resume=True)
    assert training.run(lambda event: messages.append(event.message)).step == 3
    assert (copied / "style.training" / "report.html").is_file()
