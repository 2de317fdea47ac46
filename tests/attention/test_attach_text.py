"""Texts that change, alternate or come in new tensors while hypernetworks are attached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from hnloader.attention import attach
from tests.support.plain_hooks import CHAINS, Twins, output
from tests.support.small_models import make_small_unet, unet_inputs


@pytest.fixture
def twins() -> Twins:
    return Twins(make_small_unet())


def inputs_with(text: Tensor, **changes: object) -> dict[str, object]:
    return {**unet_inputs(batch=len(text)), "encoder_hidden_states": text, **changes}


def a_text(seed: int, batch: int = 2, tokens: int = 7) -> Tensor:
    return torch.randn(batch, tokens, 48, generator=torch.Generator().manual_seed(seed))


def swap_data(text: Tensor) -> None:
    text.data = a_text(90)


EDITS = {
    "in place": lambda text: text.mul_(1.5),
    "one token": lambda text: text[1, 3].add_(1),
    "one value": lambda text: text[1, 3, 5].add_(3),
    "through data": lambda text: text.data.mul_(1.5),
    "one value through data": lambda text: text.data[1, 3, 5].add_(3),
    "through numpy": lambda text: np.add(text.numpy(), 1, out=text.numpy()),
    "copied into": lambda text: text.copy_(a_text(90)),
    "as an out argument": lambda text: torch.add(a_text(90), 0, out=text),
    "other data": swap_data,
    "another storage": lambda text: text.set_(a_text(90)),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ["affine", "chain"])
def test_a_text_that_is_edited(twins: Twins, name: str, edit: str, inference: bool) -> None:
    with attach(twins.model, CHAINS[name]), torch.inference_mode(inference):
        text = a_text(1)  # in inference mode, it has no version
        for _ in range(2):
            twins.check(CHAINS[name], inputs_with(text))
            EDITS[edit](text)
            twins.check(CHAINS[name], inputs_with(text))


@pytest.mark.parametrize("name", CHAINS)
def test_a_new_text_at_an_old_address(twins: Twins, name: str) -> None:
    """Neither the address, the version nor the id of the tensor tells the texts apart."""
    memory = a_text(1).numpy()
    addresses = set()
    with attach(twins.model, CHAINS[name]):
        for seed in range(1, 5):
            memory[:] = a_text(seed).numpy()
            text = torch.from_numpy(memory)
            addresses.add((text.data_ptr(), text._version))
            twins.check(CHAINS[name], inputs_with(text))
            del text
    assert len(addresses) == 1


@pytest.mark.parametrize("name", CHAINS)
def test_texts_of_a_scheduled_prompt_alternate(twins: Twins, name: str) -> None:
    texts = [a_text(seed) for seed in range(7)]
    with attach(twins.model, CHAINS[name]):
        for index in (0, 1, 0, 1, 0, 2, 3, 4, 5, 6, 0, 6, 1):
            twins.check(CHAINS[name], inputs_with(texts[index]))
        texts[1].add_(0.5)
        for index in (0, 1, 0, 1):
            twins.check(CHAINS[name], inputs_with(texts[index]))


@pytest.mark.parametrize("name", CHAINS)
def test_a_text_that_each_step_concatenates(twins: Twins, name: str) -> None:
    empty, prompt = a_text(1, batch=1), a_text(2, batch=1)
    with attach(twins.model, CHAINS[name]):
        first = twins.check(CHAINS[name], inputs_with(torch.cat([empty, prompt])))
        for _ in range(3):
            assert torch.equal(twins.check(CHAINS[name], inputs_with(torch.cat([empty, prompt]))), first)
        prompt.mul_(-1)
        twins.check(CHAINS[name], inputs_with(torch.cat([empty, prompt])))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("views", [False, True])
def test_halves_of_guidance_in_two_calls(twins: Twins, name: str, views: bool) -> None:
    both = a_text(1)
    halves = [both[:1], both[1:]] if views else [both[:1].clone(), both[1:].clone()]
    with attach(twins.model, CHAINS[name]):
        for step in range(4):
            for half in halves:
                twins.check(CHAINS[name], inputs_with(half, timestep=torch.tensor(900 - step)))
        both.mul_(0.5)  # also changes the views, not the copies
        for half in (*halves, both[:1], both[1:], both):
            twins.check(CHAINS[name], inputs_with(half))


@pytest.mark.parametrize("name", CHAINS)
def test_views_of_one_text(twins: Twins, name: str) -> None:
    """Views share the version of their base, and some share its address."""
    text = a_text(1, batch=4, tokens=14)
    views = {
        "all": text,
        "first tokens": text[:, :7],
        "every second token": text[:, ::2],
        "first texts": text[:2],
        "the first text twice": text[:1].expand(2, -1, -1),
        "reversed": text.flip(0),
        "transposed": text.transpose(0, 1),
        "the same again": text.view_as(text),
        "detached": text.detach(),
    }
    with attach(twins.model, CHAINS[name]):
        for _ in range(2):
            for view in views.values():
                twins.check(CHAINS[name], inputs_with(view))
        text.mul_(-0.7)
        for view in views.values():
            twins.check(CHAINS[name], inputs_with(view))


@pytest.mark.parametrize("name", CHAINS)
def test_texts_of_other_lengths_and_batches(twins: Twins, name: str) -> None:
    texts = [a_text(1), a_text(2, batch=1), a_text(3, tokens=3), a_text(4, batch=3, tokens=1)]
    with attach(twins.model, CHAINS[name]):
        for text in (*texts, *reversed(texts)):
            twins.check(CHAINS[name], inputs_with(text))


class EditingProcessor:
    """An attention processor that changes the keys and values that it receives, in place."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        keys, values = attn.to_k(context), attn.to_v(context)
        keys.mul_(2)
        values.add_(0.5)
        keys, values = attn.head_to_batch_dim(keys), attn.head_to_batch_dim(values)
        attended = attn.batch_to_head_dim(attn.get_attention_scores(query, keys) @ values)
        return attn.to_out[0](attended)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_a_processor_that_edits_keys_and_values(twins: Twins, name: str, inference: bool) -> None:
    for each in twins:
        each.set_attn_processor(EditingProcessor())
    text = a_text(1)
    with attach(twins.model, CHAINS[name]), torch.inference_mode(inference):
        for _ in range(4):
            twins.check(CHAINS[name], inputs_with(text))


@pytest.mark.parametrize("name", CHAINS)
def test_a_processor_that_edits_in_some_steps(twins: Twins, name: str) -> None:
    text = a_text(1)
    with attach(twins.model, CHAINS[name]):
        for processor in (AttnProcessor2_0, AttnProcessor2_0, EditingProcessor, EditingProcessor) * 2:
            for each in twins:
                each.set_attn_processor(processor())
            twins.check(CHAINS[name], inputs_with(text))


def test_a_text_with_other_numbers_of_values_than_the_hypernetwork_holds(twins: Twins) -> None:
    """An error inside the call leaves the next call right."""
    with attach(twins.model, CHAINS["relu"]):
        twins.check(CHAINS["relu"], inputs_with(a_text(1)))
        with pytest.raises(RuntimeError), torch.no_grad():
            output(twins.model, inputs_with(torch.randn(2, 7, 11)))
        twins.check(CHAINS["relu"], inputs_with(a_text(1)))
