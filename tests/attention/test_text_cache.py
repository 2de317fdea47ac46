"""Texts of programs that change none in place during a call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hnloader.attention.text_cache import TextCache


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Has an entry for each comparison of values."""
    found: list[None] = []
    equal: Callable[[Tensor, Tensor], bool] = torch.equal

    def count(one: Tensor, other: Tensor) -> bool:
        found.append(None)
        return equal(one, other)

    monkeypatch.setattr(torch, "equal", count)
    return found


def test_a_text_of_inference_mode_is_compared_once_for_each_call(compared: list[None]) -> None:
    cache = TextCache(2, steady=True)
    with torch.inference_mode():
        context = torch.randn(1, 5, 8)
        for _ in range(2):
            cache.begin(keep=True)
            texts = {cache.find(context) for _ in range(4)}
            assert len(texts) == 1
            cache.end()
        assert len(compared) == 1
        context.mul_(2)
        cache.begin(keep=True)
        assert cache.find(context) not in texts


def test_two_texts_in_turns_are_compared_once_for_each_call(compared: list[None]) -> None:
    cache = TextCache(2, steady=True)
    with torch.inference_mode():
        contexts = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
        cache.begin(keep=True)
        found = [[cache.find(context) for context in contexts] for _ in range(3)]
    assert all(pair == found[0] for pair in found)
    assert found[0][0] is not found[0][1]
    assert len(compared) == 1  # the second text with the values of the first


def test_a_text_on_another_device_is_kept_for_one_call() -> None:
    cache = TextCache(2, steady=True)
    with torch.inference_mode():
        context = torch.empty(1, 5, 8, device="meta")
        cache.begin(keep=True)
        first = cache.find(context)
        assert first is not None
        assert cache.find(context) is first
        cache.end()
        assert len(cache) == 0
