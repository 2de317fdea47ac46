"""Folds follow strengths, windows and changes of the model."""

from __future__ import annotations

import copy
import threading

import peft
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import apply_group_offloading
from torch import nn

from hnloader.attention import Application, attach, attachments, find_sites
from hnloader.attention.assembly import MOST_CHANGES
from hnloader.attention.model import attached_model
from hnloader.network import Architecture
from tests.support.plan_models import AFFINE, KINDS, counted, exactly, folds, in_a_call, make, plans, projections
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


# Strengths and windows


@pytest.mark.parametrize("name", ["affine", "relu", "norm"])
def test_a_new_strength_in_every_step(unet, name):
    hypernetwork = KINDS[name]
    with attach(unet, hypernetwork, 1.0) as attachment:
        for strength in (0.9, 0.5, 0.01, 1.0, -0.3, 0.0, 0.4, 3.0, 0.4):
            attachment.set_strength(strength)
            assert_same(run(unet), exactly(hypernetwork, strength=strength))


def test_hundreds_of_strengths_do_not_drift(unet):
    with attach(unet, AFFINE, 1.0) as attachment:
        owner = attached_model(unet)
        for step in range(300):
            attachment.set_strength(0.55 + 0.45 * (-1) ** step * step / 300)
            owner.assembly()
        attachment.set_strength(0.7)
        assert_same(run(unet), exactly(AFFINE, strength=0.7))


def test_a_new_strength_copies_no_weight(unet):
    with attach(unet, AFFINE, 1.0) as attachment:
        run(unet)
        pointers = [fold.weight.data_ptr() for fold in folds(unet)]
        attachment.set_strength(0.5)
        run(unet)
        assert [fold.weight.data_ptr() for fold in folds(unet)] == pointers


def test_windows(unet):
    first, second = AFFINE, KINDS["deep affine"]
    given = [Application(first, 0.8, end=0.6), Application(second, 0.5, start=0.3)]
    with attach(unet, given):
        for timestep, chain in (
            (900, [(first, 0.8)]),
            (550, [(first, 0.8), (second, 0.5)]),
            (100, [(second, 0.5)]),
        ) * 2:
            expected = exactly(chain, timestep=torch.tensor(timestep))
            assert_same(run(unet, timestep=torch.tensor(timestep)), expected)


def test_a_window_that_opens_again_keeps_its_fold(unet):
    with attach(unet, AFFINE, 0.8, end=0.5):
        run(unet, timestep=torch.tensor(900))
        pointers = [fold.weight.data_ptr() for fold in folds(unet)]
        run(unet, timestep=torch.tensor(100))
        assert folds(unet) == []
        run(unet, timestep=torch.tensor(900))
        assert [fold.weight.data_ptr() for fold in folds(unet)] == pointers


# Changes of the model's weights


def weight_of(unet):
    return find_sites(unet)[0].module.to_k.weight


CHANGES = {
    "in place": lambda w: w.mul_(1.5),
    "data in place": lambda w: w.data.mul_(1.5),
    "data replaced": lambda w: setattr(w, "data", w.data * 1.5),
    "a slice of data": lambda w: w.data[:7].mul_(1.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_weights_are_folded_again(unet, name):
    twin = make_unet("sd1")
    with torch.no_grad():
        CHANGES[name](weight_of(twin))
    expected = exactly(AFFINE, unet=twin)
    with attach(unet, AFFINE) as attachment:
        run(unet)
        with torch.no_grad():
            CHANGES[name](weight_of(unet))
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"fold"}
    assert torch.equal(run(unet), run(twin))


def test_a_replaced_parameter_and_a_loaded_state(unet):
    twin = make_unet("sd1")
    with torch.no_grad():
        weight_of(twin).mul_(1.5)
    expected = exactly(AFFINE, unet=twin)
    for assign in (False, True):
        unet = make_unet("sd1")
        with attach(unet, AFFINE):
            run(unet)
            unet.load_state_dict(twin.state_dict(), assign=assign)
            assert_same(run(unet), expected)
    unet = make_unet("sd1")
    with attach(unet, AFFINE):
        run(unet)
        find_sites(unet)[0].module.to_k.weight = nn.Parameter(weight_of(twin).clone(), requires_grad=False)
        assert_same(run(unet), expected)


def test_a_weight_that_keeps_changing_goes_live(unet):
    with attach(unet, AFFINE) as attachment:
        for _ in range(MOST_CHANGES + 2):
            with torch.no_grad():
                weight_of(unet).mul_(1.01)
            run(unet)
        rows = [row for row in attachment.explain().rows if row.kind == "self"]
        assert (rows[0].plan, rows[1].plan) == ("collapse", "fold")
        assert "keeps changing" in rows[0].why
        with torch.no_grad():
            weight_of(unet).mul_(1.01)
        assert_same(run(unet), expected_of(unet))


def expected_of(unet):
    """Compute the exact path on a copy of the model without attachments."""
    twin = make_unet("sd1")
    twin.load_state_dict(unet.state_dict())
    return exactly(AFFINE, unet=twin)


def test_the_state_dict_has_the_original_weights(unet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with attach(unet, AFFINE):
        run(unet)
        for name, tensor in unet.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def add_lora(unet, seed=3):
    torch.manual_seed(seed)
    unet.add_adapter(peft.LoraConfig(r=3, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    return unet.requires_grad_(False)


def test_lora_before_after_unloaded_and_fused(unet):
    expected, with_lora = exactly(AFFINE), exactly(AFFINE, unet=add_lora(make_unet("sd1")))
    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected)
        add_lora(unet)
        assert_same(run(unet), with_lora)
        assert plans(attachment, "self") == {"collapse"}
        unet.fuse_lora()
        assert_same(run(unet), with_lora)
        unet.unfuse_lora()
        unet.unload_lora()
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"fold"}
    add_lora(unet)
    with attach(unet, AFFINE):
        assert_same(run(unet), with_lora)


def test_lora_merged_and_unloaded_between_two_calls(unet):
    """The projections are the same modules, with other values at the same version."""
    with attach(unet, AFFINE):
        run(unet)
        add_lora(unet)
        for site in find_sites(unet):
            for name in ("to_q", "to_k", "to_v"):
                wrapped = getattr(site.module, name)
                wrapped.merge()
                setattr(site.module, name, wrapped.base_layer)
        result = run(unet)
    assert_same(result, exactly(AFFINE, unet=add_lora(make_unet("sd1"))))


def test_hooks_of_other_programs_see_the_same_without_folds(unet):
    seen = []
    layer = find_sites(unet)[0].module.to_k
    with attach(unet, AFFINE):
        run(unet)
        handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        assert_same(run(unet), exactly(AFFINE))
        with_plan = seen.pop()
        handle.remove()
        assert_same(run(unet), exactly(AFFINE))
    with attach(unet, AFFINE, exact=True):
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        run(unet)
    assert_same(with_plan, seen.pop())
    run(unet)
    assert (with_plan - seen.pop()).abs().max() > 1e-2  # they see the changed context, not the model's own


class Quantized(nn.Linear):
    """A Linear whose forward does more than multiply by its weight, as in quantized layers."""

    def forward(self, x):
        return super().forward(x).mul(8).round().div(8)


def quantize(unet):
    for site in find_sites(unet):
        for name in ("to_k", "to_v"):
            getattr(site.module, name).__class__ = Quantized
    return unet


def test_quantized_projections_are_not_folded(unet):
    expected = exactly(AFFINE, unet=quantize(make_unet("sd1")))
    quantize(unet)
    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected, 2e-2)  # rounding to eighths may go either way
        assert plans(attachment, "self") == {"collapse"}
        assert "Quantized" in attachment.explain().rows[0].why


def test_a_replaced_forward_of_linear_is_called(unet, monkeypatch):
    """AUTOMATIC1111's webui puts LoRA into every Linear in this way."""
    original = nn.Linear.forward
    changed = {site.module.to_k for site in find_sites(unet)}

    def patched(self, x):
        return original(self, x) * (1.25 if self in changed else 1.0)

    expected = exactly(AFFINE)
    for when in ("before", "after"):
        with monkeypatch.context() as patch:
            if when == "before":
                patch.setattr(nn.Linear, "forward", patched)
            with attach(unet, AFFINE) as attachment:
                if when == "after":
                    run(unet)
                    patch.setattr(nn.Linear, "forward", patched)
                result = run(unet)
                assert plans(attachment, "self") == {"collapse"}
            with attach(unet, AFFINE, exact=True):
                assert_same(result, run(unet))
        assert (result - expected).abs().max() > 1e-3
        with attach(unet, AFFINE):
            assert_same(run(unet), expected)


def test_the_present_forward_of_the_class_is_called(unet, monkeypatch):
    """AUTOMATIC1111's webui does this: LoRA at its start, and in each sampling a cast of 8-bit weights around it."""
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: original(self, x))

    def cast(self, x):
        return original(self, x) if self.weight.dtype == x.dtype else nn.functional.linear(x, self.weight.to(x.dtype))

    projections = [getattr(site.module, name) for site in find_sites(unet) for name in ("to_k", "to_v")]
    for projection in projections:
        projection.to(torch.float8_e4m3fn).to(torch.float32)  # rounded already
    expected = exactly(AFFINE, unet=unet)
    for projection in projections:
        projection.to(torch.float8_e4m3fn)
    with attach(unet, AFFINE, fold=False):
        with monkeypatch.context() as sampling:
            sampling.setattr(nn.Linear, "forward", cast)
            assert_same(run(unet), expected)
        twin = copy.deepcopy(unet)
    with monkeypatch.context() as sampling:
        sampling.setattr(nn.Linear, "forward", cast)
        assert_same(run(twin), expected)
        assert (run(unet) - expected).abs().max() > 1e-3


def test_weights_stored_in_eight_bits(unet):
    def cast(unet):
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        return unet

    with attach(cast(make_unet("sd1")), AFFINE, exact=True) as attachment:
        expected = run(attachment._joined().model)
    with attach(unet, AFFINE) as attachment:
        run(unet)
        cast(unet)
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"collapse"}
    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"collapse"}


def test_autocast_turned_on_and_off(unet, monkeypatch):
    inputs = unet_inputs()
    for name in ("affine", "relu"):
        with attach(unet, KINDS[name]):
            calls = counted(monkeypatch)
            for _ in range(2):
                assert_same(run(unet, **inputs), exactly(KINDS[name]))
                with torch.autocast("cpu", torch.bfloat16):
                    for _ in range(2):
                        result = run(unet, **inputs)
                assert_same(result.float(), exactly(KINDS[name]), 5e-2)
            assert len(calls) == 2 * 4  # k and v, after each switch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("name", ["affine", "relu", "norm and dropout"])
def test_other_dtypes_before_and_after(unet, dtype, tolerance, name):
    """The error against float32 is at most twice the error of the exact path."""
    inputs = moved(unet_inputs(), dtype)
    truth = exactly(KINDS[name]).double()
    expected = exactly(KINDS[name], unet=make_unet("sd1").to(dtype), **inputs).double()
    allowed = max(3 * float((expected - truth).square().mean().sqrt()), 1e-5 * float(truth.abs().max()))
    with attach(unet, KINDS[name]):
        run(unet)
        unet.to(dtype)
        result = run(unet, **inputs)
        assert result.dtype == dtype
        assert_same(result.double(), truth, tolerance)
        assert float((result.double() - truth).square().mean().sqrt()) <= allowed
        unet.to(torch.float32)
        run(unet)
    unet = make_unet("sd1").to(dtype)
    with attach(unet, KINDS[name]):
        assert_same(run(unet, **inputs).double(), truth, tolerance)
    KINDS[name].release()


def test_half_precision_is_computed_in_half_precision_unless_it_overflows():
    contexts = torch.randn(4, 300, 48).half()
    unet = make_unet("sd1").half()
    tame, wild = make(Architecture((1, 2, 1), "relu"), 1), make(Architecture((1, 2, 1), "relu"), 2)
    with torch.no_grad():
        for side in ("k", "v"):
            wild.side(48, side).linear[0].weight.mul_(1e5)
            wild.side(48, side).linear[2].weight.mul_(1e-5)
    for hypernetwork, dtype in ((tame, torch.float16), (wild, torch.float32)):
        with attach(unet, hypernetwork), torch.no_grad():
            layer = next(site.module for site in find_sites(unet) if site.width == 48)
            expected = layer.to_k(hypernetwork.transform("k", contexts, 1.0))
            sample = torch.zeros(1, 4, 8, 8).half()
            found = in_a_call(unet, lambda: layer.to_k(contexts), sample)  # noqa: B023
            assert found.isfinite().all()
            assert_same(found.float(), expected.float(), 4e-3)
            (plan,) = next(each.plans for each in projections(unet) if each.module is layer.to_k)
            assert set(plan.stages[0]._dtypes.values()) == {dtype}


@pytest.mark.parametrize("way", ["sequential", "model", "group"])
def test_offloading(unet, way):
    expected = exactly(AFFINE)

    def offload():
        if way == "sequential":
            cpu_offload(unet, execution_device="cpu")
        elif way == "model":
            cpu_offload_with_hook(unet, execution_device="cpu")
        else:
            cpu = torch.device("cpu")
            apply_group_offloading(unet, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")

    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected)
        offload()
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"collapse"}
        assert "offloaded" in attachment.explain().rows[0].why
    plain = run(make_unet("sd1"))
    assert_same(run(unet), plain)
    with attach(unet, AFFINE):
        assert_same(run(unet), expected)
    if way == "sequential":
        with attach(unet, AFFINE) as attachment:
            remove_hook_from_submodules(unet)
            assert_same(run(unet), expected)
    assert_same(run(unet), plain)


# Copies, saving, threads


def test_copies_fold_for_themselves(unet):
    expected, other = exactly(AFFINE), exactly(AFFINE, strength=0.3)
    attachment = attach(unet, AFFINE)
    run(unet)
    twin = copy.deepcopy(unet)
    attachments(twin)[0].set_strength(0.3)
    assert_same(run(twin), other)
    assert plans(attachments(twin)[0], "self") == {"fold"}
    assert_same(run(unet), expected)
    attachment.detach()
    assert_same(run(twin), other)
    attachments(twin)[0].detach()
    assert torch.equal(run(twin), run(unet))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_two_pipelines_on_one_model_at_once(unet, name):
    """Different prompts, batches and seeds; each result must match a separate run."""
    inputs = [unet_inputs(batch=1 + index % 2, seed=index) for index in range(4)]
    with attach(unet, KINDS[name], 0.8, exact=True):
        expected = [run(unet, **each) for each in inputs]
    errors: list[BaseException] = []

    def generate(index: int) -> None:
        try:
            for _ in range(6):
                assert_same(run(unet, **inputs[index]), expected[index])
        except BaseException as error:
            errors.append(error)

    with attach(unet, KINDS[name], 0.8):
        threads = [threading.Thread(target=generate, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_inference_mode_and_back(unet):
    for name in ("affine", "relu"):
        expected = exactly(KINDS[name])
        inputs = unet_inputs()
        with torch.inference_mode(), attach(unet, KINDS[name]) as attachment:
            assert_same(unet(**inputs).sample, expected)
            attachment.set_strength(0.5)
            unet(**inputs)
            attachment.set_strength(1.0)
            assert_same(unet(**inputs).sample, expected)
            kept = attachments(unet)
        assert kept
        with attach(unet, KINDS[name]):
            with torch.inference_mode():
                unet(**inputs)
            trained = unet_inputs()["sample"].requires_grad_()
            unet(**{**inputs, "sample": trained}).sample.sum().backward()  # kept results have no gradients
            assert trained.grad is not None
