"""The tensor that changes its context when it is used."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.affine import AffineMap
from tests.support.builders import relative_error
from tests.support.standins.comfyui_host import Host

WIDTH = 8


@pytest.fixture
def folded(comfyui: Host) -> ModuleType:
    return comfyui.part("folded_context")


def changes(count: int = 2) -> tuple[tuple[AffineMap, float], ...]:
    random = torch.Generator().manual_seed(1)
    return tuple(
        (AffineMap(torch.randn(WIDTH, WIDTH, generator=random), torch.randn(WIDTH, generator=random)), 0.5 + number)
        for number in range(count)
    )


def context(tokens: int) -> Tensor:
    return torch.randn(2, tokens, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tokens", [2, 50])  # fewer and more than folding takes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_a_linear_layer_gets_the_changed_context(tokens: int, bias: bool, kept: bool, folded: ModuleType) -> None:
    layer = nn.Linear(WIDTH, 5, bias=bias).requires_grad_(False)
    x = context(tokens)
    wanted = layer(folded.change(x, changes()))
    keeping = folded.KeptFolds(lambda size, device: True) if kept else None
    for _ in range(2):
        assert relative_error(layer(folded.FoldedContext(x, changes(), "k", keeping)), wanted) < 1e-5
    by_name = functional.linear(folded.FoldedContext(x, changes(), "k", keeping), weight=layer.weight, bias=layer.bias)
    assert relative_error(by_name, wanted) < 1e-5


def test_every_other_operation_sees_the_changed_context(folded: ModuleType) -> None:
    x = context(3)
    wanted = folded.change(x, changes())
    lazy = folded.FoldedContext(x, changes(), "k", None)
    assert lazy.shape == x.shape and lazy.dtype == x.dtype and lazy.size(-1) == WIDTH and len(lazy) == 2
    for found, expected in (
        (lazy + 1, wanted + 1),
        (torch.cat([x, lazy]), torch.cat([x, wanted])),
        (lazy[:, 1:], wanted[:, 1:]),
        (lazy.half(), wanted.half()),
        (lazy.mean(dim=1), wanted.mean(dim=1)),
        (torch.stack((lazy, lazy)), torch.stack((wanted, wanted))),
        (lazy.to(torch.float64), wanted.to(torch.float64)),
    ):
        assert type(found) is Tensor and torch.equal(found, expected)


def test_its_memory_cannot_be_read_by_mistake(folded: ModuleType) -> None:
    """A kernel that bypasses torch's functions must fail instead of reading the unchanged context."""
    lazy = folded.FoldedContext(context(3), changes(), "k", None)
    with torch._C.DisableTorchFunctionSubclass():
        try:
            address = lazy.data_ptr()
        except RuntimeError:
            address = 0
    assert address == 0


def test_weights_of_other_dtypes_are_not_folded(folded: ModuleType) -> None:
    x = context(50)
    weight = torch.randn(5, WIDTH).to(torch.float8_e4m3fn)
    with pytest.raises((RuntimeError, NotImplementedError)):  # as without hypernetworks
        functional.linear(folded.FoldedContext(x, changes(), "k", None), weight)


def test_kept_folds_follow_the_weight(folded: ModuleType) -> None:
    kept = folded.KeptFolds(lambda size, device: True)
    first, second = (nn.Parameter(torch.randn(5, WIDTH), requires_grad=False) for _ in range(2))
    given = changes()
    made = kept.folded("k", first, given)
    assert kept.folded("k", first, given)[0] is made[0]
    assert kept.folded("k", second, given)[0] is not made[0]
    assert kept.folded("k", second.data, given) is None  # a cast weight, new in each call
    assert folded.KeptFolds(lambda size, device: False).folded("k", first, given) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, folded: ModuleType) -> None:
    layer = nn.Linear(WIDTH, 5, bias=False).to(dtype).requires_grad_(False)
    given = tuple((AffineMap(m.matrix.to(d), m.bias.to(d)), s) for m, s in changes() for d in [torch.float32])
    if dtype == torch.float64:
        given = tuple((AffineMap(m.matrix.double(), m.bias.double()), s) for m, s in given)
    found = layer(folded.FoldedContext(context(50).to(dtype), given, "k", None))
    wanted = layer(folded.change(context(50).to(dtype), given))
    assert found.dtype == dtype
    assert relative_error(found.double(), wanted.double()) < {torch.float64: 1e-12, torch.float16: 5e-3}.get(
        dtype, 3e-2
    )
