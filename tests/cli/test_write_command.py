"""`hnloader write`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hnloader
from hnloader.cli import write_command
from hnloader.cli.app import app
from hnloader.language_models import load_language_model
from hnloader.writing import WritingSettings, write_text
from tests.support.small_decoders import WIDTH
from tests.support.small_language_models import save_language_model


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("models") / "llm", chat=True)


@pytest.fixture
def style(tmp_path: Path) -> Path:
    made = hnloader.Hypernetwork.new((f"{WIDTH}:self",), hnloader.Architecture(activation="relu"), name="style")
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    hnloader.save(made, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


@pytest.fixture
def run(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(*arguments: object, **options: Any) -> Any:
        defaults = ["--model", llm, "--device", "cpu", "--seed", 7, "--max-tokens", 8]
        return CliRunner().invoke(app, ["write", *map(str, [*defaults, *arguments])], **options)

    return write


def test_a_hypernetwork_for_another_model_is_refused_before_any_output(run: Any, tmp_path: Path) -> None:
    other = hnloader.Hypernetwork.new((WIDTH + 1,), hnloader.Architecture()).requires_grad_(False)
    hnloader.save(other, tmp_path / "other.safetensors")
    result = run("the cat", "-H", tmp_path / "other.safetensors", "--sweep", "0.5,1")
    assert result.exit_code == 1 and result.stdout == ""
    assert str(WIDTH + 1) in result.stderr


def test_the_text_follows_the_prompt(run: Any, llm: Path, style: Path) -> None:
    language = load_language_model(llm, device="cpu")
    settings = WritingSettings(8, seed=7)
    result = run("the cat")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["the", "cat", *write_text(language, "the cat", settings).split()]
    assert result.stdout.endswith("\n")
    with hnloader.attach(language.model, style, 0.8):
        styled = write_text(language, "the cat", settings)
    result = run("the cat", "--hypernet", f"{style}:0.8")
    assert result.stdout.split() == ["the", "cat", *styled.split()]
    assert run("the cat", "--hypernet-dir", style.parent, "-H", "style:0.8").stdout == result.stdout
    assert run("-", "-H", f"{style}:0.8", input="the cat\n").stdout == result.stdout


def test_without_a_model_the_bundled_one_writes(run: Any) -> None:
    given = [
        "write",
        "This is a story about Mara and a lantern.",
        "--seed",
        "1",
        "--max-tokens",
        "12",
        "--device",
        "cpu",
    ]
    plain, styled = (CliRunner().invoke(app, [*given, *more]) for more in ([], ["--hypernet", "past"]))
    assert plain.exit_code == styled.exit_code == 0, styled.output
    assert plain.stdout.startswith("This is a story about Mara and a lantern. ")
    assert styled.stdout != plain.stdout


def test_several_files_are_chained(run: Any, style: Path) -> None:
    one = run("the cat", "-H", f"{style}:0.5").stdout
    assert run("the cat", "-H", f"{style}:0.5", "-H", f"{style}:-1").stdout != one


def test_a_sweep_has_headings(run: Any, style: Path) -> None:
    result = run("the cat", "-H", f"{style}:0.5", "--sweep", "0,2")
    assert result.exit_code == 0, result.output
    texts = result.stdout.split("--- ")
    assert [text.splitlines()[0] for text in texts[1:]] == ["style 0 ---", "style 1 ---"]
    assert texts[1].splitlines()[1] + "\n" == run("the cat").stdout
    assert texts[2].splitlines()[1] + "\n" == run("the cat", "-H", f"{style}:1").stdout


def test_a_chat_prints_the_answer_alone(run: Any, llm: Path) -> None:
    language = load_language_model(llm, device="cpu")
    expected = write_text(language, "user: the cat ? bot: ", WritingSettings(8, seed=7))
    assert run("the cat ?", "--chat").stdout.split() == expected.split()


def test_a_random_seed_is_noted(run: Any, monkeypatch: pytest.MonkeyPatch, llm: Path) -> None:
    monkeypatch.setattr(write_command.secrets, "randbelow", lambda limit: 7)
    result = CliRunner().invoke(app, ["write", "the cat", "-m", str(llm), "--device", "cpu", "--max-tokens", "8"])
    assert result.stdout == run("the cat").stdout
    assert "7" in result.stderr
    assert run("the cat").stderr == ""


def test_control_characters_are_not_printed(run: Any) -> None:
    result = run("the \x1b[31m cat\n\u202edog")
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    assert "cat\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        (["--sweep", "0,1"], 2, "--hypernet"),
        (["-H", "style:1", "--sweep", "a"], 2, "--sweep"),
        (["-H", "style:1:start=0.5"], 2, "start"),
        (["-H", "style:1e39"], 1, "65504"),
        (["-H", "nowhere"], 1, "nowhere"),
        (["--model", "none/at/all"], 1, "none/at/all"),
        (["--temperature", "-1"], 2, "--temperature"),
    ],
)
def test_errors(arguments: list[str], code: int, fact: str, run: Any, style: Path) -> None:
    result = run("the cat", "--hypernet-dir", style.parent, *arguments)
    assert result.exit_code == code, result.output
    assert fact in result.stderr
    assert result.stdout == ""
