"""torch.compile: a compiled model must match the same model without compilation, in every order of changes.

Most tests use a backend that runs the traced graph unchanged, because errors are in the tracing. One slow test uses the
default compiler.
"""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch._dynamo

from hnloader.attention import Application, attach, attachments
from tests.support.small_models import (
    assert_same,
    assert_untouched,
    fingerprint,
    make_hypernetwork,
    make_small_unet,
    reference,
    run,
    unet_inputs,
)

WIDTHS = (20, 48)
HN = make_hypernetwork(WIDTHS)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that counts compilations."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph


def compile_module(unet, **options):
    return torch.compile(unet, **options)


def compile_in_place(unet, **options):
    unet.compile(**options)
    return unet


def compile_blocks(unet, **options):
    unet.compile_repeated_blocks(**options)
    return unet


def compile_function(unet, **options):
    return torch.compile(lambda **inputs: unet(**inputs), **options)


# fullgraph=True traces the same as fullgraph=False.
WAYS = {
    "torch.compile(unet, fullgraph=True)": (compile_module, True),
    "unet.compile(fullgraph=True)": (compile_in_place, True),
    "unet.compile_repeated_blocks(fullgraph=True)": (compile_blocks, True),
    "a compiled function": (compile_function, False),
}


# Tracing a whole UNet takes seconds; one block shows most mistakes.
SOME_SLOW = [pytest.param(way, marks=[] if "repeated" in way else pytest.mark.slow) for way in WAYS]


def expect(*applied):
    return run(reference(make_small_unet(), applied))


@pytest.mark.slow
@pytest.mark.parametrize("way", SOME_SLOW)
def test_attaching_changing_and_detaching_after_compilation(way):
    unet, graphs = make_small_unet(), Graphs()
    compiler, fullgraph = WAYS[way]
    compiled = compiler(unet, backend=graphs, fullgraph=fullgraph)
    plain = run(compiled)
    before = fingerprint(unet)
    for strength in (1.0, 0.4, -0.3):
        attachment = attach(unet, HN, strength)
        assert_same(run(compiled), expect((HN, strength, strength)))
        attachment.set_strength(0.7)
        assert_same(run(compiled), expect((HN, 0.7, 0.7)))
        attachment.detach()
        assert torch.equal(run(compiled), plain)
    assert_untouched(unet, before)


@pytest.mark.parametrize("way", SOME_SLOW)
def test_attaching_before_compilation(way):
    unet, graphs = make_small_unet(), Graphs()
    attachment = attach(unet, HN, 0.8)
    compiler, fullgraph = WAYS[way]
    compiled = compiler(unet, backend=graphs, fullgraph=fullgraph)
    assert_same(run(compiled), expect((HN, 0.8, 0.8)))
    attachment.detach()
    assert_same(run(compiled), expect())


@pytest.mark.slow
def test_many_strengths_are_compiled_once():
    unet, graphs = make_small_unet(), Graphs()
    compiled = torch.compile(unet, backend=graphs, fullgraph=True)
    run(compiled)
    with attach(compiled, HN, 0.9) as attachment:
        run(compiled)
        attachment.set_strength(0.8)
        run(compiled)
        before = graphs.count
        for strength in (0.75, 0.6, 0.5, 0.45, 0.35, 0.3, -0.25, 0.2, 1.5, 0.1):
            attachment.set_strength(strength)
            assert_same(run(compiled), expect((HN, strength, strength)))
        assert graphs.count == before
    run(compiled)
    with attach(compiled, HN, 0.55):
        assert_same(run(compiled), expect((HN, 0.55, 0.55)))
    assert graphs.count == before


@pytest.mark.slow
def test_several_attachments_on_a_compiled_model():
    unet = make_small_unet()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    one, two = make_hypernetwork((48,), 1), make_hypernetwork(WIDTHS, 2)
    first = attach(compiled, one, 0.5)
    assert_same(run(compiled), expect((one, 0.5, 0.5)))
    second = attach(compiled, two, {"cross": 0.8})  # layers without a hook during compilation
    crossing = reference(
        make_small_unet(), lambda name: [(one, 0.5, 0.5), (two, 0.8, 0.8)] if name.endswith("attn2") else []
    )
    assert_same(run(compiled), run(crossing))
    second.set_strength(0.8)
    assert_same(run(compiled), expect((one, 0.5, 0.5), (two, 0.8, 0.8)))
    first.detach()
    assert_same(run(compiled), expect((two, 0.8, 0.8)))
    second.detach()
    assert_same(run(compiled), expect())


@pytest.mark.slow
def test_windows_in_a_compiled_model():
    unet, graphs = make_small_unet(), Graphs()
    compiled = torch.compile(unet, backend=graphs, fullgraph=True)
    with attach(compiled, Application(HN, 0.8, start=0.3, end=0.7)):
        for _ in range(2):
            for timestep, applied in ((900, []), (500, [(HN, 0.8, 0.8)]), (100, [])):
                expected = run(reference(make_small_unet(), applied), timestep=torch.tensor(timestep))
                assert_same(run(compiled, timestep=torch.tensor(timestep)), expected)
    assert graphs.count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_half_precision_file_on_a_compiled_model_of_another_dtype(dtype):
    """The float32 copies exist before tracing."""
    hypernetwork = make_hypernetwork(WIDTHS).half()
    unet = make_small_unet()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    run(compiled)
    with attach(compiled, hypernetwork, 0.8):
        for _ in range(2):
            assert_same(run(compiled), expect((hypernetwork, 0.8, 0.8)))
            hypernetwork.release()


AFFINE = make_hypernetwork(WIDTHS, 4, activation=None)


def expect_exactly(*applied):
    unet = make_small_unet()
    with attach(unet, [(hypernetwork, strength) for hypernetwork, strength in applied], exact=True):
        return run(unet)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "fold"),
    [
        ("torch.compile(unet, fullgraph=True)", True),
        ("unet.compile_repeated_blocks(fullgraph=True)", True),
        ("unet.compile_repeated_blocks(fullgraph=True)", False),
    ],
)
def test_folding_in_a_compiled_model(way, fold):
    unet, graphs = make_small_unet(), Graphs()
    compiler, fullgraph = WAYS[way]
    compiled = compiler(unet, backend=graphs, fullgraph=fullgraph)
    plain = run(compiled)
    attachment = attach(unet, AFFINE, 1.0, fold=fold)
    assert_same(run(compiled), expect_exactly((AFFINE, 1.0)))
    attachment.set_strength(0.7)
    assert_same(run(compiled), expect_exactly((AFFINE, 0.7)))
    count = graphs.count
    for strength in (0.5, 0.4, -0.3):
        attachment.set_strength(strength)
        assert_same(run(compiled), expect_exactly((AFFINE, strength)))
    assert graphs.count == count
    with torch.no_grad():
        unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.to_k.weight.mul_(1.0)  # a new version
    assert_same(run(compiled), expect_exactly((AFFINE, -0.3)))
    with attach(unet, HN, 0.5):
        assert_same(run(compiled), expect_exactly((AFFINE, -0.3), (HN, 0.5)))
    attachment.detach()
    assert torch.equal(run(compiled), plain)


@pytest.mark.slow
def test_the_exact_path_in_a_compiled_model():
    unet = make_small_unet()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    with attach(unet, [HN, AFFINE], 0.6, exact=True) as attachment:
        assert_same(run(compiled), expect_exactly((HN, 0.6), (AFFINE, 0.6)))
        assert {row.plan for row in attachment.explain().rows} == {"exact"}


def add_lora(unet):
    torch.manual_seed(3)
    unet.add_adapter(peft.LoraConfig(r=3, target_modules=["to_k", "to_v"], init_lora_weights="gaussian"))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    unet.requires_grad_(False)
    return unet


@pytest.mark.slow
def test_lora_and_fusing_after_compilation():
    unet = make_small_unet()
    compiled = torch.compile(unet, backend="eager")
    run(compiled)
    with attach(compiled, HN, 0.8):
        expected = run(compiled)
        add_lora(unet)
        assert_same(run(compiled), run(reference(add_lora(make_small_unet()), [(HN, 0.8, 0.8)])))
        unet.unload_lora()
        assert_same(run(compiled), expected)
        unet.fuse_qkv_projections()
        assert_same(run(compiled), expected)
        unet.unfuse_qkv_projections()
        assert_same(run(compiled), expected)
    assert_same(run(compiled), expect())


@pytest.mark.slow
def test_a_deep_copy_of_a_compiled_model():
    unet = make_small_unet()
    unet.compile(backend="eager")
    attachment = attach(unet, HN, 0.8)
    expected = run(unet)
    twin = copy.deepcopy(unet)
    twin.compile(backend="eager")
    attachment.detach()
    assert_same(run(twin), expected)
    attachments(twin)[0].detach()
    assert_same(run(twin), expect())


@pytest.mark.slow
def test_gradient_checkpointing_in_a_compiled_model():
    found = []
    for compiled in (False, True):
        unet = make_small_unet().train().requires_grad_(True)
        unet.enable_gradient_checkpointing()
        if compiled:
            unet.compile(backend="aot_eager")
        with attach(unet, HN, 0.8):
            unet(**unet_inputs()).sample.square().mean().backward()
        found.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    for name, gradient in found[0].items():
        assert_same(found[1][name], gradient, 1e-4)


@pytest.mark.slow
def test_the_default_compiler():
    unet = make_small_unet()
    compiled = torch.compile(unet, fullgraph=True)
    assert_same(run(compiled), expect(), 3e-5)
    with attach(compiled, HN, 0.8) as attachment:
        assert_same(run(compiled), expect((HN, 0.8, 0.8)), 3e-5)
        for strength in (0.4, 0.2, -1.0):
            attachment.set_strength(strength)
            assert_same(run(compiled), expect((HN, strength, strength)), 3e-5)
    assert_same(run(compiled), expect(), 3e-5)
