"""Run every verb with closed pipes, closed streams, a full disk, and Ctrl-C."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hnloader.cli import reporting, streams
from hnloader.cli.app import app
from tests.support.paths import GOLDENS

SOUND = GOLDENS / "relu_121.pt"

# Arguments with which each verb writes output without a model; otherwise --help.
VERBS: dict[str, list[str]] = {
    "inspect": [str(SOUND)],
    "scan": [str(SOUND)],
    "convert": [str(SOUND), "--dry-run"],
    "export-lora": ["--help"],
    "merge": [str(SOUND), "-o", "made.pt", "--overwrite"],
    "generate": ["--help"],
    "write": ["--help"],
    "explain": ["--help"],
    "train": ["--init"],
    "predict": ["--help"],
    "train-predictor": ["--help"],
    "dataset check": ["--help"],
    "compare": ["--help"],
    "demo": ["--help"],
    "ui": ["--help"],
}
OTHERS = [["--help"], ["--version"], [], ["inspekt"], ["inspect", str(SOUND), "--json"]]
OTHERS += [["scan", str(SOUND), "--json"], ["inspect", "missing.pt"], ["generate", "x", "--size", "odd"]]

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
HAS_FULL = Path("/dev/full").exists()

# What the commands import.
_MODULES = """
hnloader.cli.inspect_image hnloader.conversion.merging hnloader.conversion.reports hnloader.conversion.to_format
hnloader.demo.sampling hnloader.embeddings hnloader.inspection hnloader.pipelines hnloader.scanning hnloader.training
rich.columns rich.markdown rich.rule rich.scope rich.syntax rich.traceback typer.rich_utils
"""
# Imports once, then runs each case in a forked child.
_DRIVER = """
import gc, importlib, json, os, sys, tempfile
import hnloader.cli.app as app
for name in sys.argv.pop().split():
    importlib.import_module(name)
gc.freeze()  # no child copies the memory that its collections would touch
cases = json.loads(sys.argv[1])
os.chdir(tempfile.mkdtemp())
left, gone = os.pipe()
os.close(left)
full = os.open("/dev/full", os.O_WRONLY) if os.path.exists("/dev/full") else None
found = []
for arguments, how in cases:
    captured, write = os.pipe()
    child = os.fork()
    if not child:
        for number, kind in ((1, how[0]), (2, how[1])):
            name = "stdout" if number == 1 else "stderr"
            if kind == "closed":
                os.close(number)
                setattr(sys, name, None)
            else:
                os.dup2({"gone": gone, "full": full, "read": write}[kind], number)
                setattr(sys, name, open(number, "w", closefd=False))
        sys.argv = ["hnloader", *arguments]
        try:
            app.run()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 99)
        os._exit(98)
    os.close(write)
    with open(captured, errors="replace") as file:
        text = file.read()
    found.append((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text))
print(json.dumps(found))
"""


def _verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path)
    for name, each in (below or {}).items():
        yield from _verbs(each, (*path, name))


def _commands() -> list[list[str]]:
    return [[*verb.split(), *arguments] for verb, arguments in VERBS.items()] + OTHERS


STREAMS = [  # of stdout and stderr
    *(("read", "closed"), ("gone", "read"), ("gone", "gone"), ("gone", "closed")),
    *(("closed", "read"), ("closed", "closed"), ("full", "read"), ("full", "full")),
]


@functools.cache
def _all_results() -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Return the exit codes and captured texts of all commands for each pair of streams."""
    cases = [(command, how) for how in STREAMS if "full" not in how or HAS_FULL for command in _commands()]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_DRIVER), json.dumps(cases), _MODULES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for (_, how), (code, text) in zip(cases, json.loads(done.stdout), strict=True):
        results.setdefault(how, []).append((code, text))
    return results


def _results(*how: str) -> Iterator[tuple[list[str], int, str, int, bool]]:
    """Yield each command with its exit code and text, its usual exit code, and True if it writes to stdout."""
    usual = _all_results()["read", "closed"]
    for command, (code, text), (usual_code, output) in zip(
        _commands(), _all_results()[how[0], how[1]], usual, strict=True
    ):
        yield command, code, text, usual_code, bool(output)


def test_every_verb_is_tested() -> None:
    assert set(_verbs(typer.main.get_command(app))) == VERBS.keys()


def test_every_verb_reports_its_errors() -> None:
    def check(command: Any) -> None:
        below = getattr(command, "commands", None)
        for each in (below or {}).values():
            check(each)
        if below is None:
            assert getattr(command.callback, "__wrapped__", None) is not None, command.name

    check(typer.main.get_command(app))


@pytest.mark.slow
@posix
@pytest.mark.parametrize("stderr", ["read", "gone", "closed"])
def test_closed_pipe_ends_quietly(stderr: str) -> None:
    for command, code, text, usual, writes in _results("gone", stderr):
        if writes:
            assert code == streams.READER_LEFT, command
            assert "Error" not in text and "Traceback" not in text, command
        else:
            assert code in (usual, streams.READER_LEFT, reporting.FAILED), command


@pytest.mark.slow
@posix
@pytest.mark.skipif(not HAS_FULL, reason="the system has no /dev/full")
def test_full_disk_is_reported_and_exits_with_1() -> None:
    for command, code, text, usual, writes in _results("full", "read"):
        assert "Traceback" not in text and "bug" not in text, command
        assert code == (reporting.FAILED if writes else usual), command
        assert ("standard output" in text and "disk is full" in text) == writes, command
    for command, code, *_ in _results("full", "full"):
        assert code in (reporting.FAILED, reporting.USAGE), command


@pytest.mark.slow
@posix
@pytest.mark.parametrize("stderr", ["read", "closed"])
def test_closed_streams_do_not_change_the_exit_code(stderr: str) -> None:
    for command, code, text, usual, _ in _results("closed", stderr):
        assert code == usual, (command, text)
        assert "Traceback" not in text and "bug" not in text, command


@posix
def test_files_never_get_the_descriptor_of_a_closed_stream(tmp_path: Path) -> None:
    code = "import os, sys; from hnloader.cli import streams; streams.watch(); "
    code += f"handle = os.open({str(tmp_path / 'made')!r}, os.O_WRONLY | os.O_CREAT); print('lost', flush=True); "
    code += "sys.exit(0 if handle > 2 else 1)"
    ended = subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code])
    assert ended.returncode == 0
    assert (tmp_path / "made").read_bytes() == b""


@posix
def test_exit_code_of_a_real_process() -> None:
    """Without `streams.flush`, Python would flush at exit and return 120."""
    read, write = os.pipe()
    os.close(read)
    for unbuffered in ("", "1"):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-m", "hnloader", "inspect", str(SOUND)]
        ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
        assert (ended.returncode, ended.stderr) == (streams.READER_LEFT, b"")
    os.close(write)


@posix
def test_ctrl_c_exits_with_130_in_any_command() -> None:
    code = "import os, signal, hnloader.cli.app as app; app.app.command('wait')(lambda: os.kill(os.getpid(), 2)); "
    code += "import sys; sys.argv = ['hnloader', 'wait']; app.run()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == reporting.INTERRUPTED
    assert "Traceback" not in ended.stderr


@posix
def test_output_lost_error(capsys: pytest.CaptureFixture[str]) -> None:
    lost = streams.OutputLostError("stdout", BrokenPipeError(32, "Broken pipe"))
    assert lost.end() == streams.READER_LEFT == 128 + signal.SIGPIPE
    assert streams.OutputLostError("stdout", OSError(5, "Input/output error")).end() == 1
    assert "Input/output error" in capsys.readouterr().err
