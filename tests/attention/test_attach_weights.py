"""Weights and projections of a model that change while hypernetworks are attached."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import peft
import pytest
import torch
from torch import Tensor, nn

from hnloader.attention import attach, find_sites
from tests.support.plain_hooks import CHAINS, Twins
from tests.support.small_models import make_small_unet, moved, run, unet_inputs

INPUTS = unet_inputs()  # the text stays the same tensor, so that everything can be kept
SOME = ("affine", "chain")


def with_biases(unet: nn.Module) -> nn.Module:
    """Give all projections a bias, as some models have."""
    torch.manual_seed(3)
    for site in find_sites(unet):
        for name in ("to_k", "to_v"):
            old = getattr(site.module, name)
            new = nn.Linear(old.in_features, old.out_features).requires_grad_(False)
            new.weight.data.copy_(old.weight)
            setattr(site.module, name, new)
    return unet


@pytest.fixture
def twins() -> Twins:
    return Twins(with_biases(make_small_unet()))


def parameters(unet: nn.Module, kind: str, name: str) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Yield `to_k` of the layers of one kind and `to_v` of the first, with their parameter of a name."""
    layers = [site.module for site in find_sites(unet) if site.kind == kind]
    for projection in (*(layer.to_k for layer in layers), layers[0].to_v):
        yield projection, getattr(projection, name)


Change = Callable[[nn.Module, str, nn.Parameter], object]
CHANGES: dict[str, Change] = {
    "in place": lambda module, name, p: p.mul_(1.5),
    "one value": lambda module, name, p: p.view(-1)[3].add_(2),
    "data in place": lambda module, name, p: p.data.mul_(1.5),
    "merged into data": lambda module, name, p: p.data.add_(torch.linspace(-1, 1, p.numel()).view_as(p)),
    "rows of data": lambda module, name, p: p.data[:7].add_(0.5),
    "data replaced": lambda module, name, p: setattr(p, "data", p.data * 1.5),
    "parameter replaced": lambda module, name, p: setattr(module, name, nn.Parameter(p * 1.5, requires_grad=False)),
    "parameter replaced by an equal one, then changed": lambda module, name, p: (
        setattr(module, name, nn.Parameter(p.clone(), requires_grad=False)),
        getattr(module, name).data.mul_(-0.5),
    ),
    "loaded": lambda module, name, p: module.load_state_dict({**module.state_dict(), name: p * 1.5}),
    "loaded and assigned": lambda module, name, p: module.load_state_dict(
        {**module.state_dict(), name: p * 1.5}, assign=True
    ),
    "another storage": lambda module, name, p: p.set_(p * 1.5),
    "as an out argument": lambda module, name, p: torch.mul(p.clone(), 1.5, out=p),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("parameter", ["weight", "bias"])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_changed_parameters(twins: Twins, kind: str, parameter: str, change: str) -> None:
    for chain in (CHAINS[name] for name in SOME):
        with attach(twins.model, chain):
            before = twins.check(chain, INPUTS)
            for _ in range(2):
                for each in twins:
                    with torch.no_grad():
                        for module, found in list(parameters(each, kind, parameter)):
                            CHANGES[change](module, parameter, found)
                after = twins.check(chain, INPUTS)
                assert not torch.equal(before, after)
    assert_bare(twins)


def assert_bare(twins: Twins) -> None:
    """Assert that the model is its twin, bit for bit."""
    states = [each.state_dict() for each in twins]
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    inputs = moved(INPUTS, next(twins.bare.parameters()).dtype)
    assert torch.equal(*(run(each, **inputs) for each in twins))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_a_bias_that_appears_and_goes(twins: Twins, kind: str) -> None:
    for chain in CHAINS.values():
        with attach(twins.model, chain):
            for _ in range(2):
                for each in twins:
                    for module, bias in list(parameters(each, kind, "bias")):
                        new = torch.full_like(module.weight[:, 0], 0.7)
                        module.bias = nn.Parameter(new, requires_grad=False) if bias is None else None
                twins.check(chain, INPUTS)
    assert_bare(twins)


@pytest.mark.parametrize("name", CHAINS)
def test_weights_that_change_in_every_step(twins: Twins, name: str) -> None:
    with attach(twins.model, CHAINS[name]):
        for step in range(12):
            for each in twins:
                for module, weight in parameters(each, ("self", "cross")[step % 2], "weight"):
                    with torch.no_grad():
                        (weight.data if step % 3 else module.weight).mul_(0.97)
            twins.check(CHAINS[name], INPUTS)
    assert_bare(twins)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CHAINS)
def test_a_model_that_is_cast(twins: Twins, name: str, dtype: torch.dtype) -> None:
    chain = CHAINS[name]
    inputs = {each: moved(INPUTS, each) for each in (torch.float32, dtype)}
    with attach(twins.model, chain):
        for each in (torch.float32, dtype, dtype, torch.float32, dtype):
            for model in twins:
                model.to(each)
            twins.check(chain, inputs[each])
    assert_bare(twins)
    for hypernetwork, _ in chain:
        assert {parameter.dtype for parameter in hypernetwork.parameters()} == {torch.float32}
        hypernetwork.release()


@pytest.mark.parametrize("name", CHAINS)
def test_a_projection_that_is_cast_alone(twins: Twins, name: str) -> None:
    """Rounded weights have other values, even in the same dtype as before."""
    with attach(twins.model, CHAINS[name]):
        twins.check(CHAINS[name], INPUTS)
        for each in twins:
            for site in find_sites(each):
                site.module.to_k.to(torch.float16).to(torch.float32)
        twins.check(CHAINS[name], INPUTS)
    assert_bare(twins)


@pytest.mark.parametrize("name", CHAINS)
def test_a_model_that_moves_in_memory(twins: Twins, name: str) -> None:
    """All tensors get other addresses, as in a move to a device and back."""
    with attach(twins.model, CHAINS[name]):
        first = twins.check(CHAINS[name], INPUTS)
        twins.model._apply(torch.clone)
        assert torch.equal(twins.check(CHAINS[name], INPUTS), first)
        twins.model.to("cpu")
        assert torch.equal(twins.check(CHAINS[name], INPUTS), first)
    assert_bare(twins)


# Projections that other modules replace


class Doubling(nn.Linear):
    """A Linear that overrides forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def new_linear(old: nn.Linear, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    torch.manual_seed(9)
    return kind(old.in_features, old.out_features, bias=False).requires_grad_(False)


REPLACEMENTS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "a new Linear": new_linear,
    "a copy": lambda old: copy.deepcopy(old),
    "a subclass": lambda old: new_linear(old, Doubling),
    "a sequence": lambda old: nn.Sequential(new_linear(old), nn.Linear(old.out_features, old.out_features, bias=False)),
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_replaced_projections(twins: Twins, kind: str, replacement: str) -> None:
    for chain in CHAINS.values():
        with attach(twins.model, chain):
            twins.check(chain, INPUTS)
            old = []
            for each in twins:
                for site in find_sites(each):
                    if site.kind == kind:
                        torch.manual_seed(4)
                        old.append((site.module, site.module.to_k))
                        site.module.to_k = REPLACEMENTS[replacement](site.module.to_k).requires_grad_(False)
            twins.check(chain, INPUTS)
            twins.check(chain, INPUTS)
            for layer, projection in old:
                assert not projection._forward_pre_hooks and "forward" not in vars(projection)
                layer.to_k = projection
            twins.check(chain, INPUTS)
    assert_bare(twins)


@pytest.mark.parametrize("name", CHAINS)
def test_projections_that_are_fused(name: str) -> None:
    """The twin stays unfused; it computes the same."""
    twins, chain = Twins(make_small_unet()), CHAINS[name]
    unet = twins.model
    with attach(unet, chain):
        twins.check(chain, INPUTS)
        unet.fuse_qkv_projections()
        for _ in range(2):
            twins.check(chain, INPUTS)
        for site in find_sites(unet):
            with torch.no_grad():
                (site.module.to_qkv if site.kind == "self" else site.module.to_kv).weight.data.mul_(0.5)
        for site in find_sites(twins.bare):
            names = ("to_q", "to_k", "to_v") if site.kind == "self" else ("to_k", "to_v")
            for part in names:
                getattr(site.module, part).weight.data.mul_(0.5)
        twins.check(chain, INPUTS)
        unet.unfuse_qkv_projections()
        for site in find_sites(twins.bare):  # the separate projections kept their weights
            names = ("to_q", "to_k", "to_v") if site.kind == "self" else ("to_k", "to_v")
            for part in names:
                getattr(site.module, part).weight.data.mul_(2)
        twins.check(chain, INPUTS)


# LoRA


def add_lora(unet: nn.Module, name: str = "default", seed: int = 11) -> None:
    torch.manual_seed(seed)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False), name)
    unet.requires_grad_(False)


def train_lora(unet: nn.Module) -> None:
    """Change the parameters of the LoRA, as an optimizer does."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_A" in name:
                parameter.mul_(0.5)


def scale(unet: nn.Module, factor: float) -> None:
    for module in unet.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(factor)


STEPS: dict[str, Callable[[nn.Module], object]] = {
    "load": add_lora,
    "load another": lambda unet: add_lora(unet, "second", 12),
    "both": lambda unet: unet.set_adapters(["default", "second"], [0.7, -0.4]),
    "weaker": lambda unet: unet.set_adapters("default", 0.3),
    "scale": lambda unet: scale(unet, 1.7),
    "disable": lambda unet: unet.disable_lora(),
    "enable": lambda unet: unet.enable_lora(),
    "fuse": lambda unet: unet.fuse_lora(),
    "fuse at half": lambda unet: unet.fuse_lora(lora_scale=0.5),
    "unfuse": lambda unet: unet.unfuse_lora(),
    "train": train_lora,
    "delete another": lambda unet: unet.delete_adapters("second"),
    "remove": lambda unet: unet.unload_lora(),
}
SEQUENCES = [
    ["load", "fuse", "unfuse", "remove"],
    ["load", "fuse", "remove"],
    ["load", "weaker", "scale", "train", "remove", "load"],
    ["load", "disable", "enable", "fuse at half", "unfuse", "disable", "remove"],
    ["load", "load another", "both", "fuse", "unfuse", "delete another", "remove"],
]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("attached", ["first", "in the middle"])
@pytest.mark.parametrize("steps", SEQUENCES, ids=", ".join)
@pytest.mark.parametrize("name", SOME)
def test_lora(name: str, steps: list[str], attached: str) -> None:
    twins = Twins(make_small_unet())
    chain = CHAINS[name]
    before = len(steps) // 2 if attached == "in the middle" else 0
    for step in steps[:before]:
        for each in twins:
            STEPS[step](each)
    with attach(twins.model, chain):
        twins.check(chain, INPUTS)
        for step in steps[before:]:
            for each in twins:
                STEPS[step](each)
            twins.check(chain, INPUTS)
            twins.check(chain, INPUTS)
    assert_bare(twins)


@pytest.mark.parametrize("name", CHAINS)
def test_a_lora_that_is_merged_and_unwrapped(name: str) -> None:
    """The projections are the same modules as before, with other values at the same version."""
    twins = Twins(make_small_unet())
    with attach(twins.model, CHAINS[name]):
        twins.check(CHAINS[name], INPUTS)
        for each in twins:
            add_lora(each)
            for site in find_sites(each):
                for part in ("to_q", "to_k", "to_v"):
                    wrapped = getattr(site.module, part)
                    wrapped.merge()
                    setattr(site.module, part, wrapped.base_layer)
        twins.check(CHAINS[name], INPUTS)
    assert_bare(twins)
