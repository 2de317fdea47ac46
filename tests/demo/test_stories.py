"""The bundled language model continues stories, and its hypernetworks change how."""

from __future__ import annotations

import re

import pytest
import torch

import hnloader
from hnloader.demo import language_model_folder, text_hypernetwork_paths, text_predictor_path
from hnloader.demo.stories import PROMPTS, tell_stories
from hnloader.language_models import LanguageModel, load_language_model
from hnloader.writing import WritingSettings, write_text


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return load_language_model(language_model_folder(), device="cpu")


def test_tokens_are_words_with_their_spaces(language: LanguageModel) -> None:
    tokenizer = language.tokenizer
    text = "Mara, an owl and two geese wait. Why?"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 11
    assert tokenizer.decode(ids) == f" {text}"
    assert tokenizer("Mara\n\nzzz")["input_ids"] == [ids[0], tokenizer.unk_token_id]
    assert language.model.dtype == torch.float32


def test_the_model_writes_sentences_and_ends(language: LanguageModel) -> None:
    for seed in range(3):
        text = write_text(language, PROMPTS[0], WritingSettings(150, seed=seed))
        assert re.fullmatch(r"( [A-Z][\w ,]+[.?])+", text), text


def test_unknown_words_are_never_written(language: LanguageModel) -> None:
    for seed in range(3):
        text = write_text(language, "Zebras zigzag about zzz.", WritingSettings(60, temperature=1.0, seed=seed))
        assert language.tokenizer.unk_token_id not in language.tokenizer(text)["input_ids"]


def test_each_style_changes_the_stories() -> None:
    told = tell_stories(PROMPTS[:2])
    assert list(told) == ["plain", *text_hypernetwork_paths()]
    assert len({text for texts in told.values() for text in texts}) == 2 * len(told)
    assert tell_stories(PROMPTS[:1])["past"] == told["past"][:1]


def test_strength_0_changes_no_bit(language: LanguageModel) -> None:
    model = language.model
    given = language.tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        before = model(**given).logits
        for path in text_hypernetwork_paths().values():
            with hnloader.attach(model, hnloader.load(path), 0.0) as attachment:
                assert torch.equal(model(**given).logits, before)
                attachment.set_strength(1.0)
                assert not torch.equal(model(**given).logits, before)
            assert torch.equal(model(**given).logits, before)


def test_files_are_small_and_name_no_local_folders() -> None:
    files = [*language_model_folder().iterdir(), *text_hypernetwork_paths().values(), text_predictor_path()]
    assert len(text_hypernetwork_paths()) == 2
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert text_predictor_path().stat().st_size < 1_500_000
    for file in files:
        assert not re.search(rb"/(home|tmp|root|Users)/", file.read_bytes())
