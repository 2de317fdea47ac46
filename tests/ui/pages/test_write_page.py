"""Write in a browser, and by the handlers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import expect

import hnloader
from hnloader.errors import CancelledError, HypernetworkError
from hnloader.language_models import load_language_model
from hnloader.ui.language_writer import BUNDLED_WRITER, LanguageWriter
from hnloader.ui.page_host import TextRequest
from hnloader.ui.pages.write_page import MOST_TOKENS, _Write
from hnloader.writing import WritingSettings, write_text
from tests.support.browsers import select, turn_to
from tests.support.small_decoders import WIDTH
from tests.support.small_language_models import save_language_model
from tests.support.trainings import raises


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("models") / "llm")


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    made = hnloader.Hypernetwork.new((f"{WIDTH}:self",), hnloader.Architecture(activation="relu"), name="voice")
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    (tmp_path / "voices").mkdir()
    hnloader.save(made, tmp_path / "voices" / "voice.safetensors")
    return tmp_path / "voices" / "voice.safetensors"


def test_the_writer_leaves_the_model_alone(llm: Path, voice: Path) -> None:
    writer = LanguageWriter([str(llm)], device="cpu")
    parts: list[str] = []
    request = TextRequest("the cat", str(llm), ((voice, 0.5),), 8, 0.8, 3)
    writer.write(request, parts.append)
    language = load_language_model(llm, device="cpu")
    settings = WritingSettings(8, 0.8, 3)
    with hnloader.attach(language.model, voice, 0.5):
        assert "".join(parts) == write_text(language, "the cat", settings)

    def cancel(part: str) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        writer.write(request, cancel)
    plain: list[str] = []
    writer.write(dataclasses.replace(request, hypernetworks=()), plain.append)
    assert "".join(plain) == write_text(language, "the cat", settings)
    with raises(HypernetworkError, "'other'"):
        writer.write(dataclasses.replace(request, model="other"), parts.append)


def test_the_bundled_model_is_offered_last(llm: Path) -> None:
    assert LanguageWriter([str(llm)]).models() == (str(llm), BUNDLED_WRITER)
    alone = LanguageWriter([], device="cpu")
    parts: list[str] = []
    alone.write(TextRequest(alone.example, BUNDLED_WRITER, max_tokens=5), parts.append)
    assert "".join(parts).strip()


@pytest.mark.parametrize(
    ("place", "value", "fact"),
    [
        (0, "x" * 30_000, "30,000"),
        (3, "gone.pt", "gone.pt"),
        (4, float("inf"), "Strength"),
        (5, MOST_TOKENS + 1, "Tokens"),
        (5, float("nan"), "Tokens"),
        (6, 11, "Temperature"),
    ],
)
def test_values_of_hand_made_requests(place: int, value: Any, fact: str) -> None:
    class Nothing:
        def search(self) -> list[Any]:
            return []

    values: list[Any] = ["the cat", True, "llm", None, 1.0, 10, 0.8, 1]
    values[place] = value
    (outputs,) = _Write(Nothing(), None).run(*values)  # type: ignore[arg-type]
    assert fact in outputs[1]


@pytest.mark.slow
def test_a_text_with_and_without(host_of: Any, server_for: Any, open_page: Any, llm: Path, voice: Path) -> None:
    writer = LanguageWriter([str(llm)], device="cpu")
    host = dataclasses.replace(host_of(voice.parent), writer=writer, pages=("write", "library"))
    page = open_page(server_for(host).url)
    turn_to(page, "Write")
    page.locator("#hnl-write-prompt textarea").fill("the cat")
    select(page, "hnl-write-file", "voice.safetensors")
    page.locator("#hnl-write-seed input").fill("3")
    page.locator("#hnl-write").click()
    expect(page.locator("#hnl-write-status")).to_contain_text("seed 3")
    text, plain = (page.locator(f"#hnl-write-{name} textarea").input_value() for name in ("text", "plain"))
    language = load_language_model(llm, device="cpu")
    settings = WritingSettings(100, 0.8, 3)
    assert plain == f"the cat{write_text(language, 'the cat', settings)}"
    with hnloader.attach(language.model, voice):
        assert text == f"the cat{write_text(language, 'the cat', settings)}"
