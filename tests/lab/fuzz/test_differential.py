from __future__ import annotations

import io

import pytest
import torch

from lab.fuzz import differential
from lab.fuzz.choices import Choices
from lab.fuzz.makers import containers
from lab.fuzz.makers.pickles import PickleMaker


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
