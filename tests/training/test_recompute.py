"""Recomputed activations give the same gradients with less memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

import hnloader
from hnloader.network import Architecture, Hypernetwork
from hnloader.training.recompute import _Recomputable, recompute_activations
from tests.support.bytes_kept import bytes_kept
from tests.support.small_models import make_unet, unet_inputs


def trained(kind: str) -> tuple[nn.Module, Hypernetwork, Callable[[], Tensor]]:
    torch.manual_seed(0)
    unet = make_unet(kind).requires_grad_(False)
    inputs = unet_inputs(kind)
    widths = tuple(sorted({site.width for site in hnloader.attention.find_sites(unet)}))
    hypernetwork = Hypernetwork.new(widths, Architecture(activation="relu", norm=True)).requires_grad_(True)

    def loss() -> Tensor:
        with hnloader.attach(unet, hypernetwork):
            result: Tensor = unet(**inputs)[0].square().mean()
        return result

    return unet, hypernetwork, loss


def gradients(hypernetwork: nn.Module, loss: Tensor) -> list[Tensor]:
    hypernetwork.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in hypernetwork.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_gradients_match_with_less_saved_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, hypernetwork, loss = trained(kind)

    def lean() -> Tensor:
        with recompute_activations(unet):
            return loss()

    plain = gradients(hypernetwork, loss())
    before = {name: (len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__)) for name, m in named(unet)}
    sparing = gradients(hypernetwork, lean())
    assert any(float(gradient.abs().max()) > 0 for gradient in plain)
    assert all(torch.equal(one, two) for one, two in zip(plain, sparing, strict=True))
    after = {name: (len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__)) for name, m in named(unet)}
    assert after == before
    assert bytes_kept(unet, lean, monkeypatch) < 0.65 * bytes_kept(unet, loss, monkeypatch)


def named(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(module.named_modules())


class Parts(nn.Module):
    """One of each kind, and some that are used otherwise than in a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.group = nn.GroupNorm(2, 8)
        self.layer = nn.LayerNorm(8)
        self.gate = GEGLU(8, 8)

    def forward(self, x: Tensor, change: bool = False) -> Tensor:
        normed = self.group(x)
        if change:
            normed.mul_(2)
        made = self.conv(normed * torch.sigmoid(normed))
        made = made * self.conv(made) + made.square()  # what a convolution takes is needed by others as well
        rows = self.layer(made.flatten(2).transpose(1, 2))
        return self.gate(rows) * rows.exp()


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("train", ["nothing", "conv", "group", "layer", "gate"])
def test_gradients_match_for_other_uses_and_trained_parts(change: bool, train: str) -> None:
    torch.manual_seed(0)
    parts = Parts().requires_grad_(False)
    if train != "nothing":
        getattr(parts, train).requires_grad_(True)
    found = []
    for context in (contextlib.nullcontext(), recompute_activations(parts)):
        x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
        parts.zero_grad()
        with context:
            loss = parts(x, change).square().mean()
        loss.backward()
        found.append([x.grad, *(p.grad for p in parts.parameters() if p.requires_grad)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_dropout_in_a_trained_projection_is_repeated() -> None:
    gate = GEGLU(8, 8)
    gate.proj = nn.Sequential(gate.proj, nn.Dropout(0.5))
    x = torch.randn(64, 8)
    found = []
    for context in (contextlib.nullcontext(), recompute_activations(gate)):
        gate.zero_grad()
        torch.manual_seed(1)
        with context:
            loss = gate(x).square().mean()
        torch.manual_seed(2)  # as other operations between the passes
        loss.backward()
        found.append([parameter.grad.clone() for parameter in gate.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_reused_memory_is_not_mistaken_for_a_freed_tensor() -> None:
    known, values = _Recomputable(), np.zeros(4)
    first = torch.from_numpy(values)
    known.add(first, lambda: torch.zeros(4))
    assert known.pack(first) is not first
    del first
    second = torch.from_numpy(values)  # as if the memory had been used again
    assert known.pack(second) is second


def test_an_input_changed_in_place_is_an_error() -> None:
    norm = nn.LayerNorm(8).requires_grad_(False)
    weight = torch.randn(8, requires_grad=True)
    x = torch.randn(2, 8, requires_grad=True) * 1
    with recompute_activations(norm):
        loss = (norm(x) * weight).sum()
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match=r"in place|inplace"):
        loss.backward()


def test_no_hooks_without_gradients_or_under_autocast() -> None:
    parts = Parts().requires_grad_(False)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    with torch.no_grad(), recompute_activations(parts):
        assert not any(module._forward_hooks for module in parts.modules())
    with torch.autocast("cpu", torch.bfloat16), recompute_activations(parts):
        assert not any(module._forward_hooks for module in parts.modules())
        parts(x).sum().backward()
    with recompute_activations(parts):
        assert any(module._forward_hooks for module in parts.modules())
