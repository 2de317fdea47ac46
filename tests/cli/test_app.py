"""The whole command: help, version, completion, missing packages, and real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.cli.reporting import DEBUG
from tests.support.paths import GOLDENS, ROOT


def invoke(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def process(*command: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_help_lists_verbs_and_exit_codes() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for text in ("inspect", "generate", "demo", "--install-completion", "Exit codes:", "130 interrupted"):
        assert text in " ".join(result.stdout.split())
    assert "Exit codes:" in invoke("inspect", "--help").stdout


def test_exit_codes_are_documented() -> None:
    from hnloader.cli import reporting

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for code in (0, reporting.FAILED, reporting.USAGE, reporting.BUG, reporting.INTERRUPTED):
        assert f"| {code} |" in page


def test_version() -> None:
    assert invoke("--version").stdout == f"hnloader {hnloader.__version__}\n"


def test_unknown_verb_is_a_usage_error() -> None:
    assert invoke("inspekt").exit_code == 2


@pytest.mark.parametrize("verb", ["inspect", "convert", "scan"])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_debug_shows_the_traceback_of_each_file(
    verb: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "cut.pt", tmp_path / "page.pt"]
    files[0].write_bytes((GOLDENS / "relu_121.pt").read_bytes()[:5000])
    files[1].write_text("<html>")
    monkeypatch.setenv(DEBUG, "" if by == "option" else "1")
    result = invoke(*(["--debug"] if by == "option" else []), verb, *files)
    assert result.exit_code == 1
    for error in ("CorruptFileError", "UnknownFormatError"):
        assert f"hnloader.errors.{error}: " in result.stderr
    assert "hnloader/formats/reading.py" in result.stderr and "Traceback" not in result.stdout
    monkeypatch.setenv(DEBUG, "")
    assert "Traceback" not in invoke(verb, *files).stderr


def test_completion_offers_verbs_and_samplers() -> None:
    def complete(words: str) -> list[str]:
        environment = {"_HNLOADER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return CliRunner().invoke(app, [], prog_name="hnloader", env=environment).stdout.split()

    assert complete("hnloader ins") == ["inspect"]
    assert complete("hnloader generate x --sampler dpm2") == ["dpm2", "dpm2_a"]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_cli_package_is_named(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from hnloader.__main__ import main; main()"
    running = process("-c", code)
    out, err = running.communicate()
    assert (running.returncode, out) == (1, "")
    assert missing in err and "pip install '.[cli]'" in err and len(err.splitlines()) == 1


def test_generate_names_the_missing_diffusers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = invoke("generate", "a cat", "--model", tmp_path)
    assert result.exit_code == 1
    assert "pip install '.[diffusers]'" in result.stderr


def test_help_does_not_import_diffusers() -> None:
    code = "import sys, hnloader.cli.app; sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    running = process("-c", code)
    assert (running.communicate()[1], running.returncode) == ("", 0)


def test_closed_pipe_is_not_an_error() -> None:
    read, write = os.pipe()
    os.close(read)
    running = subprocess.Popen(
        [sys.executable, "-m", "hnloader", "inspect", str(GOLDENS), "--json"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert b"Traceback" not in running.communicate()[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for child processes")
def test_ctrl_c_exits_with_130(tiny_model: Path, tmp_path: Path) -> None:
    running = process("-m", "hnloader", "generate", "a cat", "--model", tiny_model, "-n", 100000, cwd=tmp_path)
    assert running.stdout is not None
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert first.startswith("images/00001-")
    assert running.returncode == 130
    assert err.endswith("Error: Interrupted.\n")
    assert all(path.suffix == ".png" for path in (tmp_path / "images").iterdir())
