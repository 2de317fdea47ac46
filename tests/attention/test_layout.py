from __future__ import annotations

import pytest
import torch
from diffusers import UNetMotionModel

from hnloader.attention import find_sites
from hnloader.attention.layout import unet_of
from tests.support.small_models import TEXT_WIDTH, WIDTHS, make_controlnet, make_text_encoder, make_unet, make_vae, run
from tests.support.standins import unets


@pytest.mark.parametrize("kind", WIDTHS)
def test_every_attention_layer_of_the_transformer_blocks_is_found(kind):
    unet = make_unet(kind)
    sites = find_sites(unet)
    layers = [name for name, module in unet.named_modules() if type(module).__name__ == "Attention"]
    assert {site.name for site in sites} == set(layers)
    assert [site.index for site in sites] == list(range(len(sites)))
    for site in sites:
        assert site.module is unet.get_submodule(site.name)
        assert site.kind == ("self" if site.name.endswith("attn1") else "cross")
        assert site.width == site.module.to_k.in_features == site.module.to_v.in_features
        assert (site.width == TEXT_WIDTH[kind]) == (site.kind == "cross")


def test_sites_come_in_the_order_in_which_they_run():
    unet = make_unet("sd1")
    called = []
    sites = find_sites(unet)
    handles = [
        site.module.register_forward_pre_hook(lambda *_, index=site.index: called.append(index)) for site in sites
    ]
    run(unet)
    assert called == [site.index for site in sites]
    for handle in handles:
        handle.remove()


def test_sites_of_the_original_layout_have_the_numbers_of_diffusers():
    # Files with scopes name sites by these numbers.
    webui, diffusers = find_sites(unets.make_unet(0)), find_sites(make_unet("sd1", layers_per_block=2))
    assert [(site.block, site.kind) for site in webui] == [(site.block, site.kind) for site in diffusers]
    assert len(webui) == 32


def test_blocks_are_numbered_as_in_the_model():
    assert list(dict.fromkeys(site.block for site in find_sites(make_unet("sd1")))) == [
        "down.0",
        "down.1",
        "down.2",
        "mid",
        "up.1",
        "up.2",
        "up.3",
    ]
    assert list(dict.fromkeys(site.block for site in find_sites(make_unet("sdxl")))) == [
        "down.1",
        "down.2",
        "mid",
        "up.0",
        "up.1",
    ]


def test_vae_and_text_encoder_have_no_sites():
    assert find_sites(make_vae()) == ()
    assert find_sites(make_text_encoder(48)) == ()


def test_a_controlnet_has_sites():
    assert {site.section for site in find_sites(make_controlnet(make_unet("sd1")))} == {"down", "mid"}


def test_layers_state_their_kind_of_attention():
    unet = make_unet("sd1", only_cross_attention=True)
    kinds = {site.kind for site in find_sites(unet) if site.section != "mid"}
    assert kinds == {"cross"}


def test_the_unet_is_found_inside_a_pipeline_and_a_compiled_module():
    unet = make_unet("sd1")
    assert unet_of(unet) is unet
    assert unet_of(torch.compile(unet, backend="eager")) is unet
    assert unet_of(type("Pipeline", (), {"unet": unet})()) is unet
    assert unet_of("a string") is None


def test_layers_of_gligen_and_motion_modules_are_skipped():
    gated = make_unet("sd1", attention_type="gated")
    assert len(find_sites(gated)) == len(find_sites(make_unet("sd1")))
    motion = UNetMotionModel(
        block_out_channels=(20, 40),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=48,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    names = [site.name for site in find_sites(motion)]
    assert len(names) == 8
    assert not any("motion" in name for name in names)
