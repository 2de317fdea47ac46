"""A message leads to the module that it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

import hnloader
from hnloader.demo import hypernetwork_paths
from hnloader.prompt import parse_prompt
from hnloader.training import train
from lab import messages


def source(error: Exception) -> str:
    """Return the file that the message of an error is found in."""
    return messages.places_of(str(error))[0].path.as_posix()


def test_errors_of_files(tmp_path: Path) -> None:
    data = hypernetwork_paths()["outline"].read_bytes()
    for content, expected in ((data[:-100], "zip_archive"), (b"<html></html>", "identify"), (b"", "source")):
        (tmp_path / "style.pt").write_bytes(content)
        with pytest.raises(hnloader.HypernetworkError) as caught:
            hnloader.load(tmp_path / "style.pt")
        assert source(caught.value) == f"hnloader/formats/{expected}.py"


def test_errors_of_prompts_and_settings() -> None:
    with pytest.raises(hnloader.PromptTagError) as tag:
        parse_prompt("<hypernet:ink:strong>")
    assert source(tag.value) == "hnloader/prompt.py"
    with pytest.raises(hnloader.ConfigError) as setting:
        train({"nosuch": 1})
    assert source(setting.value) == "hnloader/training/schema.py"


def test_message_of_another_program_is_found_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert messages.main(["CUDA", "unavailable"]) == 1
    assert "torch" in capsys.readouterr().out


def test_command_prints_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert messages.main(["empty: contains no images. Add some (.png)."]) == 0
    assert capsys.readouterr().out.startswith("hnloader/training/dataset.py:")
