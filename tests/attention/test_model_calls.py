"""Calls of a model at the same time, inside each other and with errors, and the model between its calls."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnloader.attention import Attachment, attach, attachments, find_sites
from tests.support.model_calls import Held, assert_bare_layers, call, in_the_middle, layers_of, once, without_middle
from tests.support.plain_hooks import CHAINS, Chain, Twins, assert_matches, expected_output, output
from tests.support.small_models import assert_same, make_small_unet, run, unet_inputs

SOME = ("affine", "chain")
INPUTS = unet_inputs()
OTHER = unet_inputs(seed=2)


@pytest.fixture
def twins() -> Twins:
    return Twins(make_small_unet())


def at(chain: Chain, strength: float) -> Chain:
    return [(hypernetwork, strength) for hypernetwork, _ in chain]


# Between calls


@pytest.mark.parametrize("name", CHAINS)
def test_layers_are_bare_between_calls(twins: Twins, name: str) -> None:
    parameters = [(name, id(each), each.data_ptr()) for name, each in twins.model.named_parameters()]
    with attach(twins.model, CHAINS[name]) as attachment:
        assert_bare_layers(*twins)
        for strength in (0.8, 0.3, 0.0, -1.0):
            attachment.set_strength(strength)
            assert_bare_layers(*twins)
            twins.check(at(CHAINS[name], strength), INPUTS)
            assert_bare_layers(*twins)
        with torch.inference_mode():
            output(twins.model, INPUTS)
        assert_bare_layers(*twins)
    assert_bare_layers(*twins)
    assert not twins.model._forward_pre_hooks and not twins.model._forward_hooks
    assert parameters == [(name, id(each), each.data_ptr()) for name, each in twins.model.named_parameters()]


@pytest.mark.parametrize("name", CHAINS)
def test_a_layer_that_is_called_alone_is_bare(twins: Twins, name: str) -> None:
    context = torch.randn(2, 5, 20)
    with attach(twins.model, CHAINS[name]):
        for _ in range(2):
            assert torch.equal(*(find_sites(each)[0].module.to_k(context) for each in twins))
            assert torch.equal(*(find_sites(each)[0].module(context) for each in twins))
            call(twins.model, INPUTS)


@pytest.mark.parametrize("name", CHAINS)
def test_the_parameters_are_the_users_inside_a_call(twins: Twins, name: str) -> None:
    found = []

    def look() -> None:
        for (key, own), other in zip(twins.model.state_dict().items(), twins.bare.state_dict().values(), strict=True):
            found.append(key)
            assert torch.equal(own, other), key

    with attach(twins.model, CHAINS[name]), in_the_middle(twins.model, look):
        call(twins.model, INPUTS)
    assert found


def test_a_call_with_gradients_leaves_nothing_after_the_next(twins: Twins) -> None:
    for chain in CHAINS.values():
        with attach(twins.model, chain):
            text = INPUTS["encoder_hidden_states"].clone().requires_grad_()
            output(twins.model, {**INPUTS, "encoder_hidden_states": text})
            twins.check(chain, INPUTS)
            assert_bare_layers(*twins)
            output(twins.model, {**INPUTS, "encoder_hidden_states": text})
        assert_bare_layers(*twins)


# Threads


@pytest.mark.parametrize("same_text", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_a_thread_keeps_its_strength_while_another_calls(twins: Twins, name: str, same_text: bool) -> None:
    model, chain, other = twins.model, CHAINS[name], INPUTS if same_text else OTHER
    with attach(model, at(chain, 0.8)) as attachment:
        for _ in range(2):
            attachment.set_strength(0.8)
            with Held(model, INPUTS) as first:
                for strength in (0.3, 0.0, -0.5):
                    attachment.set_strength(strength)
                    twins.check(at(chain, strength), other)
                assert_matches(first.result(), twins.bare, at(chain, 0.8), INPUTS)
            twins.check(at(chain, -0.5), other)
            assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_calls_of_two_threads_that_overlap(twins: Twins, name: str) -> None:
    """The call that began first ends while the other is in its middle."""
    model, chain = twins.model, CHAINS[name]
    with attach(model, at(chain, 0.8)) as attachment:
        for inputs in (INPUTS, OTHER):
            attachment.set_strength(0.8)
            with Held(model, INPUTS) as first:
                attachment.set_strength(0.3)
                with Held(model, inputs) as second:
                    assert_matches(first.result(), twins.bare, at(chain, 0.8), INPUTS)
                    attachment.set_strength(0.5)
                    twins.check(at(chain, 0.5), OTHER)
                    assert_matches(second.result(), twins.bare, at(chain, 0.3), inputs)
        twins.check(at(chain, 0.5), OTHER)
        assert_bare_layers(*twins)
    assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_an_exception_in_one_thread_leaves_the_other_right(twins: Twins, name: str) -> None:
    model, chain = twins.model, CHAINS[name]
    with attach(model, at(chain, 0.8)) as attachment, Held(model, INPUTS) as first:
        attachment.set_strength(0.3)
        with pytest.raises(RuntimeError):
            call(model, {**INPUTS, "encoder_hidden_states": torch.randn(2, 7, 5)})
        twins.check(at(chain, 0.3), OTHER)
        assert_matches(first.result(), twins.bare, at(chain, 0.8), INPUTS)
        twins.check(at(chain, 0.3), OTHER)
    assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_weights_that_change_while_a_thread_is_in_a_call(twins: Twins, name: str) -> None:
    """The other thread's calls use the new weights."""
    model, chain = twins.model, CHAINS[name]
    with attach(model, chain), Held(model, INPUTS) as first:
        for each in twins:
            for site in find_sites(each):
                site.module.to_k.weight.data.mul_(1.3)
        twins.check(chain, INPUTS)
        first.result()
        twins.check(chain, INPUTS)
    assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_attaching_and_detaching_while_a_thread_is_in_a_call(twins: Twins, name: str) -> None:
    model, chain = twins.model, CHAINS[name]
    first = attach(model, chain)
    with Held(model, INPUTS) as running:
        second = attach(model, at(CHAINS["affine"], 0.4))
        twins.check([*chain, *at(CHAINS["affine"], 0.4)], INPUTS)
        first.detach()
        twins.check(at(CHAINS["affine"], 0.4), INPUTS)
        second.detach()
        twins.check([], INPUTS)
        assert running.result().isfinite().all()
    assert_bare_layers(*twins)
    assert torch.equal(*(call(each, INPUTS) for each in twins))
    with Held(model, INPUTS) as running, attach(model, chain):
        twins.check(chain, INPUTS)
        assert_same(running.result(), call(twins.bare, INPUTS))
        twins.check(chain, INPUTS)
    assert_bare_layers(*twins)


def test_many_threads_with_changing_strengths(twins: Twins) -> None:
    """Each result is that of one of the strengths, entirely."""
    model, chain, strengths = twins.model, CHAINS["chain"], (0.2, 0.8, -0.5)
    inputs = [unet_inputs(seed=seed) for seed in range(4)]
    expected = [[expected_output(twins.bare, at(chain, each), given) for each in strengths] for given in inputs]
    done = threading.Event()

    def generate(index: int) -> set[int]:
        seen = set()
        for _ in range(40):
            found = call(model, inputs[index])
            errors = [float((found - each).abs().max() / each.abs().max()) for each in expected[index]]
            assert min(errors) <= 1e-5, errors
            seen.add(errors.index(min(errors)))
        return seen

    def churn(attachment: Attachment) -> None:
        while not done.is_set():
            for strength in strengths:
                attachment.set_strength(strength)
                done.wait(0.003)

    with attach(model, at(chain, 0.2)) as attachment, ThreadPoolExecutor(5) as pool:
        churning = pool.submit(churn, attachment)
        futures = [pool.submit(generate, index) for index in range(4)]
        try:
            for future in futures:
                future.result(120)
        finally:
            done.set()
        churning.result(60)
        assert_bare_layers(*twins)
    assert_bare_layers(*twins)


def test_two_models_in_two_threads() -> None:
    pair = [Twins(make_small_unet()) for _ in range(2)]
    chains = [at(CHAINS["chain"], 0.8), at(CHAINS["chain"], -0.4)]
    with attach(pair[0].model, chains[0]), attach(pair[1].model, chains[1]), ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lambda i=i: [pair[i].check(chains[i], INPUTS) for _ in range(10)]) for i in range(2)]
        for future in futures:
            future.result(120)


# Calls inside calls


@pytest.mark.parametrize("same_text", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_a_call_inside_a_call(twins: Twins, name: str, same_text: bool) -> None:
    model, chain, other = twins.model, CHAINS[name], INPUTS if same_text else OTHER
    with attach(model, at(chain, 0.8)) as attachment:
        for _ in range(2):
            attachment.set_strength(0.8)

            def nested() -> None:
                attachment.set_strength(0.3)
                assert_matches(call(model, other), twins.bare, at(chain, 0.3), other)

            with in_the_middle(model, once(nested)):
                found = call(model, INPUTS)
            assert_matches(found, twins.bare, at(chain, 0.8), INPUTS)
            twins.check(at(chain, 0.3), INPUTS)
            assert_bare_layers(*twins)


def test_an_exception_in_a_call_inside_a_call(twins: Twins) -> None:
    model, chain = twins.model, CHAINS["chain"]

    def nested() -> None:
        with pytest.raises(RuntimeError):
            call(model, {**INPUTS, "encoder_hidden_states": torch.randn(2, 7, 5)})

    with attach(model, chain):
        with in_the_middle(model, once(nested)):
            found = call(model, INPUTS)
        assert_matches(found, twins.bare, chain, INPUTS)
        assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_a_strength_set_inside_a_call_acts_in_the_next(twins: Twins, name: str) -> None:
    model, chain = twins.model, CHAINS[name]
    with attach(model, at(chain, 0.8)) as attachment:
        for before, after in ((0.8, 0.3), (0.3, {"cross": 0.5})):
            with in_the_middle(model, once(lambda after=after: attachment.set_strength(after))):
                found = call(model, INPUTS)
            assert_matches(found, twins.bare, at(chain, before), INPUTS)
        by_kind = [(each, lambda site: 0.5 if site.kind == "cross" else 0.0) for each, _ in chain]
        twins.check(by_kind, INPUTS)


@pytest.mark.parametrize("name", CHAINS)
def test_refreshing_inside_a_call(twins: Twins, name: str) -> None:
    with attach(twins.model, CHAINS[name]) as attachment:
        for _ in range(2):
            with in_the_middle(twins.model, once(attachment.refresh)):
                twins.check(CHAINS[name], INPUTS)
        assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_attaching_and_detaching_inside_a_call(twins: Twins, name: str) -> None:
    """The call itself ends without an error; the next call is right."""
    model, chain = twins.model, CHAINS[name]
    attached: list[Attachment] = []
    with in_the_middle(model, once(lambda: attached.append(attach(model, chain)))):
        assert_same(call(model, INPUTS), call(twins.bare, INPUTS))
    twins.check(chain, INPUTS)
    with in_the_middle(model, once(lambda: attached.append(attach(model, at(chain, 0.3))))):
        assert_matches(call(model, INPUTS), twins.bare, chain, INPUTS)
    twins.check([*chain, *at(chain, 0.3)], INPUTS)
    with in_the_middle(model, once(attached[0].detach)):
        assert call(model, INPUTS).isfinite().all()
    twins.check(at(chain, 0.3), INPUTS)
    assert_bare_layers(*twins)
    with in_the_middle(model, once(attached[1].detach)):
        assert call(model, INPUTS).isfinite().all()
    assert_bare_layers(*twins)
    assert torch.equal(*(call(each, INPUTS) for each in twins))

    def replace() -> None:
        for each in attachments(model):
            each.detach()
        attached.append(attach(model, at(chain, -0.4)))

    attach(model, chain)
    with in_the_middle(model, once(replace)):
        assert call(model, INPUTS).isfinite().all()
    assert_bare_layers(*twins)
    twins.check(at(chain, -0.4), INPUTS)
    attached[-1].detach()
    assert_bare_layers(*twins)


@pytest.mark.parametrize("where", ["before", "after"])
def test_detaching_in_hooks_of_the_model(twins: Twins, where: str) -> None:
    """Hooks of the same model run next to those of hnloader."""
    model, chain = twins.model, CHAINS["chain"]
    register = model.register_forward_pre_hook if where == "before" else model.register_forward_hook
    for early in (True, False):
        attached: list[Attachment] = []
        action = once(lambda attached=attached: attached[0].detach())
        if early:
            handle = register(lambda *_, action=action: action())
        attached.append(attach(model, chain))
        if not early:
            handle = register(lambda *_, action=action: action())
        assert call(model, INPUTS).isfinite().all()
        handle.remove()
        assert_bare_layers(*twins)
        assert torch.equal(*(call(each, INPUTS) for each in twins))


# Windows


@pytest.mark.parametrize("name", CHAINS)
def test_a_window_of_pipelines_that_alternate(twins: Twins, name: str) -> None:
    """One pipeline is in the window, the other is not."""
    chain = CHAINS[name]
    with attach(twins.model, [*CHAINS["relu"]]), attach(twins.model, chain[0][0], 0.7, end=0.5):
        for step in range(4):
            for start, inputs in ((900, INPUTS), (300, OTHER)):
                links = [*CHAINS["relu"], *([(chain[0][0], 0.7)] if start == 900 else [])]
                twins.check(links, {**inputs, "timestep": torch.tensor(start - 10 * step)})
                assert_bare_layers(*twins)


@pytest.mark.parametrize("name", CHAINS)
def test_a_window_of_two_threads(twins: Twins, name: str) -> None:
    hypernetwork = CHAINS[name][0][0]
    early, late = ({**INPUTS, "timestep": torch.tensor(timestep)} for timestep in (900, 100))
    with attach(twins.model, hypernetwork, 0.7, end=0.5):
        for first, second in ((early, late), (late, early)):
            with Held(twins.model, first) as running:
                twins.check([(hypernetwork, 0.7)] if second is early else [], second)
                links = [(hypernetwork, 0.7)] if first is early else []
                assert_matches(running.result(), twins.bare, links, first)


# Exceptions


def interrupt() -> None:
    raise KeyboardInterrupt


def leave() -> None:
    raise SystemExit(3)


def fail() -> None:
    raise RuntimeError("out of memory, for example")


@pytest.mark.parametrize("action", [fail, interrupt, leave])
@pytest.mark.parametrize("where", ["block", "to_k", "to_v of the last", "before the model", "after the model"])
@pytest.mark.parametrize("name", SOME)
def test_an_exception_inside_a_call(twins: Twins, name: str, where: str, action: Callable[[], None]) -> None:
    model, chain = twins.model, CHAINS[name]
    sites = find_sites(model)
    modules = {"block": sites[2].module, "to_k": sites[1].module.to_k, "to_v of the last": sites[-1].module.to_v}
    with attach(model, chain) as attachment:
        for _ in range(2):
            twins.check(chain, INPUTS)
            if where == "after the model":
                handle = model.register_forward_hook(lambda *_: action())
            else:
                handle = modules.get(where, model).register_forward_pre_hook(lambda *_: action())
            with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
                call(model, INPUTS)
            handle.remove()
            if action is fail:  # torch calls no hook after the others, so the next call clears the layers
                assert_bare_layers(*twins)
            assert_bare_layers(copy.deepcopy(model), twins.bare)
            twins.check(chain, INPUTS)
            assert_bare_layers(*twins)
            attachment.set_strength(0.3)
            twins.check(at(chain, 0.3), INPUTS)
            attachment.set_strength(chain[0][1])
            chain = at(chain, chain[0][1])
    assert_bare_layers(*twins)
    assert torch.equal(*(call(each, INPUTS) for each in twins))


@pytest.mark.parametrize("action", [fail, interrupt])
def test_detaching_after_an_exception(twins: Twins, action: Callable[[], None]) -> None:
    with (
        pytest.raises((RuntimeError, KeyboardInterrupt)),
        attach(twins.model, CHAINS["chain"]),
        in_the_middle(twins.model, action),
    ):
        call(twins.model, INPUTS)
    assert_bare_layers(*twins)
    assert torch.equal(*(call(each, INPUTS) for each in twins))


# Copies


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}
PARTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to_k": lambda unet: find_sites(unet)[0].module.to_k,
    "to_v of the text": lambda unet: find_sites(unet)[3].module.to_v,
    "attention": lambda unet: find_sites(unet)[1].module,
    "block": lambda unet: unet.up_blocks[0],
}
MOMENTS = ["between calls", "inside a call", "after an exception", "after gradients"]


def outputs_of(module: nn.Module) -> list[Tensor]:
    """Return the outputs of all Linear modules."""
    linears = [each for each in module.modules() if isinstance(each, nn.Linear)]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        return [each(torch.randn(2, 3, each.in_features, generator=generator)) for each in linears]


def assert_bare_part(copied: nn.Module, pristine: nn.Module) -> None:
    assert layers_of(nn.ModuleList([copied])) == layers_of(nn.ModuleList([pristine]))
    for found, expected in zip(outputs_of(copied), outputs_of(pristine), strict=True):
        assert torch.equal(found, expected)


def at_the_moment(model: nn.Module, moment: str, take: Callable[[], object]) -> None:
    """Take a copy between calls, inside a call, or after a special call."""
    text = INPUTS["encoder_hidden_states"].clone()
    if moment == "inside a call":
        with in_the_middle(model, once(take)):
            call(model, INPUTS)
        return
    call(model, INPUTS)
    if moment == "after gradients":
        output(model, {**INPUTS, "encoder_hidden_states": text.requires_grad_()})
    elif moment == "after an exception":
        with pytest.raises(RuntimeError):
            call(model, {**INPUTS, "encoder_hidden_states": torch.randn(2, 7, 5)})
    take()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("way", "part"),
    # A shallow copy of an attention layer has the same projections.
    [(way, part) for way in WAYS for part in PARTS if way != "copy" or part.startswith("to_")],
)
def test_copied_parts_carry_nothing(twins: Twins, way: str, part: str, moment: str) -> None:
    model, pristine = twins.model, PARTS[part](twins.bare)
    for chain in (CHAINS["affine"], CHAINS["chain"]):
        copies: list[nn.Module] = []
        with attach(model, chain):
            at_the_moment(model, moment, lambda: copies.append(WAYS[way](PARTS[part](model))))  # noqa: B023
            assert_bare_part(without_middle(copies[0]), pristine)
            twins.check(chain, INPUTS)
        assert_bare_part(copies[0], pristine)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", SOME)
def test_a_copied_model_has_its_own_attachments(twins: Twins, name: str, way: str, moment: str) -> None:
    model, chain = twins.model, CHAINS[name]
    copies: list[nn.Module] = []
    with attach(model, at(chain, 0.8)):
        at_the_moment(model, moment, lambda: copies.append(WAYS[way](model)))
        twin = without_middle(copies[0])
        if moment != "after gradients":
            assert_bare_layers(model, twins.bare)
        assert_bare_layers(twin, twins.bare)
        assert_matches(call(twin, INPUTS), twins.bare, at(chain, 0.8), INPUTS)
        attachments(twin)[0].set_strength(0.3)
        assert_matches(call(twin, INPUTS), twins.bare, at(chain, 0.3), INPUTS)
        twins.check(at(chain, 0.8), INPUTS)
    assert_matches(call(twin, INPUTS), twins.bare, at(chain, 0.3), INPUTS)
    attachments(twin)[0].detach()
    assert_bare_layers(twin, twins.bare)
    assert torch.equal(call(twin, INPUTS), call(twins.bare, INPUTS))


# Memory


def live_tensors() -> dict[int, int]:
    """Return the sizes of the storages of all tensors, by their addresses."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), Tensor) and each.device.type != "meta":
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_detaching_frees_everything_that_was_kept(name: str, inference: bool) -> None:
    model, chain = make_small_unet(), copy.deepcopy(CHAINS[name])
    run(model)
    before = live_tensors()
    attachment = attach(model, chain)
    for seed in range(3):
        with torch.inference_mode(inference), torch.no_grad():
            output(model, unet_inputs(seed=seed))
            output(model, INPUTS)
    attachment.detach()
    for hypernetwork, _ in chain:
        hypernetwork.release()
    assert live_tensors() == before


@pytest.mark.parametrize("name", CHAINS)
def test_new_strengths_keep_no_more_than_the_first(name: str) -> None:
    model = make_small_unet()
    with attach(model, CHAINS[name]) as attachment:
        sizes = []
        for _ in range(3):
            for strength in (0.3, 0.0, 0.5, 0.7, 0.9):
                attachment.set_strength(strength)
                run(model)
            sizes.append(sum(live_tensors().values()))
        assert sizes[1] == sizes[2]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_texts_are_not_kept_alive(name: str, inference: bool) -> None:
    model = make_small_unet()
    with attach(model, CHAINS[name]), torch.inference_mode(inference):
        texts = []
        for seed in range(6):
            inputs = unet_inputs(seed=seed)
            texts.append(weakref.ref(inputs["encoder_hidden_states"]))
            call(model, inputs)
            call(model, inputs)
            del inputs
        gc.collect()
        assert [text() for text in texts] == [None] * 6


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_kept_of_texts_is_bounded(name: str) -> None:
    model = make_small_unet()
    with attach(model, CHAINS[name]):
        texts = [unet_inputs(seed=seed) for seed in range(40)]
        for inputs in texts[:8]:
            call(model, inputs)
        before = sum(live_tensors().values())
        for inputs in texts[8:]:
            call(model, inputs)
        assert sum(live_tensors().values()) <= before
        texts.clear()
        del inputs
        call(model, INPUTS)
        assert sum(live_tensors().values()) < before
