"""Predicting from texts: the file, bad texts, and models of the other kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader.demo import language_model_folder
from hnloader.errors import DatasetError, NoMatchingSitesError, OtherModelError
from hnloader.files import sha256_of
from hnloader.language_models import load_language_model
from hnloader.prediction.model_side import MOST_EXAMPLES, kind_of
from hnloader.prediction.predicting import StylePredictor, predictor_for
from hnloader.prediction.predictor_file import load_predictor
from tests.support.errors import raises
from tests.support.predictors import save_style
from tests.support.small_decoders import WIDTH
from tests.support.small_language_models import save_lines, save_texts, sentences


@pytest.fixture(scope="module")
def predictor(tiny_language_model: Path, tiny_text_predictor: Path) -> StylePredictor:
    """A predictor that takes all texts for related: after a few steps, it knows no style."""
    stored = load_predictor(tiny_text_predictor)
    stored = replace(stored, about=replace(stored.about, spread=0.0))
    return StylePredictor(stored, load_language_model(tiny_language_model, device="cpu"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return save_texts(tmp_path / "texts", sentences(4))


def value(hn: hnloader.Hypernetwork) -> torch.Tensor:
    torch.manual_seed(0)
    return hn.transform("v", torch.randn(1, 4, WIDTH))


def test_the_same_texts_give_the_same_bits(predictor: StylePredictor, texts: Path) -> None:
    first, second = predictor.predict(texts), predictor.predict(texts)
    for one, other in zip(first.hypernetwork.parameters(), second.hypernetwork.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.notes == ()


def test_the_file_names_its_predictor_and_texts(
    predictor: StylePredictor, tiny_text_predictor: Path, texts: Path, tmp_path: Path
) -> None:
    hn = predictor.predict(texts, name="red").hypernetwork
    hnloader.save(hn, tmp_path / "red.safetensors")
    found = hnloader.load(tmp_path / "red.safetensors")
    assert found.name == "red"
    assert found.metadata["predictor_sha256"] == sha256_of(tiny_text_predictor)
    assert found.metadata["texts_sha256"] == [sha256_of(path) for path in sorted(texts.iterdir())]
    assert torch.equal(value(found), value(hn))


def test_texts_of_every_form_are_read_alike(predictor: StylePredictor, texts: Path, tmp_path: Path) -> None:
    whole = value(predictor.predict(texts).hypernetwork)
    assert torch.equal(value(predictor.predict(sorted(texts.iterdir())).hypernetwork), whole)
    lines = save_lines(tmp_path / "lines.jsonl", ({"text": text} for text in sentences(4)))
    assert torch.equal(value(predictor.predict(lines).hypernetwork), whole)
    backward = predictor.predict(sorted(texts.iterdir(), reverse=True)).hypernetwork
    assert torch.allclose(value(backward), whole, atol=1e-6)
    assert not torch.equal(value(predictor.predict(texts / "000.txt").hypernetwork), whole)


def test_mixing_goes_from_one_style_to_the_other(predictor: StylePredictor, texts: Path, tmp_path: Path) -> None:
    other = save_texts(tmp_path / "other", sentences(4, color="blue"))
    first, second = value(predictor.predict(texts).hypernetwork), value(predictor.predict(other).hypernetwork)
    assert not torch.allclose(first, second, atol=1e-6)
    assert torch.equal(value(predictor.predict(texts, toward=other, mix=0).hypernetwork), first)
    halfway = predictor.predict(texts, toward=other, mix=0.5).hypernetwork
    assert torch.allclose(value(halfway), (first + second) / 2, atol=1e-5)
    assert len(halfway.metadata["texts_sha256"]) == 8  # type: ignore[arg-type]


def test_unusable_texts_are_refused(predictor: StylePredictor, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    save_texts(tmp_path / "empty", ["", "  \n"])
    for name, fact in (("missing", "missing"), ("none", ".txt"), ("empty", "The file is empty")):
        with raises(DatasetError, name, fact):
            predictor.predict(tmp_path / name)
    with raises(DatasetError, "Texts"):
        predictor.predict([])
    with raises(DatasetError, "b.txt", "no such file"):
        predictor.predict([tmp_path / "b.txt", tmp_path / "c.txt"])


def test_some_bad_texts_are_excluded_with_a_note(predictor: StylePredictor, texts: Path) -> None:
    before = value(predictor.predict(texts).hypernetwork)
    (texts / "broken.txt").write_bytes(b"\xff\xfe\xff")
    (texts / "empty.txt").write_text("")
    found = predictor.predict(texts)
    assert [note.partition(":")[0] for note in found.notes] == ["broken.txt", "empty.txt"]
    assert torch.equal(value(found.hypernetwork), before)


def test_only_the_first_texts_of_many_count(predictor: StylePredictor, tmp_path: Path) -> None:
    given = save_texts(tmp_path / "many", sentences(MOST_EXAMPLES + 3))
    found = predictor.predict(given)
    assert str(MOST_EXAMPLES + 3) in found.notes[0]
    assert len(found.hypernetwork.metadata["texts_sha256"]) == MOST_EXAMPLES  # type: ignore[arg-type]


def test_long_texts_are_read_in_pieces(predictor: StylePredictor, tmp_path: Path) -> None:
    size = predictor.stored.about.resolution
    long = save_texts(tmp_path / "long", [" ".join(sentences(MOST_EXAMPLES * size // 7))])  # of eight tokens each
    assert "pieces" in predictor.predict(long).notes[0]
    assert predictor.predict(long).hypernetwork.metadata["texts_sha256"] == [sha256_of(long / "000.txt")]


def test_unrelated_texts_are_named(predictor: StylePredictor, texts: Path) -> None:
    stored = predictor.stored
    strict = StylePredictor(replace(stored, about=replace(stored.about, spread=1e-6)), predictor.model)
    assert any("texts look unrelated" in note for note in strict.predict(texts).notes)


def test_the_kind_of_examples_follows_from_their_files(texts: Path, tmp_path: Path) -> None:
    images = save_style(tmp_path / "images", 100)  # with captions in text files
    assert (kind_of(texts), kind_of(images), kind_of(texts / "000.txt")) == ("text", "image", "text")
    assert kind_of([images / "0.png", texts / "000.txt"]) == "image"
    assert kind_of(tmp_path / "missing") is None


def test_examples_predictor_and_model_must_be_of_one_kind(
    tiny_predictor: Path, tiny_text_predictor: Path, texts: Path, tmp_path: Path
) -> None:
    images = save_style(tmp_path / "images", 100)
    with raises(DatasetError, "images", "found images", "Give texts"):
        predictor_for([images], predictor=tiny_text_predictor)
    with raises(DatasetError, "texts", "found texts", "Give images"):
        predictor_for([texts], predictor=tiny_predictor)
    assert predictor_for([images, images], predictor=tiny_predictor).predictor.kind == "image"
    with raises(DatasetError, "found texts"):
        predictor_for([images, texts], predictor=tiny_predictor)


def test_a_predictor_and_a_model_of_other_kinds_are_refused(
    tiny_model: Path, tiny_language_model: Path, tiny_predictor: Path, tiny_text_predictor: Path, texts: Path
) -> None:
    with raises(OtherModelError, "tiny-llm", "reads images"):
        predictor_for([texts], tiny_language_model, tiny_predictor)
    with raises(OtherModelError, "tiny", "reads texts"):
        predictor_for([texts], tiny_model, tiny_text_predictor)
    with raises(OtherModelError, "reads images", "tiny-llm"):
        StylePredictor(load_predictor(tiny_predictor), load_language_model(tiny_language_model, device="cpu"))


def test_another_language_model_is_refused(predictor: StylePredictor, tiny_language_model: Path) -> None:
    other = load_language_model(tiny_language_model, device="cpu")
    torch.manual_seed(1)
    embeddings = other.model.get_input_embeddings().weight
    embeddings.data = torch.randn_like(embeddings)
    with raises(OtherModelError, "tiny-llm", "hidden states"):
        StylePredictor(predictor.stored, other)
    with raises(NoMatchingSitesError, str(WIDTH)):
        StylePredictor(predictor.stored, load_language_model(language_model_folder(), device="cpu"))


def test_another_training_of_the_model_is_noted(
    predictor: StylePredictor, tiny_language_model: Path, texts: Path
) -> None:
    other = load_language_model(tiny_language_model, device="cpu")
    for name, parameter in other.model.named_parameters():
        if "k_proj" in name:
            parameter.data.mul_(1.1)
    (note,) = StylePredictor(predictor.stored, other).predict(texts).notes
    assert "was trained on tiny-llm" in note


def test_a_broken_file_is_refused(tiny_text_predictor: Path, texts: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(tiny_text_predictor.read_bytes()[:-40])
    with raises(OtherModelError, "broken.safetensors"):
        predictor_for([texts], predictor=broken)


def test_predict_loads_the_predictor_and_the_model(
    tiny_language_model: Path, tiny_text_predictor: Path, texts: Path
) -> None:
    found = hnloader.predict(texts / "000.txt", model=tiny_language_model, predictor=tiny_text_predictor, device="cpu")
    assert found.widths == (WIDTH,)
    assert found.metadata["sd_checkpoint_name"] == "tiny-llm"
