"""Hooks, forwards and processors of other programs on a model with hypernetworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from hnloader.attention import attach, find_sites
from tests.support.plain_hooks import CHAINS, Twins, output, plain_hooks
from tests.support.small_models import assert_same, make_controlnet, make_small_unet, make_unet, run, unet_inputs

INPUTS = unet_inputs()
SOME = ("affine", "chain")


@pytest.fixture
def twins() -> Twins:
    return Twins(make_small_unet())


def projections(model: nn.Module) -> list[nn.Module]:
    """Return `to_k` of a self- and `to_v` of a cross-attention layer, and both of another."""
    layers = [site.module for site in find_sites(model)]
    return [layers[0].to_k, layers[1].to_v, layers[3].to_k, layers[3].to_v]


# Hooks


def scale_output(module: nn.Module, args: Any, result: Tensor) -> Tensor:
    return result * 1.5


def scale_output_in_place(module: nn.Module, args: Any, result: Tensor) -> None:
    result.mul_(1.5)


def scale_input(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] * 1.5,)


def scale_input_and_keywords(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
    return (args[0] * 1.5,), kwargs


def read_input(module: nn.Module, args: tuple[Tensor]) -> None:
    module.__dict__["read"] = float(args[0].sum())


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "scales the output": lambda module: module.register_forward_hook(scale_output),
    "scales the output in place": lambda module: module.register_forward_hook(scale_output_in_place),
    "scales the output at the end": lambda module: module.register_forward_hook(scale_output, always_call=True),
    "reads the input": lambda module: module.register_forward_pre_hook(read_input),
}
INPUT_HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "scales the input": lambda module: module.register_forward_pre_hook(scale_input),
    "scales the input, with keywords": lambda module: module.register_forward_pre_hook(
        scale_input_and_keywords, with_kwargs=True
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", SOME)
def test_hooks_on_projections(twins: Twins, name: str, hook: str, when: str) -> None:
    chain = CHAINS[name]

    def add() -> list[Any]:
        return [HOOKS[hook](projection) for each in twins for projection in projections(each)]

    handles = add() if when == "before" else []
    with attach(twins.model, chain):
        twins.check(chain, INPUTS)
        for _ in range(2):
            handles = handles or add()
            twins.check(chain, INPUTS)
            twins.check(chain, INPUTS)
            while handles:
                handles.pop().remove()
            twins.check(chain, INPUTS)
        handles = add()
        twins.check(chain, INPUTS)
    twins.check([], INPUTS)
    assert all(len(each._forward_hooks) + len(each._forward_pre_hooks) == 1 for each in projections(twins.model))


@pytest.mark.parametrize("hook", INPUT_HOOKS)
@pytest.mark.parametrize("name", CHAINS)
def test_hooks_that_change_the_input(twins: Twins, name: str, hook: str) -> None:
    chain = CHAINS[name]
    handles = [INPUT_HOOKS[hook](projection) for each in twins for projection in projections(each)]
    with attach(twins.model, chain):
        twins.check(chain, INPUTS)
        twins.check(chain, INPUTS)
        for handle in handles:
            handle.remove()
        twins.check(chain, INPUTS)


@pytest.mark.parametrize("hook", INPUT_HOOKS)
@pytest.mark.parametrize("name", CHAINS)
def test_hooks_from_after_attaching_get_the_changed_input(twins: Twins, name: str, hook: str) -> None:
    chain = CHAINS[name]
    with attach(twins.model, chain):
        for _ in range(2):
            handles = [INPUT_HOOKS[hook](projection) for each in twins for projection in projections(each)]
            with plain_hooks(twins.bare, chain, prepend=True):
                expected = run(twins.bare, **INPUTS)
            for _ in range(2):
                assert_same(run(twins.model, **INPUTS), expected)
            for handle in handles:
                handle.remove()
            twins.check(chain, INPUTS)


@pytest.mark.parametrize("name", CHAINS)
def test_a_hook_for_all_modules(twins: Twins, name: str) -> None:
    chosen = [projection for each in twins for projection in projections(each)]
    with attach(twins.model, CHAINS[name]):
        twins.check(CHAINS[name], INPUTS)
        for register, hook in (
            (torch_module.register_module_forward_hook, scale_output),
            (torch_module.register_module_forward_pre_hook, scale_input),
        ):
            handle = register(lambda module, *args, hook=hook: hook(module, *args) if module in chosen else None)
            try:
                twins.check(CHAINS[name], INPUTS)
                twins.check(CHAINS[name], INPUTS)
            finally:
                handle.remove()
            twins.check(CHAINS[name], INPUTS)


@pytest.mark.parametrize("name", CHAINS)
def test_hooks_on_the_model_that_change_its_inputs(twins: Twins, name: str) -> None:
    """The layers receive another text than the caller passes."""

    def other_text(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"] * 0.5}

    with attach(twins.model, CHAINS[name]):
        twins.check(CHAINS[name], INPUTS)
        for prepend in (False, True):
            handles = [each.register_forward_pre_hook(other_text, with_kwargs=True, prepend=prepend) for each in twins]
            twins.check(CHAINS[name], INPUTS)
            twins.check(CHAINS[name], INPUTS)
            for handle in handles:
                handle.remove()
            twins.check(CHAINS[name], INPUTS)


# Forwards


def wrap_output(module: nn.Module) -> None:
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs) * 1.5


def wrap_input(module: nn.Module) -> None:
    original = module.forward
    module.forward = lambda x: original(x * 1.5)


def replace_by_function(module: nn.Module) -> None:
    module.forward = lambda x: nn.functional.linear(x, module.weight * 0.5)


WRAPPERS = {"the output": wrap_output, "the input": wrap_input, "a function": replace_by_function}


def restore(module: nn.Module, originals: dict[nn.Module, Any], how: str) -> None:
    if how == "deleted":
        del module.forward
    else:
        module.forward = originals[module]


@pytest.mark.parametrize("how", ["deleted", "restored"])
@pytest.mark.parametrize("when", ["before", "after", "after gradients"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", SOME)
def test_a_forward_of_a_projection(twins: Twins, name: str, wrapper: str, when: str, how: str) -> None:
    """It is wrapped and later removed, while attached; then wrapped again until after detaching."""
    chain = CHAINS[name]

    def wrap() -> dict[nn.Module, Any]:
        originals = {}
        for each in twins:
            for projection in projections(each):
                originals[projection] = projection.forward
                WRAPPERS[wrapper](projection)
        return originals

    originals = wrap() if when == "before" else {}
    with attach(twins.model, chain):
        twins.check(chain, INPUTS)
        for _ in range(2):
            if when == "after gradients":
                record(twins.model)
            originals = originals or wrap()
            twins.check(chain, INPUTS)
            twins.check(chain, INPUTS)
            for projection in originals:
                restore(projection, originals, how)
            originals = {}
            twins.check(chain, INPUTS)
        if when == "after gradients":
            record(twins.model)
        originals = wrap()
        twins.check(chain, INPUTS)
    twins.check([], INPUTS)
    for projection in originals:
        restore(projection, originals, how)
    twins.check([], INPUTS)
    assert torch.equal(*(run(each) for each in twins))


def record(model: nn.Module) -> None:
    """Call the model with gradients."""
    text = INPUTS["encoder_hidden_states"].clone().requires_grad_()
    output(model, {**INPUTS, "encoder_hidden_states": text}).sum().backward()


@pytest.mark.parametrize("name", CHAINS)
def test_a_forward_that_is_wrapped_inside_a_call(twins: Twins, name: str) -> None:
    chain = CHAINS[name]
    context = torch.randn(2, 5, 20)
    done: list[bool] = []

    def wrap_once(*_: object) -> None:
        if not done:
            done.append(True)
            for each in twins:
                wrap_output(find_sites(each)[0].module.to_k)
                wrap_output(find_sites(each)[3].module.to_v)

    with attach(twins.model, chain):
        handle = find_sites(twins.model)[2].module.register_forward_pre_hook(wrap_once)
        run(twins.model)
        handle.remove()
        for _ in range(2):
            twins.check(chain, INPUTS)
    twins.check([], INPUTS)
    assert torch.equal(*(find_sites(each)[0].module.to_k(context) for each in twins))


class Half(nn.Module):
    """A parametrization of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


@pytest.mark.parametrize("name", CHAINS)
def test_parametrized_weights(twins: Twins, name: str) -> None:
    chain = CHAINS[name]
    with attach(twins.model, chain):
        twins.check(chain, INPUTS)
        for each in twins:
            for projection in projections(each):
                parametrize.register_parametrization(projection, "weight", Half())
        twins.check(chain, INPUTS)
        for each in twins:
            for projection in projections(each):
                projection.parametrizations.weight[0].factor.data.mul_(-3)
        twins.check(chain, INPUTS)
        for each in twins:
            for projection in projections(each):
                parametrize.remove_parametrizations(projection, "weight")
        twins.check(chain, INPUTS)
    twins.check([], INPUTS)


# Other layers that read the text


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHAINS)
def test_an_ip_adapter(name: str, when: str) -> None:
    """The projections of the image read a context of the same width and stay unchanged."""
    twins, chain = Twins(make_small_unet()), CHAINS[name]
    image = torch.randn(2, 1, 3, 48, generator=torch.Generator().manual_seed(4))
    text = INPUTS["encoder_hidden_states"].clone()
    inputs = {**INPUTS, "encoder_hidden_states": (text, [image])}

    def load() -> None:
        for each in twins:
            torch.manual_seed(6)
            for site in find_sites(each):
                if site.kind == "cross":
                    width = site.module.inner_dim
                    site.module.set_processor(IPAdapterAttnProcessor2_0(width, 48, num_tokens=(3,), scale=0.7))

    if when == "before":
        load()
    with attach(twins.model, chain):
        if when == "after":
            twins.check(chain, INPUTS)
            load()
        for _ in range(3):
            twins.check(chain, inputs)
        image.mul_(-1)
        twins.check(chain, inputs)
        text.mul_(0.5)
        twins.check(chain, inputs)


@pytest.mark.parametrize("name", CHAINS)
def test_a_controlnet_with_the_same_hypernetworks(name: str) -> None:
    unet, chain = Twins(make_unet()), CHAINS[name]
    control = Twins(make_controlnet(unet.model))
    condition = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    other = [(hypernetwork, -strength) for hypernetwork, strength in chain]

    def step(unet: nn.Module, controlnet: nn.Module) -> Tensor:
        with torch.no_grad():
            down, mid = controlnet(**INPUTS, controlnet_cond=condition, return_dict=False)
            found = unet(**INPUTS, down_block_additional_residuals=down, mid_block_additional_residual=mid)
        return found.sample

    def expected(unet_chain: Any, control_chain: Any) -> Tensor:
        with plain_hooks(unet.bare, unet_chain), plain_hooks(control.bare, control_chain):
            return step(unet.bare, control.bare)

    with attach(unet.model, chain):
        assert_same(step(unet.model, control.model), expected(chain, []))
        with attach(control.model, other) as attachment:
            for _ in range(3):
                assert_same(step(unet.model, control.model), expected(chain, other))
            attachment.set_strength(0.4)
            weaker = [(hypernetwork, 0.4) for hypernetwork, _ in chain]
            assert_same(step(unet.model, control.model), expected(chain, weaker))
        assert_same(step(unet.model, control.model), expected(chain, []))
    assert torch.equal(step(unet.model, control.model), expected([], []))
