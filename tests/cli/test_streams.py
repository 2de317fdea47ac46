"""Every verb with a reader that leaves, closed streams, a full disk, and Ctrl-C."""

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

# Arguments with which each verb writes its results at once; where that takes a model, its help.
VERBS: dict[str, list[str]] = {
    "inspect": [str(SOUND)],
    "scan": [str(SOUND)],
    "convert": [str(SOUND), "--dry-run"],
    "merge": [str(SOUND), "-o", "made.pt", "--overwrite"],
    "generate": ["--help"],
    "explain": ["--help"],
    "train": ["--init"],
    "dataset check": ["--help"],
    "compare": ["--help"],
    "demo": ["--help"],
    "ui": ["--help"],
}
OTHERS = [["--help"], ["--version"], [], ["inspekt"], ["inspect", str(SOUND), "--json"]]
OTHERS += [["scan", str(SOUND), "--json"], ["inspect", "missing.pt"], ["generate", "x", "--size", "odd"]]

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and needs /dev/full")

# Imports once, then runs each command in a child with the streams that a case asks for.
_DRIVER = """
import json, os, sys, tempfile
import hnloader.cli.app as app, hnloader.inspection, hnloader.conversion.merging, hnloader.training
cases = json.loads(sys.argv[1])
os.chdir(tempfile.mkdtemp())
left, gone = os.pipe()
os.close(left)
full = os.open("/dev/full", os.O_WRONLY) if os.path.exists("/dev/full") else None
found = []
for arguments, how in cases:
    said, write = os.pipe()
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
    with open(said, errors="replace") as file:
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


def _run(cases: list[tuple[list[str], tuple[str, str]]]) -> list[tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_DRIVER), json.dumps(cases)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout)]


@functools.cache
def _usual() -> list[tuple[int, str]]:
    """Exit codes, and what stands on stdout."""
    return _run([(command, ("read", "closed")) for command in _commands()])


def test_the_table_has_every_verb() -> None:
    assert set(_verbs(typer.main.get_command(app))) == VERBS.keys()


def test_every_verb_reports_its_errors() -> None:
    def check(command: Any) -> None:
        below = getattr(command, "commands", None)
        for each in (below or {}).values():
            check(each)
        if below is None:
            assert getattr(command.callback, "__wrapped__", None) is not None, command.name

    check(typer.main.get_command(app))


@posix
@pytest.mark.parametrize("streams_", [("gone", "read"), ("gone", "gone"), ("gone", "closed")])
def test_a_reader_that_has_left_ends_it_quietly(streams_: tuple[str, str]) -> None:
    found = _run([(command, streams_) for command in _commands()])
    for command, (code, text), (usual, written) in zip(_commands(), found, _usual(), strict=True):
        if written:
            assert code == streams.READER_LEFT, command
            assert "Error" not in text and "Traceback" not in text, command
        else:
            assert code in (usual, streams.READER_LEFT, reporting.FAILED), command


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_said_and_ends_with_1() -> None:
    found = _run([(command, ("full", "read")) for command in _commands()])
    for command, (code, text), (usual, written) in zip(_commands(), found, _usual(), strict=True):
        assert "Traceback" not in text and "bug" not in text, command
        assert code == (reporting.FAILED if written else usual), command
        assert ("standard output cannot be written: the disk is full." in text) == bool(written), command
    for command, (code, _) in zip(_commands(), _run([(c, ("full", "full")) for c in _commands()]), strict=True):
        assert code in (reporting.FAILED, reporting.USAGE), command


@posix
def test_closed_streams_change_neither_work_nor_exit_code() -> None:
    for how in (("closed", "read"), ("closed", "closed")):
        found = _run([(command, how) for command in _commands()])
        for command, (code, text), (usual, _) in zip(_commands(), found, _usual(), strict=True):
            assert code == usual, (command, text)
            assert "Traceback" not in text and "bug" not in text, command


@posix
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = "import os, sys; from hnloader.cli import streams; streams.watch(); "
    code += f"handle = os.open({str(tmp_path / 'made')!r}, os.O_WRONLY | os.O_CREAT); print('to nobody', flush=True); "
    code += "sys.exit(0 if handle > 2 else 1)"
    ended = subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code])
    assert ended.returncode == 0
    assert (tmp_path / "made").read_bytes() == b""


@posix
def test_a_real_process_ends_with_the_code_too() -> None:
    """The exit of Python writes what waits, and would end with 120."""
    read, write = os.pipe()
    os.close(read)
    for unbuffered in ("", "1"):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-m", "hnloader", "inspect", str(SOUND)]
        ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
        assert (ended.returncode, ended.stderr) == (streams.READER_LEFT, b"")
    os.close(write)


@posix
def test_ctrl_c_ends_with_130_in_what_is_no_verb_of_ours() -> None:
    code = "import os, signal, hnloader.cli.app as app; app.app.command('wait')(lambda: os.kill(os.getpid(), 2)); "
    code += "import sys; sys.argv = ['hnloader', 'wait']; app.run()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == reporting.INTERRUPTED
    assert "Traceback" not in ended.stderr


@posix
def test_what_writes_to_a_stream_is_not_stopped_twice(capsys: pytest.CaptureFixture[str]) -> None:
    lost = streams.OutputLostError("stdout", BrokenPipeError(32, "Broken pipe"))
    assert lost.end() == streams.READER_LEFT == 128 + signal.SIGPIPE
    assert streams.OutputLostError("stdout", OSError(5, "Input/output error")).end() == 1
    assert capsys.readouterr().err == "Error: standard output cannot be written: Input/output error.\n"
