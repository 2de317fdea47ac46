from __future__ import annotations

from hnloader.cli.terminal import clean


def test_clean_text_is_one_line_without_control_characters() -> None:
    assert clean("a\x1b[31m\tb\r\nc\x9b\u202ed\ud800") == "a\ufffd[31m b c\ufffd\ufffdd\ufffd"
