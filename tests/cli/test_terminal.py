from __future__ import annotations

import pytest

from hnloader.cli.terminal import clean, size_text


def test_clean_text_is_one_line_without_control_characters() -> None:
    assert clean("a\x1b[31m\tb\r\nc\x9b\u202ed\ud800") == "a\ufffd[31m b c\ufffd\ufffdd\ufffd"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (87_124_456, "87.1 MB"), (999_999, "1.0 MB"), (5e12, "5000 GB")],
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text
