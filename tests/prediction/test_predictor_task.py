"""The training of predictors: it learns, resumes bit for bit, and reports mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hnloader.attention import attach, find_sites
from hnloader.demo import predictor_path
from hnloader.errors import ConfigError, DatasetError, DivergedError, HypernetworkError, NoMatchingSitesError
from hnloader.prediction.predictor import Emitted
from hnloader.prediction.predictor_file import load_predictor
from hnloader.prediction.predictor_task import PredictorTask
from hnloader.training import prepare
from tests.support.errors import raises
from tests.support.predictors import task_of
from tests.support.trainings import Run, save_image


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_training_learns(predictor_settings: Run) -> None:
    result = prepare(predictor_settings(steps=30, validate_every_n_steps=10)).run()
    assert result.reason == "done"
    assert result.best is not None
    assert result.best.loss < (result.initial_loss or 0)
    assert result.best.path.is_file()
    about = load_predictor(result.output).about
    assert (about.step, about.styles) == (30, 3)
    assert about.spread > 0


def test_a_resumed_training_ends_with_the_same_bits(predictor_settings: Run) -> None:
    whole = prepare(predictor_settings("whole.safetensors")).run()
    trainer = prepare(predictor_settings("parts.safetensors"))
    part = trainer.run(lambda event: trainer.stop() if event.step == 3 else None)
    assert (part.reason, part.step) == ("interrupted", 3)
    rest = prepare(predictor_settings("parts.safetensors"), resume=True).run()
    assert rest.step == 6
    one, other = tensors(whole.output), tensors(rest.output)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_predictor_is_trained_further(predictor_settings: Run) -> None:
    first = prepare(predictor_settings("first.safetensors", predictor__design__core_size=5)).run().output
    trainer = prepare(predictor_settings("further.safetensors", start_from=str(first), steps=3))
    assert any("was trained for 6 steps" in note for note in trainer.notes)
    task = trainer.task
    assert isinstance(task, PredictorTask)
    known = load_predictor(first).predictor
    assert task.predictor.design == known.design
    pairs = zip(task.predictor.parameters(), known.parameters(), strict=True)
    assert all(torch.equal(one, other) and one.requires_grad for one, other in pairs)
    output = trainer.run().output
    assert load_predictor(output).about.step == 9
    assert not same(first, output)


def test_only_a_predictor_of_the_model_is_trained_further(predictor_settings: Run, tmp_path: Path) -> None:
    with raises(HypernetworkError, "found no such file"):
        prepare(predictor_settings(start_from=str(tmp_path / "missing.safetensors")))
    with raises(NoMatchingSitesError, "Use a predictor for this model"):
        prepare(predictor_settings(start_from=str(predictor_path())))


def test_an_existing_output_needs_resume_or_restart(predictor_settings: Run) -> None:
    output = prepare(predictor_settings()).run().output
    with raises(ConfigError, "--resume"):
        prepare(predictor_settings())
    before = tensors(output)
    prepare(predictor_settings(), restart=True).run()
    assert all(torch.equal(before[name], value) for name, value in tensors(output).items())


def test_a_loss_that_is_not_finite_ends_the_training(predictor_settings: Run) -> None:
    trainer = prepare(predictor_settings())
    with torch.no_grad():
        trainer.adapter.parameters[0].fill_(float("inf"))
    with raises(DivergedError, "Step 1"):
        trainer.run()


def test_the_rows_of_a_batch_have_the_hypernetworks_of_their_styles(predictor_settings: Run) -> None:
    task = task_of(predictor_settings())
    predictor, unet, hooks = task.predictor, task.data.side.network, task.adapter.hooks
    with torch.no_grad():
        predictor.head.weight.normal_()
    emitted = predictor.emit(torch.randn(2, 8))
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([500, 500]), torch.randn(2, 32, 24)
    with torch.no_grad(), hooks.attached(), hooks.applied(predictor.sides(emitted)):
        both = unet(*inputs).sample
    plain = unet(*inputs).sample
    for row in range(2):
        mine = predictor.hypernetwork(Emitted(emitted.cores[row : row + 1], emitted.hidden[row : row + 1]))
        with torch.no_grad(), attach(unet, mine, 1.0):
            alone = unet(*(each[row : row + 1] for each in inputs)).sample
        assert torch.allclose(both[row : row + 1], alone, atol=1e-4)
        assert not torch.allclose(both[row : row + 1], plain[row : row + 1], atol=1e-3)


def test_previews_and_the_report_show_validation_styles(predictor_settings: Run) -> None:
    result = prepare(predictor_settings(previews__every_n_steps=3, previews__num_inference_steps=1)).run()
    folder = result.output.with_suffix(".training")
    assert (folder / "previews" / "previews.png").is_file()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "hypernetwork of another style" in page
    assert page.count("Style style") == 2


def test_noise_and_details_can_count_more(predictor_settings: Run) -> None:
    from hnloader.prediction.image_styles import ImageStyles, detail_weights

    latents = torch.zeros(1, 4, 8, 8)
    latents[..., :2, :2] = 1
    weights = detail_weights(latents, 1.0)
    assert weights.mean() == pytest.approx(1)
    assert weights[0, 0, 0, 0] > 5 * weights[0, 0, 7, 7]
    plain, biased = (task_of(predictor_settings(predictor__noise_bias=bias)).data for bias in (0, 1))
    assert isinstance(plain, ImageStyles)
    assert isinstance(biased, ImageStyles)
    shares = [index / 100 for index in range(100)]
    count = 1000
    assert sum(plain._timestep(share) >= 0.75 * count for share in shares) == 25
    assert sum(biased._timestep(share) >= 0.75 * count for share in shares) == 50


def test_per_layer_predictors_have_a_scope_for_each_layer(predictor_settings: Run, styles_folder: Path) -> None:
    trainer = prepare(predictor_settings(steps=1, predictor__design__per_layer=True))
    stored = load_predictor(trainer.run().output)
    assert len(stored.predictor.scopes) == len(find_sites(trainer.task.data.side.network))  # type: ignore[attr-defined]


def test_bad_folders_of_styles(predictor_settings: Run, styles_folder: Path, tmp_path: Path) -> None:
    for path in sorted(styles_folder.glob("style[1-4]/*.png")):
        path.unlink()
    with raises(DatasetError, "styles", "1 style"):
        prepare(predictor_settings())
    with raises(DatasetError, "none"):
        prepare(predictor_settings(styles=str(tmp_path / "none")))
    save_image(styles_folder / "style1" / "a.png", color="red")
    for name in ("a.png", "b.png"):
        save_image(styles_folder / "style2" / name, color="blue" if name == "a.png" else "green")
    trainer = prepare(predictor_settings(data__validation_split=0))
    assert trainer.task.amount == "2 styles"
    assert any("style1" in note for note in trainer.notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ""),
        ("styles", ""),
        ("output", "a.pt"),
        ("data__random_flip", True),
        ("prior__weight", 1),
        ("start_from", "predict"),
        ("predictor__design__layer_structure", [1, 2, 2, 1]),
        ("predictor__design__activation", "x"),
    ],
)
def test_impossible_settings_are_refused(predictor_settings: Run, key: str, value: object) -> None:
    with raises(ConfigError, key.replace("__", ".")):
        prepare(predictor_settings(**{key: value}))
