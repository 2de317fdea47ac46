from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hnloader.attention import find_sites
from lab.benchmarks import _arithmetic, _files, _ways
from lab.benchmarks._files import Case
from tests.lab.benchmarks.subjects import tiny_subject

CASES = [
    _files.RELU,
    *(pytest.param(case, marks=pytest.mark.slow) for case in (_files.NORM, _files.LINEAR, _files.CROSS)),
    *(pytest.param(case, marks=pytest.mark.slow) for case in (_files.FIVE_RELU, _files.FIVE_LINEAR)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_all_ways_compute_the_same_output(case: Case) -> None:
    subject = tiny_subject()
    files = case.make(subject)
    assert len(files) == case.count
    outputs = {}
    for way in (_ways.ours_exact, _ways.ours, _ways.live_hooks, _ways.webui, _ways.bare):
        model = subject.copy()
        way(model, files)
        outputs[way] = subject.step(model)()
    bare = outputs.pop(_ways.bare)
    expected = outputs.pop(_ways.ours_exact)
    effect = (expected - bare).abs().max()
    assert effect > 0
    for output in outputs.values():
        assert (output - expected).abs().max() < 1e-2 * effect
    assert torch.equal(subject.step(subject.model)(), bare)


def test_copy_shares_everything_except_its_projections() -> None:
    subject = tiny_subject()
    copied = dict(subject.copy().named_parameters())
    own = {f"{site.name}.{part}.weight" for site in find_sites(subject.model) for part in ("to_k", "to_v")}
    for name, parameter in subject.model.named_parameters():
        assert (copied[name] is parameter) == (name not in own)
        assert torch.equal(copied[name], parameter)


def test_lora_is_on_every_projection() -> None:
    subject = tiny_subject()
    model = subject.copy()
    _ways.lora(model, ())
    assert all(site.module.to_k.r == {"default": _ways.LORA_RANK} for site in find_sites(model))
    assert not any("lora" in name for name, _ in subject.model.named_parameters())


@pytest.mark.parametrize("case", [_files.RELU, _files.NORM, _files.FIVE_LINEAR, _files.CROSS], ids=lambda c: c.title)
def test_multiply_adds_match_the_flop_counter(case: Case) -> None:
    subject = tiny_subject()
    files = case.make(subject)
    counts = []
    for way in (_ways.bare, _ways.live_hooks):
        model = subject.copy()
        way(model, files)
        with FlopCounterMode(display=False) as counter:
            subject.step(model)()
        counts.append(counter.get_total_flops())
    found = _arithmetic.of_step(subject, files)
    assert 2 * found.live == counts[1] - counts[0]
    assert (found.needed == 0) == (case in (_files.FIVE_LINEAR, _files.CROSS))
    assert found.needed < found.live


@pytest.mark.parametrize("case", [_files.NORM, _files.LINEAR, _files.CROSS], ids=lambda case: case.title)
def test_arithmetic_alone_has_the_products_that_are_needed(case: Case) -> None:
    subject = tiny_subject()
    files = case.make(subject)
    bare, model = subject.copy(), subject.copy()
    _ways.arithmetic(model, files)
    outputs, counts = [], []
    for each in (bare, model):
        step = subject.step(each)
        outputs.append(step())  # stores the keys and values of the text
        with FlopCounterMode(display=False) as counter:
            step()
        counts.append(counter.get_total_flops())
    assert torch.equal(*outputs)
    sites = [site.module for site in find_sites(subject.model) if site.kind == "cross"]
    text = subject.inputs["encoder_hidden_states"]
    projections = sum(2 * text.shape[:2].numel() * 2 * site.to_k.weight.numel() for site in sites)
    assert counts[1] == counts[0] - projections + 2 * _arithmetic.of_step(subject, files).needed


def test_every_step_has_another_timestep_and_text_on_request() -> None:
    subject = tiny_subject()
    calls: list[dict[str, object]] = []
    subject.model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    for new_text in (False, True):
        step = subject.step(subject.model, new_text=new_text)
        step()
        step()
    given, text = subject.inputs["encoder_hidden_states"], [call["encoder_hidden_states"] for call in calls]
    assert text[0] is given and text[1] is given
    assert text[2] is not text[3] and torch.equal(text[2], given) and torch.equal(text[3], given)
    assert calls[0]["timestep"] == calls[2]["timestep"] != calls[1]["timestep"]


def test_plans_by_kind_of_attention() -> None:
    subject = tiny_subject()
    attachment = _ways.ours(subject.model, _files.LINEAR.make(subject))
    subject.step(subject.model)()
    assert _ways.plans(attachment) == "self fold, cross cache"
    attachment.detach()
