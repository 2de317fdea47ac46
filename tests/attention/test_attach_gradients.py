"""Gradients, checkpointing, autocast and inference mode while hypernetworks are attached."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hnloader.attention import attach
from tests.support.plain_hooks import CHAINS, Chain, Twins, assert_matches, output, plain_hooks
from tests.support.small_models import assert_same, make_small_unet, unet_inputs

SOME = ("affine", "chain")
CHECKPOINTS = {
    "without": None,
    "recomputed": functools.partial(checkpoint, use_reentrant=False),
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
}


@pytest.fixture
def twins() -> Twins:
    return Twins(make_small_unet())


def at(chain: Chain, strength: float) -> Chain:
    return [(hypernetwork, strength) for hypernetwork, _ in chain]


def train_weights(model: nn.Module, inputs: dict[str, Any]) -> None:
    model.requires_grad_(True)


def train_latents(model: nn.Module, inputs: dict[str, Any]) -> None:
    inputs["sample"].requires_grad_()


def train_text(model: nn.Module, inputs: dict[str, Any]) -> None:
    inputs["encoder_hidden_states"].requires_grad_()
    inputs["sample"].requires_grad_()  # reentrant checkpoints need an input with a gradient


def train_lora(model: nn.Module, inputs: dict[str, Any]) -> None:
    torch.manual_seed(11)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    inputs["sample"].requires_grad_()


TRAINED: dict[str, Callable[[nn.Module, dict[str, Any]], None]] = {
    "weights": train_weights,
    "latents": train_latents,
    "text": train_text,
    "lora": train_lora,
}


def gradients(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return the gradients of the parameters and inputs, and clear them."""
    leaves = {
        **dict(model.named_parameters()),
        **{k: v for k, v in inputs.items() if v.is_leaf and v.dtype.is_floating_point},
    }
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected) and found
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("way", CHECKPOINTS)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", SOME)
def test_gradients_of_everything(twins: Twins, name: str, trained: str, way: str) -> None:
    """The strength changes before the backward pass, and the backward pass may run in another thread."""
    chain = CHAINS[name]
    found = []
    for model, inputs in zip(twins, (unet_inputs(), unet_inputs()), strict=True):
        model.train()
        TRAINED[trained](model, inputs)
        found.append(inputs)
    inputs, others = found
    with plain_hooks(twins.bare, at(chain, 0.8)):
        output(twins.bare, others).square().mean().backward()
    expected = gradients(twins.bare, others)
    if CHECKPOINTS[way] is not None:
        twins.model.enable_gradient_checkpointing(CHECKPOINTS[way])
    with attach(twins.model, at(chain, 0.8)) as attachment:
        for new, in_thread in ((0.8, False), (0.1, False), (0.0, False), (0.1, True)):
            attachment.set_strength(0.8)
            loss = output(twins.model, inputs).square().mean()
            attachment.set_strength(new)
            if in_thread:  # as on a GPU
                thread = threading.Thread(target=loss.backward)
                thread.start()
                thread.join()
            else:
                loss.backward()
            assert_same_gradients(gradients(twins.model, inputs), expected)


@pytest.mark.parametrize("way", CHECKPOINTS)
@pytest.mark.parametrize("name", CHAINS)
def test_several_forward_passes_before_one_backward_pass(twins: Twins, name: str, way: str) -> None:
    chain = CHAINS[name]
    texts = [unet_inputs(seed=seed) for seed in range(3)]
    with plain_hooks(twins.bare.requires_grad_(True).train(), chain):
        sum(output(twins.bare, each).square().mean() for each in texts).backward()
    expected = gradients(twins.bare, {})
    for each in texts:
        each["sample"].requires_grad_()
    twins.model.requires_grad_(True).train()
    if CHECKPOINTS[way] is not None:
        twins.model.enable_gradient_checkpointing(CHECKPOINTS[way])
    with attach(twins.model, chain):
        for _ in range(2):
            sum(output(twins.model, each).square().mean() for each in texts).backward()
            assert_same_gradients(gradients(twins.model, {}), expected)


def test_a_hypernetwork_in_training() -> None:
    """Its gradients are those of plain hooks, and calls between the steps use its new parameters."""
    twins = Twins(make_small_unet())
    for name in CHAINS:
        chain, reference = copy.deepcopy(CHAINS[name]), copy.deepcopy(CHAINS[name])
        pairs = {one: other for (one, _), (other, _) in zip(chain, reference, strict=True)}
        both = [*pairs, *pairs.values()]
        for hypernetwork in both:
            hypernetwork.requires_grad_(True)
        inputs = unet_inputs()
        with attach(twins.model, chain):
            for _ in range(3):
                output(twins.model, inputs).square().mean().backward()
                with plain_hooks(twins.bare, reference):
                    output(twins.bare, inputs).square().mean().backward()
                for one, other in pairs.items():
                    assert_same_gradients(gradients(one, {}), gradients(other, {}))
                with torch.no_grad():
                    for parameter in nn.ModuleList(both).parameters():
                        parameter.mul_(0.9)
                twins.check(reference, inputs)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_training_then_inference_then_training(twins: Twins, name: str, checkpointed: bool) -> None:
    """A step of an optimizer changes weights and the text; images follow at once."""
    chain, inputs = CHAINS[name], unet_inputs()
    texts = [inputs["encoder_hidden_states"].clone() for _ in twins]
    optimizers = []
    for model, text in zip(twins, texts, strict=True):
        model.requires_grad_(True).train()
        optimizers.append(torch.optim.SGD([*model.parameters(), text.requires_grad_()], lr=0.5))
    if checkpointed:
        twins.model.enable_gradient_checkpointing()
    with attach(twins.model, chain) as attachment:
        for _ in range(3):
            for model, text, optimizer in zip(twins, texts, optimizers, strict=True):
                given = {**inputs, "encoder_hidden_states": text}
                if model is twins.model:
                    loss = output(model, given).square().mean()
                else:
                    with plain_hooks(model, chain):
                        loss = output(model, given).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            assert_same(texts[0], texts[1])
            with torch.no_grad():  # the optimizers round differently
                for one, other in zip(twins.model.parameters(), twins.bare.parameters(), strict=True):
                    assert_same(one, other)
                    other.copy_(one)
                texts[1].copy_(texts[0])
            for strength in (0.3, -0.5):
                attachment.set_strength(strength)
                for text in (texts[0], texts[0].detach(), inputs["encoder_hidden_states"]):
                    twins.check(at(chain, strength), {**inputs, "encoder_hidden_states": text})
            for position, (_, strength) in enumerate(chain):
                attachment.set_strength(strength, position)


@pytest.mark.parametrize("name", CHAINS)
def test_a_kept_text_takes_part_in_gradients(twins: Twins, name: str) -> None:
    """Calls without gradients come first, with the same text and the same weights."""
    chain, inputs = CHAINS[name], unet_inputs()
    with attach(twins.model, chain):
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                assert_matches(output(twins.model, inputs), twins.bare, chain, inputs)
        for model in twins:
            model.requires_grad_(True)
        with plain_hooks(twins.bare, chain):
            output(twins.bare, inputs).square().mean().backward()
        output(twins.model, inputs).square().mean().backward()
        assert_same_gradients(gradients(twins.model, {}), gradients(twins.bare, {}))
        twins.check(chain, inputs)


# Precision and modes of torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SOME)
def test_autocast_on_and_off(twins: Twins, name: str, dtype: torch.dtype) -> None:
    chain, inputs = CHAINS[name], unet_inputs()
    with attach(twins.model, chain) as attachment:
        for enabled in (False, True, True, False, True, False, False):
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=enabled):
                found = output(twins.model, inputs)
            check_autocast(found, twins.bare, chain, inputs, dtype if enabled else None)
        attachment.set_strength(0.3)
        with torch.no_grad(), torch.autocast("cpu", dtype):
            found = output(twins.model, inputs)
        check_autocast(found, twins.bare, at(chain, 0.3), inputs, dtype)


def check_autocast(
    found: Tensor, bare: nn.Module, chain: Chain, inputs: dict[str, Any], dtype: torch.dtype | None
) -> None:
    """Compare with plain hooks; under autocast, the error may be three times theirs."""
    if dtype is None:
        assert_matches(found, bare, chain, inputs)
        return
    with torch.no_grad(), plain_hooks(bare, chain):
        truth = output(bare, inputs)
        with torch.autocast("cpu", dtype):
            expected = output(bare, inputs)
    assert found.dtype == expected.dtype
    error, allowed = ((each.float() - truth).square().mean().sqrt() for each in (found, expected))
    assert error <= 3 * allowed, f"the error is {error / allowed:.2f} of that of plain hooks"


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", SOME)
def test_a_first_call_with_autocast(twins: Twins, name: str, fold: bool) -> None:
    """The folds and matrices of that call serve later calls without autocast."""
    chain, inputs = CHAINS[name], unet_inputs()
    with attach(twins.model, chain, fold=fold):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            output(twins.model, inputs)
        twins.check(chain, inputs)


@pytest.mark.parametrize("name", CHAINS)
def test_autocast_with_gradients(twins: Twins, name: str) -> None:
    chain, inputs = CHAINS[name], unet_inputs()
    for model in twins:
        model.requires_grad_(True)
    with plain_hooks(twins.bare, chain), torch.autocast("cpu", torch.bfloat16):
        output(twins.bare, inputs).square().mean().backward()
    with attach(twins.model, chain):
        twins.check(chain, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            output(twins.model, inputs).square().mean().backward()
        twins.check(chain, inputs)
    found, expected = gradients(twins.model, {}), gradients(twins.bare, {})
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 5e-2 * largest, name


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("attached_inside", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_inference_mode_and_back(twins: Twins, name: str, attached_inside: bool, made_inside: bool) -> None:
    chain = CHAINS[name]
    with torch.inference_mode(attached_inside):
        attachment = attach(twins.model, chain)
    with torch.inference_mode(made_inside):
        inputs = unet_inputs()  # in inference mode, tensors have no version
    for inference in (True, False, True, True, False):
        for strength in (0.8, 0.3):
            attachment.set_strength(strength)
            with torch.inference_mode(inference), torch.no_grad():
                assert_matches(output(twins.model, inputs), twins.bare, at(chain, strength), inputs)
        if inference or not made_inside:
            with torch.inference_mode(inference):
                inputs["encoder_hidden_states"].mul_(-0.9)
        with torch.inference_mode(inference):
            for model in twins:
                for parameter in model.parameters():
                    parameter.data.mul_(0.99)
    trained = unet_inputs()
    for model in twins:
        model.requires_grad_(True)
    with plain_hooks(twins.bare, at(chain, 0.3)):
        output(twins.bare, trained).square().mean().backward()
    output(twins.model, trained).square().mean().backward()
    assert_same_gradients(gradients(twins.model, {}), gradients(twins.bare, {}))
    attachment.detach()
    twins.check([], trained)


@pytest.mark.parametrize("name", CHAINS)
def test_a_model_from_inference_mode(name: str) -> None:
    """Its parameters have no version, so no edit in place can be seen there."""
    chain, inputs = CHAINS[name], unet_inputs()
    with torch.inference_mode():
        twins = Twins(make_small_unet())
        with attach(twins.model, chain):
            twins.check(chain, inputs)
            for model in twins:
                for parameter in model.parameters():
                    parameter.mul_(0.9)
            twins.check(chain, inputs)
            twins.check(chain, inputs)
        twins.check([], inputs)
