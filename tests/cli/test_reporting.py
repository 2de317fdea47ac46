from __future__ import annotations

import errno
import os
import warnings

import pytest
import typer

from hnloader.cli.reporting import BUG, DEBUG, FAILED, INTERRUPTED, USAGE, exit_codes, reports_errors
from hnloader.errors import CorruptFileError, PartialMatchWarning, PromptTagError


def fail(error: BaseException) -> int:
    @reports_errors
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        command()
    return ended.value.exit_code


@pytest.mark.parametrize(
    ("error", "code", "fact"),
    [
        (CorruptFileError("ink.pt: Found 3 bytes. Download it again."), FAILED, "ink.pt: Found 3 bytes."),
        (PromptTagError("<hypernet:a:b>: Found 'b'."), USAGE, "'b'"),
        (KeyboardInterrupt(), INTERRUPTED, "Interrupted"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "gone.png"), FAILED, "gone.png: No such file"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "made.png"), FAILED, "made.png: The disk is full"),
        (MemoryError(), FAILED, "memory"),
        (ZeroDivisionError("oops"), BUG, "ZeroDivisionError: oops"),
    ],
)
def test_errors_are_one_line_with_a_code(
    error: BaseException, code: int, fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ") and fact in err and len(err.splitlines()) == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")
    assert fail(ZeroDivisionError("oops")) == BUG
    assert "Traceback" in capsys.readouterr().err


def test_only_warnings_of_hnloader_become_notes(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def command() -> None:
        for _ in range(2):
            warnings.warn_explicit("width 48", PartialMatchWarning, "attach.py", 1, module="hnloader.attention.attach")
        warnings.warn_explicit("old name", FutureWarning, "other.py", 1, module="diffusers.models")

    command()
    assert capsys.readouterr().err == "Note: width 48\n"


def test_help_has_the_codes_in_order() -> None:
    text = exit_codes({4: "a suspicious file", 0: "nothing found"})
    assert text.startswith("Exit codes: 0 nothing found; 1 ")
    assert text.index("; 2 ") < text.index("; 4 a suspicious file") < text.index("; 70 ")
