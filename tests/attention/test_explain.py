"""The explanation counts the work and the memory of plans."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hnloader.attention import attach, find_sites
from hnloader.attention.counting import count_decoder_step, count_step
from hnloader.attention.model import attached_model
from tests.support.plan_models import AFFINE, KINDS, RELU, folds
from tests.support.small_models import (
    TEXT_WIDTH,
    WIDTHS,
    make_hypernetwork,
    make_unet,
    run,
    unet_inputs,
)


@pytest.fixture
def unet():
    return make_unet("sd1")


def added(explanation):
    return sum(row.multiply_adds for row in explanation.rows)


def kept(explanation, kind):
    return sum(row.kept_bytes for row in explanation.rows if row.kind == kind)


def flops(unet, inputs):
    """Count the multiply-adds of a run."""
    from torch.utils.flop_counter import FlopCounterMode, addmm_flop

    in_place = {torch.ops.aten.addmm_: lambda *shapes, **_: addmm_flop(*shapes[:3])}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run(unet, **inputs)
    return counter.get_total_flops() // 2


def add_hooks(unet):
    for site in find_sites(unet):
        for name in ("to_k", "to_v", "to_qkv", "to_kv"):
            if hasattr(site.module, name):
                getattr(site.module, name).register_forward_hook(lambda *_: None)


def test_the_counts_of_a_step_match_a_run():
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    for kind in WIDTHS:
        unet = make_unet(kind)
        unet.set_attn_processor(AttnProcessor())  # the profiler counts its products one by one
        with FlopCounterMode(display=False) as counter:
            run(unet, kind)
        assert count_step(unet, 2, (16, 16), 7).multiply_adds == counter.get_total_flops() // 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("options", [{}, {"fold": False}, {"exact": True}])
def test_the_counts_of_hypernetworks_match_a_run(unet, fused, hooked, options):
    if fused:
        unet.fuse_qkv_projections()
    if hooked:
        add_hooks(unet)
    text = unet_inputs(seed=3)
    bare = flops(unet, text)
    for chain in ([AFFINE, RELU], [RELU, AFFINE], KINDS["narrow affine"]):
        with attach(unet, chain, **options) as attachment:
            run(unet)
            first, later = flops(unet, text), flops(unet, text)
            explanation = attachment.explain()
        assert added(explanation) == later - bare
        if not options.get("exact"):
            saved = sum(min(row.multiply_adds, 0) for row in explanation.rows)
            assert sum(row.multiply_adds_per_text for row in explanation.rows) == first - later + saved


def test_free_layers_add_nothing_and_kept_ones_save_their_own_product(unet):
    with attach(unet, AFFINE) as attachment:
        for row in attachment.explain().rows:
            assert (row.multiply_adds < 0) if row.kind == "cross" else row.multiply_adds == 0
        add_hooks(unet)
        for row in attachment.explain().rows:
            assert row.multiply_adds == 0 if row.kind == "cross" else row.multiply_adds > 0


def situations(kind, unet):
    """Yield attachments of many kinds."""
    widths = WIDTHS[kind]
    affine, relu = (make_hypernetwork(widths, activation=activation) for activation in (None, "relu"))
    norm = make_hypernetwork(widths[:2], activation="tanh", norm=True)
    up = f"up.{find_sites(unet)[-1].block[-1]}"
    yield attach(unet, affine)
    yield attach(unet, relu, exact=True)
    yield attach(unet, [(affine, {"up": 1}), (relu, {"mid": 0.5, up: 0.5}), (norm, 0.3)])
    yield attach(unet, [(affine, {"*": 0.2, "mid.self": 0}), (relu, {"cross": 1})], fold=False)
    next(iter(find_sites(unet))).module.to_k.register_forward_hook(lambda *_: None)
    unet.add_adapter(_lora())
    yield attach(unet, [affine, (norm, {up: 1})])


def _lora():
    import peft

    return peft.LoraConfig(r=2, target_modules=r"up_blocks.*to_v", init_lora_weights=False)


@pytest.mark.parametrize("kind", WIDTHS)
def test_the_text_fits_a_screen(kind):
    unet = make_unet(kind)
    for attachment in situations(kind, unet):
        with attachment:
            lines = str(attachment.explain()).splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 100


def test_layers_are_named_by_section_and_block(unet):
    with attach(unet, [(AFFINE, 1), (RELU, {"down": 1, "up.1": 1})]) as attachment:
        text = str(attachment.explain())
    assert "all 10 cross-attention layers: cache" in text
    assert "5 of 10 self-attention layers (down, up.1): live" in text
    assert "5 of 10 self-attention layers (mid, up.2, up.3): fold" in text


def test_one_side_is_named(unet):
    unet.add_adapter(_lora())
    with attach(unet, AFFINE) as attachment:
        text = str(attachment.explain())
    assert "the values of 6 of 10 self-attention layers (up): collapse" in text
    assert "peft Linear" in text


def test_the_explanation_can_be_printed_and_stored(unet):
    with attach(unet, [RELU, AFFINE], 0.5, end=0.5) as attachment:
        explanation = attachment.explain(batch=4, size=(32, 16))
        text = str(explanation)
        assert "4 x 32 x 16 latents" in text
        assert "relu between the layers" in text
        stored = json.loads(json.dumps(explanation.to_dict()))
        assert len(stored["rows"]) == 40
        totals = stored["totals"]
        assert totals["plans"] == {"live": 20, "cache": 20}
        assert totals["share"] == totals["multiply_adds"] / stored["step"]["multiply_adds"] > 0
        assert stored["step"]["size"] == [32, 16]
    with pytest.raises(Exception, match="detached"):
        attachment.explain()


def test_the_counts_of_an_unknown_layout_are_none(unet, monkeypatch):
    monkeypatch.setattr("hnloader.attention.counting._levels", lambda model: None)
    with attach(unet, RELU) as attachment:
        explanation = attachment.explain()
    totals = explanation.to_dict()["totals"]
    assert totals["multiply_adds"] is totals["share"] is None
    assert totals["kept_bytes"] > 0
    assert "relu" in str(explanation)


class SparseMoeBlock(nn.Module):
    """Experts as older transformers have them: a list of layers."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 6)
        self.experts = nn.ModuleList(nn.Linear(4, 8) for _ in range(6))


def test_of_a_list_of_experts_those_that_a_token_uses_count():
    decoder = SparseMoeBlock()
    assert count_decoder_step(decoder, 3, 5).multiply_adds is None  # it does not state how many
    decoder.config = SimpleNamespace(num_experts_per_tok=2)
    assert count_decoder_step(decoder, 3, 5).multiply_adds == 3 * 5 * (4 * 6 + 2 * 4 * 8)


def test_memory_is_bounded_and_reported(unet):
    with attach(unet, AFFINE) as attachment:
        reported = kept(attachment.explain(), "self")
        projections = [getattr(s.module, n) for s in find_sites(unet) if s.kind == "self" for n in ("to_k", "to_v")]
        one_copy = sum((p.weight.numel() + len(p.weight)) * 4 for p in projections)
        assert sum(fold.bytes for fold in folds(unet)) == reported == one_copy
        for strength in (0.5, 0.2, 0.001, -1):
            attachment.set_strength(strength)
            run(unet)
        assert sum(fold.bytes for fold in folds(unet)) == one_copy
    assert attached_model(unet) is None


@pytest.mark.parametrize("fused", [False, True])
def test_the_memory_of_texts_is_bounded_and_reported(unet, fused):
    if fused:
        unet.fuse_qkv_projections()
    texts = [torch.randn(2, 7, TEXT_WIDTH["sd1"]) for _ in range(6)]
    for shared in (RELU, KINDS["norm"]):
        shared.release()  # the copies that other tests left count, too
    with attach(unet, [RELU, KINDS["norm"]]) as attachment:
        for number, text in enumerate(texts, 1):
            run(unet, encoder_hidden_states=text)
            used = attached_model(unet).assembly().texts.bytes
            assert used == kept(attachment.explain(), "cross") * min(number, 4) // 4


def test_the_memory_of_a_fused_fold_is_that_of_its_whole_weight(unet):
    unet.fuse_qkv_projections()
    with attach(unet, AFFINE) as attachment:
        assert kept(attachment.explain(), "self") == sum(fold.bytes for fold in folds(unet))


def test_copies_of_a_file_in_another_dtype_are_reported(unet):
    half = make_hypernetwork(WIDTHS["sd1"]).half()
    with attach(unet, half) as attachment:
        before = kept(attachment.explain(), "self")
        run(unet)
        assert kept(attachment.explain(), "self") - before == 2 * sum(
            parameter.numel() * 4 for width in (20, 40, 80) for parameter in half.side(width, "k").parameters()
        )
