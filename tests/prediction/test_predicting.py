"""Predicting from images: the file, bad images, and other models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader.demo.random_styles import draw_styles
from hnloader.errors import DatasetError, HypernetworkError, NoMatchingSitesError, OtherModelError
from hnloader.files import sha256_of
from hnloader.pipelines import load_model
from hnloader.prediction.predicting import MOST_EXAMPLES, StylePredictor
from hnloader.prediction.predictor_file import load_predictor
from tests.support.errors import raises
from tests.support.predictors import save_style
from tests.support.trainings import save_image


@pytest.fixture(scope="module")
def predictor(tiny_model: Path, tiny_predictor: Path) -> StylePredictor:
    """A predictor that takes all images for related: after a few steps, it knows no style."""
    stored = load_predictor(tiny_predictor)
    stored = replace(stored, about=replace(stored.about, spread=0.0))
    return StylePredictor(stored, load_model(tiny_model, device="cpu"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_style(tmp_path / "images", 120)


def test_the_same_images_give_the_same_bits(predictor: StylePredictor, images: Path) -> None:
    first, second = predictor.predict(images), predictor.predict(images)
    for one, other in zip(first.hypernetwork.parameters(), second.hypernetwork.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.notes == ()


def test_the_file_names_its_predictor_and_images(
    predictor: StylePredictor, tiny_predictor: Path, images: Path, tmp_path: Path
) -> None:
    hn = predictor.predict(images, name="blue").hypernetwork
    hnloader.save(hn, tmp_path / "blue.pt")
    found = hnloader.load(tmp_path / "blue.pt")
    assert found.name == "blue"
    assert found.metadata["predictor_sha256"] == sha256_of(tiny_predictor)
    assert found.metadata["images_sha256"] == [sha256_of(path) for path in sorted(images.glob("*.png"))]
    context = torch.randn(1, 4, 16)
    assert torch.equal(found.transform("k", context), hn.transform("k", context))


def test_a_folder_is_the_same_as_its_files(predictor: StylePredictor, images: Path) -> None:
    whole = predictor.predict(images).hypernetwork
    files = predictor.predict(sorted(images.glob("*.png"))).hypernetwork
    single = predictor.predict(images / "0.png").hypernetwork
    context = torch.randn(1, 4, 16)
    assert torch.equal(whole.transform("v", context), files.transform("v", context))
    assert not torch.equal(whole.transform("v", context), single.transform("v", context))


def test_images_can_be_in_several_folders(
    predictor: StylePredictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(images / "1.png", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    context = torch.randn(1, 4, 16)
    together = predictor.predict([images / "0.png", images / "1.png"]).hypernetwork
    apart = predictor.predict([images / "0.png", "elsewhere/1.png"]).hypernetwork
    assert torch.equal(together.transform("v", context), apart.transform("v", context))


def test_mixing_goes_from_one_style_to_the_other(predictor: StylePredictor, images: Path, tmp_path: Path) -> None:
    other = save_style(tmp_path / "other", 30)
    context = torch.randn(1, 4, 16)

    def value(**options: object) -> torch.Tensor:
        return predictor.predict(images, **options).hypernetwork.transform("v", context)  # type: ignore[arg-type]

    assert torch.equal(value(toward=other, mix=0), value())
    assert torch.allclose(
        value(toward=other, mix=1), predictor.predict(other).hypernetwork.transform("v", context), atol=1e-6
    )
    assert predictor.predict(images, toward=other, mix=0.3).hypernetwork.metadata["mix"] == 0.3
    with raises(HypernetworkError, "1.5"):
        predictor.predict(images, toward=other, mix=1.5)


def test_folders_without_usable_images_are_refused(predictor: StylePredictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    save_image(tmp_path / "red" / "a.png")
    for name in ("none", "empty", "broken", "red"):
        with raises(DatasetError, name):
            predictor.predict(tmp_path / name)
    with raises(DatasetError):
        predictor.predict([])
    with raises(DatasetError, "none.png"):
        predictor.predict([tmp_path / "none.png"])


def test_some_bad_images_are_excluded_with_a_note(predictor: StylePredictor, images: Path) -> None:
    before = predictor.predict(images).hypernetwork
    save_image(images / "red.png")
    (images / "broken.png").write_text("no image")
    found = predictor.predict(images)
    assert [note.partition(":")[0] for note in found.notes] == ["broken.png", "red.png"]
    context = torch.randn(1, 4, 16)
    assert torch.equal(found.hypernetwork.transform("v", context), before.transform("v", context))


def test_only_the_first_images_of_many_count(predictor: StylePredictor, tmp_path: Path) -> None:
    found = predictor.predict(save_style(tmp_path / "many", 90, MOST_EXAMPLES + 3))
    assert str(MOST_EXAMPLES + 3) in found.notes[0]
    hashes = found.hypernetwork.metadata["images_sha256"]
    assert isinstance(hashes, list)
    assert len(hashes) == MOST_EXAMPLES


def test_unrelated_images_are_named(predictor: StylePredictor, images: Path, tmp_path: Path) -> None:
    stored = predictor.stored
    shutil.copy(save_style(tmp_path / "other", 10) / "0.png", images / "other.png")
    strict = StylePredictor(replace(stored, about=replace(stored.about, spread=1e-6)), predictor.model)
    assert any("unrelated" in note for note in strict.predict(images).notes)
    assert strict.predict(images / "0.png").notes == ()


def test_other_models_are_refused(predictor: StylePredictor, tiny_model: Path, tmp_path: Path) -> None:
    stored = predictor.stored
    other = load_model(tiny_model, device="cpu").pipeline
    other.vae.encoder.conv_in.weight.data.mul_(-1)
    model = type(predictor.model)(other, "other")
    with raises(OtherModelError, "tiny", "VAE"):
        StylePredictor(stored, model)
    with raises(NoMatchingSitesError, "64"):
        from hnloader.demo import pipeline_folder

        StylePredictor(stored, load_model(pipeline_folder(), device="cpu"))


def test_another_training_of_the_model_is_noted(predictor: StylePredictor, tiny_model: Path, images: Path) -> None:
    other = load_model(tiny_model, device="cpu")
    for name, parameter in other.pipeline.unet.named_parameters():
        if "to_k" in name:
            parameter.data.mul_(1.5)
    assert len(StylePredictor(predictor.stored, other).predict(images).notes) == 1


def test_predict_loads_the_predictor_and_the_model(tiny_model: Path, tiny_predictor: Path, images: Path) -> None:
    hn = hnloader.predict(images / "0.png", model=tiny_model, predictor=tiny_predictor, device="cpu")
    assert hn.widths == (16, 24)
    (images / "broken.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"broken\.png"):
        given = [images / "0.png", images / "broken.png"]
        hnloader.predict(given, model=tiny_model, predictor=tiny_predictor, device="cpu")


def test_the_bundled_predictor_needs_only_images(tmp_path: Path) -> None:
    folder = draw_styles(tmp_path, styles=1, images=4, seed=142) / "00000"
    hn = hnloader.predict(folder, device="cpu")
    assert hn.widths == (64, 96, 112, 128)
    assert hn.metadata["predictor"] == "predictor.safetensors"
