"""Random sequences of operations on a model; after each, its output must match the reference."""

from __future__ import annotations

import peft
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hnloader.attention import attach, attachments, find_sites
from tests.support.small_models import (
    assert_same,
    fingerprint,
    make_hypernetwork,
    make_small_unet,
    moved,
    reference,
    run,
    unet_inputs,
)

HYPERNETWORKS = [
    make_hypernetwork((20, 48), 0),
    make_hypernetwork((48,), 1),
    make_hypernetwork((20,), 2),
    make_hypernetwork((20, 48), 3, activation=None),
    make_hypernetwork((20,), 4, activation=None),
]
STRENGTHS = st.sampled_from([0.0, 0.3, 0.8, 1.0, -0.5])
LORA = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian")


def small_unet(lora: bool = False):
    unet = make_small_unet()
    return add_lora(unet) if lora else unet


def add_lora(unet):
    torch.manual_seed(11)
    unet.add_adapter(LORA)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.05)
    return unet.requires_grad_(False)


class Operations(RuleBasedStateMachine):
    """The model under test, and a record of the operations on it."""

    @initialize()
    def start(self) -> None:
        self.unet = small_unet()
        self.before = fingerprint(self.unet)
        self.attached: list[list] = []  # [attachment, hypernetwork, strength]
        self.lora = self.fused = False
        self.dtype = torch.float32
        self.scale = 1.0

    @rule(hypernetwork=st.sampled_from(HYPERNETWORKS), strength=STRENGTHS)
    def attach(self, hypernetwork, strength) -> None:
        self.attached.append([attach(self.unet, hypernetwork, strength), hypernetwork, strength])

    @precondition(lambda self: self.attached)
    @rule(choice=st.randoms(use_true_random=False))
    def detach(self, choice) -> None:
        attachment, _, _ = self.attached.pop(choice.randrange(len(self.attached)))
        attachment.detach()

    @precondition(lambda self: self.attached)
    @rule(choice=st.randoms(use_true_random=False), strength=STRENGTHS)
    def set_strength(self, choice, strength) -> None:
        entry = choice.choice(self.attached)
        entry[0].set_strength(strength)
        entry[2] = strength

    # diffusers drops a LoRA from fused projections, so the test does not mix them.
    @precondition(lambda self: not self.lora and not self.fused)
    @rule()
    def fuse(self) -> None:
        self.unet.fuse_qkv_projections()
        self.fused = True

    @precondition(lambda self: self.fused)
    @rule()
    def unfuse(self) -> None:
        self.unet.unfuse_qkv_projections()
        self.fused = False

    @precondition(lambda self: not self.lora and not self.fused)
    @rule()
    def load_lora(self) -> None:
        add_lora(self.unet).to(self.dtype)
        self.lora = True

    @precondition(lambda self: self.lora)
    @rule()
    def unload_lora(self) -> None:
        self.unet.unload_lora()
        self.lora = False

    @precondition(lambda self: not self.fused)
    @rule(processor=st.sampled_from([AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(1)]))
    def set_processor(self, processor) -> None:
        self.unet.set_attn_processor(processor)

    @rule(dtype=st.sampled_from([torch.float32, torch.float64]))
    def convert(self, dtype) -> None:
        self.unet.to(dtype)
        self.dtype = dtype

    @rule()
    def save_and_load(self) -> None:
        self.unet.load_state_dict({name: tensor.clone() for name, tensor in self.unet.state_dict().items()})

    @precondition(lambda self: not self.lora and not self.fused)
    @rule(counted=st.booleans())
    def change_weights(self, counted) -> None:
        for projection in (find_sites(self.unet)[0].module.to_k, find_sites(self.unet)[1].module.to_v):
            with torch.no_grad():
                (projection.weight if counted else projection.weight.data).mul_(0.9)
        self.scale *= 0.9

    @invariant()
    def computes_what_the_reference_does(self) -> None:
        applied = [(hypernetwork, strength, strength) for _, hypernetwork, strength in self.attached]
        inputs = moved(unet_inputs(), self.dtype)
        assert attachments(self.unet) == [attachment for attachment, _, _ in self.attached]
        twin = small_unet(self.lora)
        for projection in (find_sites(twin)[0].module.to_k, find_sites(twin)[1].module.to_v):
            getattr(projection, "base_layer", projection).weight.mul_(self.scale)
        assert_same(run(self.unet, **inputs).float(), run(reference(twin, applied)))

    def teardown(self) -> None:
        if not hasattr(self, "unet"):
            return
        for attachment, _, _ in self.attached:
            attachment.detach()
        for module in self.unet.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert "forward" not in vars(module)
        if self.lora:
            self.unet.unload_lora()
        now = fingerprint(self.unet)["bytes"]
        scaled = [f"{find_sites(self.unet)[0].name}.to_k.weight", f"{find_sites(self.unet)[1].name}.to_v.weight"]
        for name, tensor in self.before["bytes"].items():
            if name in scaled:
                assert_same(now[name].float(), tensor * self.scale)
            else:
                assert torch.equal(now[name].float(), tensor)


Operations.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestRandomOperations = pytest.mark.slow(Operations.TestCase)
