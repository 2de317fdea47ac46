"""The status file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hnloader.training.status import STATUS_NAME, Status, read_status, write_status
from tests.support.trainings import WRONG_VALUES, with_value


@pytest.mark.parametrize("value", [*WRONG_VALUES, "gone"])
def test_a_status_with_wrong_types_is_none(value: object, tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", 3, 10, 0.5, 0.4, (0.3, 2), 1e-3, 5.0, 2.0, "well", 1, [{"step": 1.0}]))
    sound = json.loads((tmp_path / STATUS_NAME).read_text())
    assert read_status(tmp_path) is not None
    for key in sound:
        (tmp_path / STATUS_NAME).write_text(json.dumps(with_value(sound, (key,), value)))
        found = read_status(tmp_path)
        if found is not None:
            assert f"{found.step:,} {found.steps:,} {found.phase} {found.message[:1]} {found.pid:d} {found.seconds:.0f}"
            assert all(
                number is None or number * 1.0 is not None
                for number in (found.loss, found.learning_rate, found.seconds_left)
            )
            assert all(each["step"] >= 0 for each in found.history)
    for text in ("[]", "null", "3", "{", "[" * 100_000, "\xff"):
        (tmp_path / STATUS_NAME).write_text(text, encoding="latin-1")
        assert read_status(tmp_path) is None
