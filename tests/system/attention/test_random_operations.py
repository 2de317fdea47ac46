"""Random operations on a model with hypernetworks; each call must match plain hooks on a bare twin.

`make test` runs some sequences, always the same. This runs as many others as you like:

    HNLOADER_SEQUENCES=5000 python -m pytest tests/system/attention/test_random_operations.py
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hnloader.attention import Attachment, AttentionSite, attach, attachments
from hnloader.network import Hypernetwork
from tests.support.miniature import TEXT_WIDTH, WIDTH, Miniature
from tests.support.model_calls import Held, assert_bare_layers, call, in_the_middle, once, without_middle
from tests.support.plain_hooks import Chain, assert_matches, expected_output, output, plain_hooks
from tests.support.small_models import make_hypernetwork

SEQUENCES = int(os.environ.get("HNLOADER_SEQUENCES", "0"))
HYPERNETWORKS = {
    "affine": make_hypernetwork((WIDTH, TEXT_WIDTH), 0, "affine", activation=None),
    "relu": make_hypernetwork((WIDTH, TEXT_WIDTH), 1, "relu"),
    "norm": make_hypernetwork((WIDTH, TEXT_WIDTH), 2, "norm", norm=True),
    "self": make_hypernetwork((WIDTH,), 3, "self", activation=None),
    "cross": make_hypernetwork((TEXT_WIDTH,), 4, "cross"),
}
LORA = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
TIMESTEPS = (900, 500, 100)
BATCHES, TOKENS = 2, 5

# Strengths with what they mean at a layer.
Strength = float | dict[str, float]
STRENGTHS: list[Strength] = [0.8, 0.3, -0.5, 0.0, {"cross": 0.6}, {"*": 0.2, "self": 0.0, "up": 0.7}]


def strength_at(strength: Strength, site: AttentionSite) -> float:
    """Return the strength at a layer: the more specific pattern wins."""
    if isinstance(strength, float):
        return strength
    found = [strength[pattern] for pattern in ("*", site.kind, site.section) if pattern in strength]
    return found[-1] if found else 0.0


@dataclass
class Entry:
    """A hypernetwork on the model, with its strength and window."""

    attachment: Attachment
    hypernetwork: Hypernetwork
    strength: Strength
    start: float
    end: float


def plain(module: Any) -> nn.Linear:
    """Return the Linear of a projection, also inside of a LoRA."""
    return getattr(module, "base_layer", module)


# What other programs do to a projection. These are classes so that they can be copied with the model.


class ScaledOutput:
    """A forward hook of another program."""

    def __call__(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result * 1.25


class ScaledInput:
    """A forward pre-hook of another program."""

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * 0.75,)


class Wrapped:
    """A forward of another program around that of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.original = module.forward

    def __call__(self, x: Tensor) -> Tensor:
        return self.original(x) * 1.25


def remove_hooks(module: nn.Module) -> None:
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(hook, (ScaledInput, ScaledOutput)):
                del hooks[key]


class FailureError(Exception):
    """An error inside a call."""


def fail(kind: type[BaseException]) -> None:
    raise kind


EDITS: dict[str, Callable[[nn.Module, str, nn.Parameter], object]] = {
    "in place": lambda module, name, p: p.mul_(0.9),
    "data": lambda module, name, p: p.data.mul_(-0.9),
    "a row of data": lambda module, name, p: p.data[:1].add_(0.3),
    "merged": lambda module, name, p: p.data.add_(torch.linspace(-0.2, 0.2, p.numel()).view_as(p).to(p)),
    "data replaced": lambda module, name, p: setattr(p, "data", p.data * 0.9),
    "replaced": lambda module, name, p: setattr(module, name, nn.Parameter(p * 0.9, requires_grad=p.requires_grad)),
}
TEXT_EDITS: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda text: text.mul_(0.9),
    "data": lambda text: text.data.mul_(-0.9),
    "one value of data": lambda text: text.data[0, 1, 2].add_(0.5),
    "numpy": lambda text: np.multiply(text.numpy(), 0.9, out=text.numpy()),
}
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda text: text,
    "a copy": lambda text: text.clone(),
    "one half": lambda text: text[:1],
    "the other half": lambda text: text[1:],
    "a few tokens": lambda text: text[:, 1:4],
    "concatenated": lambda text: torch.cat([text[:1], text[1:]]),
    "expanded": lambda text: text[:1].expand(BATCHES, -1, -1),
}
SITES = st.integers(0, 3)
SLOTS = st.sampled_from(["to_k", "to_v"])
TEXTS = st.tuples(st.integers(0, 1), st.sampled_from(sorted(VIEWS)), st.sampled_from(TIMESTEPS))


class Operations(RuleBasedStateMachine):
    """A model, its bare twin, and what is attached."""

    @initialize(name=st.sampled_from(sorted(HYPERNETWORKS)), given=TEXTS, hooked=st.booleans())
    def start(self, name, given, hooked) -> None:
        self.model = Miniature()
        self.bare = Miniature()
        self.entries: list[Entry] = []
        generator = torch.Generator().manual_seed(1)
        # Texts in memory of numpy, so that a new tensor can have an old address.
        self.memory = [torch.randn(BATCHES, TOKENS, TEXT_WIDTH, generator=generator).numpy() for _ in range(2)]
        self.texts = [torch.from_numpy(memory) for memory in self.memory]
        self.sample = torch.randn(BATCHES, 6, WIDTH, generator=generator)
        self.dtype = torch.float32
        self.lora = self.fused = self.recorded = self.quiet = False
        self.given, self.mode = given, torch.no_grad
        if hooked:
            self.add_a_pre_hook(0, "to_k")
            self.add_a_pre_hook(3, "to_v")
        self.attach(name, 0.8, (0.0, 1.0), {})

    def both(self) -> Iterator[Miniature]:
        yield self.model
        yield self.bare

    def projections(self, site: int, slot: str) -> Iterator[nn.Module]:
        for each in self.both():
            yield getattr(each.attention_layers()[site], slot)

    def inputs(self, given: tuple[int, str, int]) -> dict[str, Any]:
        index, view, timestep = given
        text = VIEWS[view](self.texts[index]).to(self.dtype)
        sample = self.sample[: len(text)].to(self.dtype)
        return {"sample": sample, "timestep": torch.tensor(timestep), "encoder_hidden_states": text}

    def chain(self, inputs: dict[str, Any]) -> Chain:
        place = 1 - float(inputs["timestep"]) / 1000
        return [
            (entry.hypernetwork, lambda site, value=entry.strength: strength_at(value, site))
            for entry in self.entries
            if (entry.start <= place or entry.start == 0) and place <= entry.end
        ]

    # Calls

    @rule(given=TEXTS, mode=st.sampled_from([torch.no_grad, torch.no_grad, torch.inference_mode, torch.enable_grad]))
    def go_on_with(self, given, mode) -> None:
        """Change what the next calls compute."""
        self.given, self.mode = given, mode

    @rule()
    def call_twice(self) -> None:
        inputs = self.inputs(self.given)
        found = [call(self.model, inputs) for _ in range(2)]
        self.recorded = False
        assert torch.equal(*found)
        assert_matches(found[0], self.bare, self.chain(inputs), inputs)

    @precondition(lambda self: self.dtype == torch.float32)
    @rule(given=TEXTS)
    def call_with_autocast(self, given) -> None:
        inputs = self.inputs(given)
        truth = expected_output(self.bare, self.chain(inputs), inputs)
        with torch.autocast("cpu", torch.bfloat16):
            found = call(self.model, inputs).float()
            expected = expected_output(self.bare, self.chain(inputs), inputs).float()
        self.recorded = False
        error, allowed = ((each - truth).square().mean().sqrt() for each in (found, expected))
        assert error <= 3 * allowed + 1e-2 * truth.square().mean().sqrt()

    @rule(given=TEXTS, strength=st.sampled_from(STRENGTHS))
    def call_inside_a_call(self, given, strength) -> None:
        inputs, inner = self.inputs(given), self.inputs((given[0], "a few tokens", 500))
        before = self.chain(inputs)

        def nested() -> None:
            self.change_all(strength)
            found = call(self.model, inner)
            assert_matches(found, self.bare, self.chain(inner), inner)

        with in_the_middle(self.model, once(nested)):
            found = call(self.model, inputs)
        self.recorded = False
        assert_matches(found, self.bare, before, inputs)

    @rule(given=TEXTS, other=TEXTS, strength=st.sampled_from(STRENGTHS))
    def call_in_two_threads(self, given, other, strength) -> None:
        inputs, inner = self.inputs(given), self.inputs(other)
        before = self.chain(inputs)
        with Held(self.model, inputs) as first:
            self.change_all(strength)
            found = call(self.model, inner)
            assert_matches(first.result(), self.bare, before, inputs)
        self.recorded = False
        assert_matches(found, self.bare, self.chain(inner), inner)

    @rule(given=TEXTS, kind=st.sampled_from([FailureError, KeyboardInterrupt]), early=st.booleans())
    def fail_inside_a_call(self, given, kind, early) -> None:
        layer = self.model.attention_layers()[2]
        handle = (layer if early else layer.to_out[0]).register_forward_pre_hook(lambda *_: fail(kind))
        try:
            with pytest.raises(kind):
                call(self.model, self.inputs(given))
        finally:
            handle.remove()
        # torch calls no hook after a KeyboardInterrupt, so the next call of the model clears its layers.
        self.recorded = kind is KeyboardInterrupt

    @rule(given=TEXTS, checkpointing=st.booleans(), strength=st.sampled_from(STRENGTHS), quiet=st.booleans())
    def train(self, given, checkpointing, strength, quiet) -> None:
        inputs = self.inputs(given)
        before = self.chain(inputs)
        found = []
        for each in self.both():
            # A disabled LoRA that is merged unmerges itself in its first forward, so the second one would differ.
            each.checkpointing = checkpointing and not self.lora
            each.requires_grad_(True)
            if each is self.bare:
                with plain_hooks(each, before):
                    output(each, inputs).square().mean().backward()
            else:
                loss = output(each, inputs).square().mean()
                self.change_all(strength)
                loss.backward()
            found.append({name: parameter.grad for name, parameter in each.named_parameters()})
            each.zero_grad()
            each.requires_grad_(False)
            each.checkpointing = False
        self.recorded, self.quiet = True, quiet
        largest = max(float(each.abs().max()) for each in found[1].values() if each is not None)
        for name, gradient in found[1].items():
            if gradient is None:
                assert found[0][name] is None, name
            else:
                bound = 1e-5 if self.dtype != torch.bfloat16 else 0.1
                assert (found[0][name] - gradient).abs().max() <= bound * largest, name

    # Attachments

    @precondition(lambda self: len(self.entries) < 3)
    @rule(
        name=st.sampled_from(sorted(HYPERNETWORKS)),
        strength=st.sampled_from(STRENGTHS),
        window=st.sampled_from([(0.0, 1.0), (0.0, 1.0), (0.0, 0.6), (0.4, 1.0)]),
        options=st.sampled_from([{}, {}, {"fold": False}, {"exact": True}]),
    )
    def attach(self, name, strength, window, options) -> None:
        hypernetwork, (start, end) = HYPERNETWORKS[name], window
        made = attach(self.model, hypernetwork, strength, start=start, end=end, **options)
        self.entries.append(Entry(made, hypernetwork, strength, start, end))

    @precondition(lambda self: self.entries)
    @rule(position=st.integers(0, 2))
    def detach(self, position) -> None:
        self.entries.pop(position % len(self.entries)).attachment.detach()
        if not self.entries:
            self.recorded = False

    @precondition(lambda self: self.entries)
    @rule(position=st.integers(0, 2), strength=st.sampled_from(STRENGTHS))
    def set_strength(self, position, strength) -> None:
        entry = self.entries[position % len(self.entries)]
        entry.attachment.set_strength(strength)
        entry.strength = strength

    def change_all(self, strength: Strength) -> None:
        for entry in self.entries:
            entry.attachment.set_strength(strength)
            entry.strength = strength

    @precondition(lambda self: self.entries)
    @rule()
    def refresh(self) -> None:
        self.entries[0].attachment.refresh()

    @rule(given=TEXTS, inside=st.booleans())
    def copy_the_model(self, given, inside) -> None:
        """Continue with the copy; the original must not notice."""
        inputs, copies = self.inputs(given), []
        if inside:
            with in_the_middle(self.model, once(lambda: copies.append(copy.deepcopy(self.model)))):
                call(self.model, inputs)
            self.recorded = False
        else:
            copies.append(copy.deepcopy(self.model))
        original, self.model = self.model, without_middle(copies[0])
        assert_bare_layers(self.model, self.bare)
        assert_matches(call(self.model, inputs), self.bare, self.chain(inputs), inputs)
        assert_matches(call(original, inputs), self.bare, self.chain(inputs), inputs)
        for entry, copied in zip(self.entries, attachments(self.model), strict=True):
            entry.attachment.detach()
            entry.attachment = copied
            entry.hypernetwork = copied.hypernetworks[0]
        assert_bare_layers(original, self.bare)
        self.recorded = False

    # Texts

    @rule(index=st.integers(0, 1), edit=st.sampled_from(sorted(TEXT_EDITS)))
    def edit_a_text(self, index, edit) -> None:
        TEXT_EDITS[edit](self.texts[index])

    @rule(index=st.integers(0, 1))
    def take_a_new_text_at_the_old_address(self, index) -> None:
        self.texts[index] = None
        self.memory[index] *= -1
        self.texts[index] = torch.from_numpy(self.memory[index])

    # Weights

    @rule(site=SITES, slot=SLOTS, name=st.sampled_from(["weight", "bias"]), edit=st.sampled_from(sorted(EDITS)))
    def edit_a_parameter(self, site, slot, name, edit) -> None:
        with torch.no_grad():
            for projection in self.projections(site, slot):
                found = getattr(plain(projection), name)
                if found is not None:
                    EDITS[edit](plain(projection), name, found)

    @precondition(lambda self: not self.lora)
    @rule(site=SITES, slot=SLOTS, bias=st.booleans())
    def replace_a_projection(self, site, slot, bias) -> None:
        for each in self.both():
            layer = each.attention_layers()[site]
            torch.manual_seed(7)
            new = nn.Linear(getattr(layer, slot).in_features, WIDTH, bias=bias, dtype=self.dtype)
            setattr(layer, slot, new.requires_grad_(False))

    @rule(assign=st.booleans())
    def load_a_state_dict(self, assign) -> None:
        for each in self.both():
            state = {name: tensor.clone() * 0.95 for name, tensor in each.state_dict().items()}
            each.load_state_dict(state, assign=assign)

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def cast(self, dtype) -> None:
        for each in self.both():
            each.to(dtype)
        self.dtype = dtype

    # diffusers drops a LoRA from fused projections.
    @precondition(lambda self: not self.lora and not self.fused)
    @rule()
    def load_a_lora(self) -> None:
        for each in self.both():
            torch.manual_seed(11)
            peft.inject_adapter_in_model(LORA, each)
            each.to(self.dtype).requires_grad_(False)
        self.lora = True

    @precondition(lambda self: self.lora)
    @rule(change=st.sampled_from(["merge", "unmerge", "scale", "disable", "enable", "edit"]))
    def change_the_lora(self, change) -> None:
        for each in self.both():
            for layer in each.modules():
                if isinstance(layer, LoraLayer):
                    if change == "edit":
                        layer.lora_B["default"].weight.data.mul_(-1)
                    elif change == "scale":
                        layer.scale_layer(0.5)
                    elif change == "merge" and not layer.merged:
                        layer.merge()
                    elif change == "unmerge" and layer.merged:
                        layer.unmerge()
                    elif change in ("disable", "enable"):
                        layer.enable_adapters(change == "enable")

    @precondition(lambda self: self.lora)
    @rule()
    def unload_the_lora(self) -> None:
        for each in self.both():
            recurse_remove_peft_layers(each)
            each.requires_grad_(False)
            del each.peft_config  # peft leaves it, and would warn about it the next time
        self.lora = False

    @precondition(lambda self: not self.lora and not self.fused)
    @rule()
    def fuse(self) -> None:
        for each in self.both():
            each.fuse()
            each.requires_grad_(False)
        self.fused = True

    @precondition(lambda self: self.fused)
    @rule()
    def unfuse(self) -> None:
        for each in self.both():
            each.unfuse()
        self.fused = False

    # Other programs

    @precondition(lambda self: not self.fused)
    @rule(processor=st.sampled_from([AttnProcessor, AttnProcessor2_0, lambda: SlicedAttnProcessor(1)]))
    def set_a_processor(self, processor) -> None:
        for each in self.both():
            for layer in each.attention_layers():
                layer.set_processor(processor())

    @rule(site=SITES, slot=SLOTS)
    def add_a_hook(self, site, slot) -> None:
        for projection in self.projections(site, slot):
            remove_hooks(projection)
            projection.register_forward_hook(ScaledOutput())

    # Pre-hooks from before and after attaching differ in their order; other tests have the latter.
    @precondition(lambda self: not self.entries)
    @rule(site=SITES, slot=SLOTS)
    def add_a_pre_hook(self, site, slot) -> None:
        for projection in self.projections(site, slot):
            remove_hooks(projection)
            projection.register_forward_pre_hook(ScaledInput())

    @rule(site=SITES, slot=SLOTS)
    def remove_the_hooks(self, site, slot) -> None:
        for projection in self.projections(site, slot):
            remove_hooks(projection)

    @rule(site=SITES, slot=SLOTS)
    def wrap_a_forward(self, site, slot) -> None:
        for projection in self.projections(site, slot):
            if not isinstance(vars(projection).get("forward"), Wrapped):
                projection.forward = Wrapped(projection)

    @rule(site=SITES, slot=SLOTS, delete=st.booleans())
    def unwrap_a_forward(self, site, slot, delete) -> None:
        for projection in self.projections(site, slot):
            wrapped = vars(projection).get("forward")
            if isinstance(wrapped, Wrapped) and delete:
                del projection.forward
            elif isinstance(wrapped, Wrapped):
                projection.forward = wrapped.original

    # What holds after each operation

    @invariant()
    def computes_what_plain_hooks_compute(self) -> None:
        if self.quiet:  # so that other operations follow a training step directly
            self.quiet = False
            return
        inputs = self.inputs(self.given)
        with self.mode():
            found = output(self.model, inputs)
            self.recorded = found.requires_grad
            assert_matches(found, self.bare, self.chain(inputs), inputs)

    @invariant()
    def carries_nothing_between_calls(self) -> None:
        assert attachments(self.model) == [entry.attachment for entry in self.entries]
        if not self.recorded:
            assert_bare_layers(self.model, self.bare)
        if not self.entries:
            assert not self.model._forward_pre_hooks and not self.model._forward_hooks

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        for entry in self.entries:
            entry.attachment.detach()
        assert_bare_layers(self.model, self.bare)
        assert not self.model._forward_pre_hooks and not self.model._forward_hooks
        inputs = self.inputs((0, "itself", 500))
        assert torch.equal(*(call(each, inputs) for each in self.both()))


Operations.TestCase.settings = settings(
    max_examples=SEQUENCES or 80,
    stateful_step_count=15,
    deadline=None,
    derandomize=not SEQUENCES,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
TestRandomOperations = Operations.TestCase
