"""The explanation counts the work and the memory of plans."""

from __future__ import annotations

import pytest
import torch

from hnloader.attention import attach, find_sites
from hnloader.attention.counting import count_step
from hnloader.attention.model import attached_model
from tests.support.plan_models import AFFINE, RELU, folds
from tests.support.small_models import (
    WIDTHS,
    make_unet,
    run,
    unet_inputs,
)


@pytest.fixture
def unet():
    return make_unet("sd1")


def test_the_counts_of_a_step_match_a_run():
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    for kind in WIDTHS:
        unet = make_unet(kind)
        unet.set_attn_processor(AttnProcessor())  # the profiler counts its products one by one
        with FlopCounterMode(display=False) as counter:
            run(unet, kind)
        step = count_step(unet, 2, (16, 16), 7)
        assert step is not None
        assert step.multiply_adds == counter.get_total_flops() // 2


def test_the_counts_of_hypernetworks_match_a_run(unet):
    from torch.utils.flop_counter import FlopCounterMode, addmm_flop

    in_place = {torch.ops.aten.addmm_: lambda *shapes, **_: addmm_flop(*shapes[:3])}

    def counted_with(**options):
        with attach(unet, [AFFINE, RELU], **options) as attachment:
            inputs = unet_inputs()
            run(unet, **inputs)
            explanation = attachment.explain()
            with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
                run(unet, **inputs)
        return counter.get_total_flops() // 2, explanation

    with FlopCounterMode(display=False) as counter:
        run(unet)
    bare = counter.get_total_flops() // 2
    exact, explanation = counted_with(exact=True)
    assert explanation.total("multiply_adds") == explanation.total("multiply_adds_before") == exact - bare
    planned, explanation = counted_with()
    assert explanation.total("multiply_adds_before") == exact - bare
    assert explanation.total("multiply_adds") == planned - bare < exact - bare


def test_the_explanation_can_be_printed_and_stored(unet):
    import json

    with attach(unet, [RELU, AFFINE], 0.5, end=0.5) as attachment:
        explanation = attachment.explain(batch=4, size=(32, 16))
        text = str(explanation)
        assert "4 x 32 x 16 latents" in text
        assert "relu between the layers" in text
        stored = json.loads(json.dumps(explanation.to_dict()))
        assert len(stored["rows"]) == 40
        assert stored["totals"]["plans"] == {"live": 20, "cache": 20}
        assert 0 < stored["totals"]["share"] < stored["totals"]["share_before"] < 1
        assert stored["step"]["size"] == [32, 16]
    with pytest.raises(Exception, match="detached"):
        attachment.explain()


def test_memory_is_bounded_and_reported(unet):
    with attach(unet, AFFINE) as attachment:
        kept = sum(fold.bytes for fold in folds(unet))
        assert attachment.explain().total("kept_bytes") == kept
        projections = [getattr(s.module, n) for s in find_sites(unet) if s.kind == "self" for n in ("to_k", "to_v")]
        one_copy = sum((p.weight.numel() + len(p.weight)) * 4 for p in projections)
        assert kept == one_copy
        for strength in (0.5, 0.2, 0.001, -1):
            attachment.set_strength(strength)
            run(unet)
        assert sum(fold.bytes for fold in folds(unet)) == one_copy
    assert attached_model(unet) is None
