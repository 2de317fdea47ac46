"""The training of predictors: it learns, resumes bit for bit, and reports mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hnloader.attention import attach
from hnloader.errors import ConfigError, DatasetError, DivergedError
from hnloader.prediction.predictor_file import load_predictor
from hnloader.prediction.predictor_training import prepare_predictor
from hnloader.prediction.row_hooks import RowHooks
from tests.support.errors import raises
from tests.support.trainings import Run, save_image


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_training_learns(predictor_settings: Run) -> None:
    result = prepare_predictor(predictor_settings(steps=30, validate_every_n_steps=10)).run()
    assert result.reason == "done"
    assert result.best is not None
    assert result.best.loss < (result.initial_loss or 0)
    assert result.best.path.is_file()
    assert {"validation_loss", "other_style", "without"} <= result.history[-1].keys()
    about = load_predictor(result.output).about
    assert (about.step, about.styles) == (30, 3)
    assert about.spread > 0


def test_a_resumed_training_ends_with_the_same_bits(predictor_settings: Run) -> None:
    whole = prepare_predictor(predictor_settings("whole.safetensors")).run()
    trainer = prepare_predictor(predictor_settings("parts.safetensors"))
    part = trainer.run(lambda event: trainer.stop() if event.step == 3 else None)
    assert (part.reason, part.step) == ("interrupted", 3)
    rest = prepare_predictor(predictor_settings("parts.safetensors"), resume=True).run()
    assert rest.step == 6
    one, other = tensors(whole.output), tensors(rest.output)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_existing_output_needs_resume_or_restart(predictor_settings: Run) -> None:
    output = prepare_predictor(predictor_settings()).run().output
    with raises(ConfigError, "--resume"):
        prepare_predictor(predictor_settings())
    before = tensors(output)
    prepare_predictor(predictor_settings(), restart=True).run()
    assert all(torch.equal(before[name], value) for name, value in tensors(output).items())


def test_a_loss_that_is_not_finite_ends_the_training(predictor_settings: Run) -> None:
    trainer = prepare_predictor(predictor_settings())
    with torch.no_grad():
        trainer.predictor.head.weight.fill_(float("inf"))
    with raises(DivergedError, "Step 1"):
        trainer.run()


def test_the_rows_of_a_batch_have_the_hypernetworks_of_their_styles(predictor_settings: Run) -> None:
    trainer = prepare_predictor(predictor_settings())
    predictor, denoiser = trainer.predictor, trainer.denoiser
    with torch.no_grad():
        predictor.head.weight.normal_()
    emitted = predictor.emit(torch.randn(2, 8))
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([500, 500]), torch.randn(2, 32, 24)
    hooks = RowHooks(denoiser.unet)
    with torch.no_grad(), hooks.attached(), hooks.applied(predictor.sides(emitted)):
        both = denoiser.unet(*inputs).sample
    plain = denoiser.unet(*inputs).sample
    for row in range(2):
        mine = predictor.hypernetwork(type(emitted)(emitted.cores[row : row + 1], emitted.hidden[row : row + 1]))
        with torch.no_grad(), attach(denoiser.unet, mine, 1.0):
            alone = denoiser.unet(*(each[row : row + 1] for each in inputs)).sample
        assert torch.allclose(both[row : row + 1], alone, atol=1e-4)
        assert not torch.allclose(both[row : row + 1], plain[row : row + 1], atol=1e-3)


def test_per_layer_predictors_have_a_scope_for_each_layer(predictor_settings: Run, styles_folder: Path) -> None:
    trainer = prepare_predictor(predictor_settings(steps=1, design__per_layer=True))
    stored = load_predictor(trainer.run().output)
    assert len(stored.predictor.scopes) == len(trainer._hooks._sites)


def test_bad_folders_of_styles(predictor_settings: Run, styles_folder: Path, tmp_path: Path) -> None:
    for path in sorted(styles_folder.glob("style[1-4]/*.png")):
        path.unlink()
    with raises(DatasetError, "styles", "1 style"):
        prepare_predictor(predictor_settings())
    with raises(DatasetError, "none"):
        prepare_predictor(predictor_settings(styles=str(tmp_path / "none")))
    save_image(styles_folder / "style1" / "a.png", color="red")
    for name in ("a.png", "b.png"):
        save_image(styles_folder / "style2" / name, color="blue" if name == "a.png" else "green")
    trainer = prepare_predictor(predictor_settings(validation_split=0))
    assert len(trainer.styles) == 2
    assert any("style1" in note for note in trainer.notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", ""), ("styles", ""), ("output", "a.pt"), ("resolution", 8), ("design__layer_structure", [1, 2, 2, 1])],
)
def test_impossible_settings_are_refused(predictor_settings: Run, key: str, value: object) -> None:
    with raises(ConfigError, key.replace("__", ".")):
        prepare_predictor(predictor_settings(**{key: value}))
