"""Kept results follow contexts, parameters and modes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hnloader.attention import attach, find_sites
from hnloader.attention.text_cache import TextCache
from hnloader.errors import HypernetworkError
from tests.support.plan_models import AFFINE, ALL, KINDS, RELU, counted, exactly, folds, plans
from tests.support.small_models import (
    assert_same,
    make_unet,
    moved,
    run,
    unet_inputs,
)


@pytest.fixture
def unet():
    return make_unet("sd1")


# Kept results


def test_a_text_is_computed_once_for_all_layers_and_steps(unet, monkeypatch):
    calls = counted(monkeypatch)
    inputs = unet_inputs()
    with attach(unet, RELU):
        for timestep in (900, 500, 100):
            run(unet, **{**inputs, "timestep": torch.tensor(timestep)})
        assert len(calls) == 2  # k and v
        run(unet, **unet_inputs(seed=5))
        assert len(calls) == 4
        run(unet, **inputs)
        assert len(calls) == 4  # the result of the first prompt is kept


@pytest.mark.parametrize("inference", [False, True])
def test_a_context_changed_in_place_is_computed_again(unet, inference):
    with torch.inference_mode(inference):
        inputs = unet_inputs()
        context = inputs["encoder_hidden_states"]

        def replaced():
            context.data = context * 0.5

        with attach(unet, RELU):
            for change in (lambda: None, lambda: context.mul_(-1.1), lambda: context[:, 3].zero_(), replaced):
                change()
                result = unet(**inputs).sample.clone()
                assert_same(result, exactly(RELU, encoder_hidden_states=context.clone()))


# Changes that torch does not count

HIDDEN_CHANGES = {
    "hypernetwork, data": lambda hypernetwork, unet, context: [p.data.mul_(0.5) for p in hypernetwork.parameters()],
    "hypernetwork, numpy": lambda hypernetwork, unet, context: [
        p.numpy().__imul__(0.5) for p in hypernetwork.parameters()
    ],
    "hypernetwork, one side": lambda hypernetwork, unet, context: [
        p.data.mul_(0.5) for p in hypernetwork.side(48, "v").parameters()
    ],
    "hypernetwork, biases": lambda hypernetwork, unet, context: [
        p.data.add_(0.5) for p in hypernetwork.parameters() if p.ndim == 1
    ],
    "text, data": lambda hypernetwork, unet, context: context.data.mul_(2),
    "text, numpy": lambda hypernetwork, unet, context: context.numpy().__imul__(2),
    "text, one value": lambda hypernetwork, unet, context: context.data[0, 2, 3].add_(5),
    "model, data": lambda hypernetwork, unet, context: [p.data.mul_(1.1) for p in unet.parameters()],
    "model, one row": lambda hypernetwork, unet, context: find_sites(unet)[0].module.to_k.weight.data[5].add_(1),
}


@pytest.mark.parametrize("change", HIDDEN_CHANGES)
@pytest.mark.parametrize("name", ["affine", "relu"])
@pytest.mark.parametrize("inference", [False, True])
def test_changes_that_torch_does_not_count_are_noticed_on_the_cpu(unet, name, change, inference):
    hypernetwork, inputs = copy.deepcopy(KINDS[name]), unet_inputs()
    with torch.inference_mode(inference), attach(unet, hypernetwork, 0.7):
        before = run(unet, **inputs)
        for _ in range(2):
            HIDDEN_CHANGES[change](hypernetwork, unet, inputs["encoder_hidden_states"])
            found = run(unet, **inputs)
            assert (found - before).abs().max() > 1e-3
            assert_same(found, exactly(copy.deepcopy(hypernetwork), unet=copy_of(unet), strength=0.7, **inputs))


def copy_of(unet):
    """Copy the weights into a model without attachments."""
    twin = make_unet("sd1")
    twin.load_state_dict(unet.state_dict())
    return twin


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_in_half_precision_follow_uncounted_changes(unet, dtype):
    unet.to(dtype)
    hypernetwork, inputs = copy.deepcopy(RELU), moved(unet_inputs(), dtype)
    with attach(unet, hypernetwork):
        run(unet, **inputs)
        for parameter in hypernetwork.parameters():
            parameter.data.mul_(0.3)
        found = run(unet, **inputs)
    expected = exactly(copy.deepcopy(hypernetwork), unet=unet, **inputs)
    assert_same(found.float(), expected.float(), 0.01 if dtype == torch.float16 else 0.05)


def test_an_uncounted_change_of_a_bias_is_noticed(unet):
    layer = find_sites(unet)[0].module
    with torch.no_grad():
        layer.to_v = nn.Linear(20, 20).requires_grad_(False)
    with attach(unet, AFFINE):
        before = run(unet)
        layer.to_v.bias.data.add_(1)
        found = run(unet)
        assert folds(unet)
    assert (found - before).abs().max() > 1e-3
    assert_same(found, exactly(AFFINE, unet=unet))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_changes_of_a_hypernetwork_from_inference_mode_are_noticed(unet, name):
    with torch.inference_mode():
        hypernetwork = copy.deepcopy(KINDS[name])
        for parameter in hypernetwork.parameters():
            parameter.data = parameter.data.clone()
    with torch.no_grad(), attach(unet, hypernetwork):
        assert_same(run(unet), exactly(KINDS[name]))
        with torch.inference_mode():
            for parameter in hypernetwork.parameters():
                parameter.data.mul_(0.5)
        found = run(unet)
        assert_same(found, exactly(copy.deepcopy(hypernetwork)))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_a_replaced_module_of_a_hypernetwork_is_noticed(unet, name):
    hypernetwork = copy.deepcopy(KINDS[name])
    with attach(unet, hypernetwork):
        for module in (nn.Tanh(), nn.Identity(), nn.Linear(96, 96).requires_grad_(False), nn.ReLU()):
            run(unet)
            for side in "kv":
                layers = hypernetwork.side(48, side).linear
                if name == "relu":
                    layers[1] = copy.deepcopy(module)
                else:
                    layers.append(nn.Linear(48, 48).requires_grad_(False))
            assert_same(run(unet), exactly(copy.deepcopy(hypernetwork)))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_refresh_applies_changes_that_are_not_noticed(unet, name):
    """One value of a large tensor is between the compared places."""
    hypernetwork, inputs = copy.deepcopy(KINDS[name]), unet_inputs()
    with attach(unet, hypernetwork) as attachment:
        before = run(unet, **inputs)
        for width in ALL:
            for side in "kv":
                hypernetwork.side(width, side).linear[0].weight.data[1, :7].add_(3)
        attachment.refresh()
        found = run(unet, **inputs)
        assert (found - before).abs().max() > 1e-3
        assert_same(found, exactly(copy.deepcopy(hypernetwork)))
    with pytest.raises(HypernetworkError, match="detached"):
        attachment.refresh()


def test_refresh_computes_once(unet, monkeypatch):
    inputs = unet_inputs()
    with attach(unet, [RELU, AFFINE]) as attachment:
        run(unet, **inputs)
        calls = counted(monkeypatch)
        for refreshed in (False, True, False):
            if refreshed:
                attachment.refresh()
            run(unet, **inputs)
        assert len(calls) == 2


def test_values_are_compared_once_for_each_call(unet, monkeypatch):
    compared = []
    original = torch.equal
    inputs = unet_inputs()
    with attach(unet, RELU):
        run(unet, **inputs)
        text = inputs["encoder_hidden_states"]
        monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(b is text) or original(a, b))
        for calls in (1, 2):
            run(unet, **inputs)
            assert sum(compared) == calls


def test_a_changed_result_is_not_used_again(unet):
    inputs = unet_inputs()
    layer = find_sites(unet)[1].module
    with attach(unet, RELU):
        run(unet, **inputs)
        handle = layer.to_k.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
        run(unet, **inputs)
        handle.remove()
        assert_same(run(unet, **inputs), exactly(RELU))


def test_batches_prompts_and_lengths_may_change(unet):
    with attach(unet, RELU):
        for batch, seed in ((2, 1), (1, 1), (3, 2), (2, 1)):
            inputs = unet_inputs(batch=batch, seed=seed)
            assert_same(run(unet, **inputs), exactly(RELU, **inputs))
        inputs = {**unet_inputs(), "encoder_hidden_states": torch.randn(2, 11, 48)}
        assert_same(run(unet, **inputs), exactly(RELU, **inputs))


def test_a_text_at_the_address_of_a_freed_one_is_another():
    """Tensors at the same address, one after the other, have separate results."""
    cache = TextCache(1)
    for value in range(200):
        cache.begin(keep=True)
        context = torch.full((2, 3), float(value))
        text = cache.find(context)
        assert text.results == [None]
        text.results[0] = context * 2
        assert cache.find(context).results[0] is text.results[0]
        del context, text
        cache.end()
    cache.begin(keep=True)
    cache.end()
    assert len(cache) == 0


def test_kept_results_are_bounded_and_leave_after_their_texts():
    cache = TextCache(1)
    contexts = [torch.randn(2, 3) for _ in range(20)]
    cache.begin(keep=True)
    for context in contexts:
        cache.find(context)
    cache.end()
    assert len(cache) == TextCache.LIMIT
    contexts.clear()
    del context
    for _ in range(2):
        cache.begin(keep=True)
        cache.end()
    assert len(cache) == 0


def test_changed_parameters_of_a_hypernetwork_are_noticed(unet):
    for name in ("affine", "relu"):
        hypernetwork = copy.deepcopy(KINDS[name])
        inputs = unet_inputs()
        with attach(unet, hypernetwork):
            run(unet, **inputs)
            with torch.no_grad():
                for parameter in hypernetwork.parameters():
                    parameter.mul_(0.7)
            assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork)))
            hypernetwork.double()
            assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork)))


# Gradients


def test_gradients_of_contexts_and_weights(unet):
    for hypernetwork in (AFFINE, RELU):
        found = []
        for exact in (True, False):
            twin = make_unet("sd1").requires_grad_(True)
            inputs = unet_inputs()
            inputs["encoder_hidden_states"].requires_grad_()
            with attach(twin, hypernetwork, exact=exact):
                run(twin, **{k: v.detach() for k, v in inputs.items()})  # makes kept results and folds
                twin(**inputs).sample.square().mean().backward()
            found.append([inputs["encoder_hidden_states"].grad, *(p.grad for p in twin.parameters())])
        for expected, gradient in zip(*found, strict=True):
            assert_same(gradient, expected, 1e-4)


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_a_hypernetwork_in_training_is_neither_folded_nor_kept(unet, name):
    hypernetwork = copy.deepcopy(KINDS[name]).requires_grad_(True)
    inputs = unet_inputs()
    optimizer = torch.optim.SGD(hypernetwork.parameters(), 0.05)
    with attach(unet, hypernetwork) as attachment:
        for _ in range(2):
            optimizer.zero_grad()
            unet(**inputs).sample.square().mean().backward()
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in hypernetwork.parameters())
            optimizer.step()
            assert plans(attachment) == {"exact"}
            assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork).requires_grad_(False)))
        hypernetwork.requires_grad_(False)
        assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork)))
        assert "exact" not in plans(attachment)
