"""`hnloader ui`: its options, and the running command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hnloader.cli.app import app
from hnloader.cli.ui_command import _folders, _models
from hnloader.demo import hypernetwork_paths, pipeline_folder, text_hypernetwork_paths


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        (["--host", "0.0.0.0"], 1, "0.0.0.0"),
        (["--auth", "me"], 2, "NAME:PASSWORD"),
        (["--folder", "nowhere"], 2, "nowhere"),
        (["--model", "nowhere"], 1, "nowhere"),
    ],
)
def test_refuses_bad_options_before_starting(arguments: list[str], code: int, fact: str) -> None:
    result = CliRunner().invoke(app, ["ui", "--no-browser", *arguments])
    assert result.exit_code == code
    assert fact in re.sub(r"[\s│]+", " ", result.output)


def test_the_default_folders_are_the_users_and_the_bundled_ones(tmp_path: Path) -> None:
    bundled = [hypernetwork_paths()["outline"].parent, text_hypernetwork_paths()["past"].parent]
    assert _folders(None) == [Path("hypernetworks"), *bundled]
    assert _folders([tmp_path]) == [tmp_path]


def test_a_folder_of_models_offers_each_of_them(tmp_path: Path) -> None:
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15" / "model_index.json").write_text("{}")
    (tmp_path / "anime.safetensors").touch()
    (tmp_path / "readme.txt").touch()
    assert _models(str(tmp_path)) == [str(tmp_path / "anime.safetensors"), str(tmp_path / "sd15")]
    assert _models(str(pipeline_folder())) == [str(pipeline_folder())]


@pytest.mark.slow
def test_serves_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hnloader", "ui", "--no-browser", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout is not None
        with urllib.request.urlopen(process.stdout.readline().strip()) as response:
            status, text = response.status, response.read().decode()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert status == 200
    assert "hnloader" in text
    assert process.returncode == 130
    assert "Traceback" not in errors
