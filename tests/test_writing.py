"""Write text with a language model."""

from __future__ import annotations

import pytest
import torch

from hnloader.errors import ModelError, SettingsError
from hnloader.language_models import LanguageModel, load_language_model
from hnloader.writing import WritingSettings, chat_prompt, prompt_tokens, write_text
from tests.support.small_language_models import make_word_tokenizer, save_language_model
from tests.support.trainings import raises


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(save_language_model(tmp_path_factory.mktemp("llm"), chat=True), device="cpu")


def test_the_seed_determines_the_text(llm: LanguageModel) -> None:
    made = [write_text(llm, "the cat", WritingSettings(12, 1.0, seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    state = torch.get_rng_state()
    write_text(llm, "the cat", WritingSettings(12))
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_0_takes_the_most_likely_tokens(llm: LanguageModel) -> None:
    ids = prompt_tokens(llm.tokenizer, "the cat")
    with torch.no_grad():
        first = int(llm.model(torch.tensor([ids])).logits[0, -1].argmax())
    found = [write_text(llm, "the cat", WritingSettings(1, 0.0, seed)) for seed in (1, 2)]
    assert found == [f" {llm.tokenizer.decode([first])}"] * 2


def test_the_parts_are_the_text(llm: LanguageModel) -> None:
    parts: list[str] = []
    text = write_text(llm, "the cat", WritingSettings(12), parts.append)
    assert "".join(parts) == text
    assert len(parts) > 3


def test_a_prompt_without_room_is_refused(llm: LanguageModel) -> None:
    assert write_text(llm, "the cat " * 60, WritingSettings(100))
    with raises(SettingsError, "129", "128"):
        write_text(llm, "the cat " * 64, WritingSettings(1))


def test_prompts_and_chats(llm: LanguageModel) -> None:
    assert prompt_tokens(llm.tokenizer, "") == [1]
    assert prompt_tokens(llm.tokenizer, "<s> the") == prompt_tokens(llm.tokenizer, "the")
    assert chat_prompt(llm, "hi") == "user: hi bot: "
    with raises(ModelError, "chat template"):
        chat_prompt(LanguageModel(llm.model, make_word_tokenizer(), "plain"), "hi")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_refused(llm: LanguageModel, temperature: float) -> None:
    handle = llm.model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
    try:
        with raises(ModelError, llm.name, "finite"):
            write_text(llm, "the cat", WritingSettings(3, temperature))
    finally:
        handle.remove()
