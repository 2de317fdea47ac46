"""The settings of a LoRA export."""

from __future__ import annotations

from typing import Any

import pytest

from hnloader import HypernetworkError, LoraOptions


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("rank", "big"), ("fidelity", 1), ("fidelity", 0)])
def test_options_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(HypernetworkError, match=f"{name}.*{value}"):
        LoraOptions(**{name: value})
