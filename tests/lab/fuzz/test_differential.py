from __future__ import annotations

import ast
import io
import re

import pytest
import torch

from lab.fuzz import differential
from lab.fuzz.choices import Choices
from lab.fuzz.makers import containers
from lab.fuzz.makers.pickles import PickleMaker
from tests.support.paths import ROOT


def test_member_name_that_torch_cannot_decode_is_refused_by_both() -> None:
    maker = PickleMaker(Choices(b""))
    members = containers._members(Choices(b""), maker, maker.whole())
    data = containers.archive(Choices(b""), [*members, containers.Member(b"\xac", b"abc")], valid=True)
    with pytest.raises(UnicodeDecodeError):
        torch.load(io.BytesIO(data), weights_only=True)
    before = differential.counts["both refuse"]
    differential.compare(data)
    assert differential.counts["both refuse"] == before + 1


def test_unexplained_difference_is_a_finding() -> None:
    with pytest.raises(differential.DisagreementError):
        differential._explain("stricter", differential.STRICTER, "a message that no row explains")


def product_texts() -> list[str]:
    """Return the texts in the code that reads files, with a digit for each inserted value."""
    texts = []
    for path in sorted((ROOT / "hnloader" / "formats").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "9" for part in node.values))
    return texts


def test_each_row_explains_a_message_that_exists() -> None:
    texts = product_texts()
    patterns = [pattern for row, _ in differential.STRICTER for pattern in re.split(r"\|(?![^(]*\))", row)]
    assert [pattern for pattern in patterns if not any(re.search(pattern, text) for text in texts)] == []
