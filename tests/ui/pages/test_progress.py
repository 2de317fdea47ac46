"""Errors as notices."""

from __future__ import annotations

import pytest

from hnloader.errors import CancelledError, SettingsError
from hnloader.ui.pages.progress import complaint, explained


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "fact"),
    [
        (SettingsError("Seed: expected a number."), "Seed"),
        (MemoryError(), "memory"),
        (OutOfMemoryError(), "memory"),
        (PermissionError(13, "Permission denied", "/images"), "/images"),
    ],
)
def test_explains_expected_errors(error: BaseException, fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fact in explained(error)
    assert capsys.readouterr().err == ""


def test_prints_the_traceback_of_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert "KeyError" in explained(KeyError("steps"))
    assert "KeyError: 'steps'" in capsys.readouterr().err


def test_only_a_cancelled_job_is_not_an_alert() -> None:
    assert 'role="status"' in complaint(CancelledError())
    assert 'role="alert"' in complaint(SettingsError("Seed: expected a number."))
