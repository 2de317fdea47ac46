"""The attention layers of language models are found, with the rows of fused projections in the order of their code."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from hnloader.attention import attach, find_sites
from hnloader.attention.decoders import decoder_of
from hnloader.attention.layout import host_of
from hnloader.attention.output_rows import Rows
from hnloader.errors import HypernetworkError, NoMatchingSitesError
from hnloader.network import Architecture, Hypernetwork
from tests.support.errors import raises
from tests.support.small_decoders import WIDTH, attention_layers, available, make_decoder, sides_of_rows
from tests.support.small_models import make_unet

FUSED = ["bloom", "codegen", "falcon", "falcon_multi_query", "falcon_new", "gpt2", "gpt_bigcode", "gpt_bigcode_heads"]
FUSED += ["gpt_neox", "mpt", "persimmon", "phi3"]


@pytest.mark.parametrize("name", available())
def test_each_layer_is_a_site(name: str) -> None:
    model = make_decoder(name)
    sites = find_sites(model)
    assert [site.module for site in sites] == [module for module, _ in attention_layers(model)]
    assert [site.index for site in sites] == list(range(len(sites)))
    assert [site.block for site in sites] == [f"layer.{number}" for number in range(len(sites))]
    assert {(site.kind, site.width) for site in sites} == {("self", WIDTH)}


@pytest.mark.parametrize("name", sorted(set(FUSED) & set(available())))
def test_the_rows_of_a_fused_projection_are_those_that_change_keys_and_values(name: str) -> None:
    model = make_decoder(name)
    ((slot, rows),) = find_sites(model)[0].slots.items()
    found = sides_of_rows(model)
    numbers = torch.arange(len(found))
    for side, part in zip(rows.sides, rows.split(numbers, 0), strict=True):
        assert {found[number] for number in part.tolist()} == {side}, slot


@pytest.mark.parametrize(
    "rows", [Rows(("k",)), Rows((None, "k", "v")), Rows((None, "k", "v"), (4, 1, 1), 2), Rows(("k", None), (1, 2), 4)]
)
@pytest.mark.parametrize("dim", [0, -1])
def test_joining_undoes_splitting(rows: Rows, dim: int) -> None:
    tensor = torch.randn(12, 12)
    assert torch.equal(rows.join(rows.split(tensor, dim), dim), tensor)


@pytest.mark.parametrize("name", available())
def test_the_host_is_called_in_every_use(name: str) -> None:
    model = make_decoder(name)
    host = decoder_of(model)
    assert host is not None
    assert host_of(model) is host is host_of(host)
    calls = []
    host.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.arange(4)[None] + 5
    model(ids)
    model.base_model(ids)
    model.generate(ids, max_new_tokens=2, min_new_tokens=2)
    assert len(calls) == 4


def make(*scopes: str | int) -> Hypernetwork:
    return Hypernetwork.new(scopes or (WIDTH,), Architecture(), name="style").requires_grad_(False)


class Unknown(nn.Module):
    """A decoder with a fused projection in an unknown order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([UnknownAttention()])


class UnknownAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(WIDTH, 3 * WIDTH)


def _bart() -> nn.Module:
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=64,
            d_model=WIDTH,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
        )
    )


def _mamba() -> nn.Module:
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=64, hidden_size=WIDTH, num_hidden_layers=1)
    )


def _bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=64, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )


class Wrapped(nn.Module):
    """A decoder whose projections hide their width, as in Moshi."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([WrappedAttention()])


class WrappedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k_proj = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        self.v_proj = nn.Sequential(nn.Linear(WIDTH, WIDTH))


def _shared() -> nn.Module:
    model = make_decoder()
    model.model.layers[1].self_attn.v_proj = model.model.layers[1].self_attn.k_proj
    return model  # type: ignore[no-any-return]


REFUSED = {
    "Wrapped": (Wrapped, "layers.0.k_proj of Sequential"),
    "LlamaForCausalLM": (_shared, "layers.1.self_attn.k_proj and model.layers.1.self_attn.v_proj"),
    "Unknown": (Unknown, "layers.0.qkv_proj"),
    "BartForConditionalGeneration": (_bart, "encoder"),
    "MambaForCausalLM": (_mamba, "k_proj"),
    "BertModel": (_bert, "k_proj"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_by_name(name: str) -> None:
    build, fact = REFUSED[name]
    assert find_sites(build()) == ()
    with raises(NoMatchingSitesError, name, fact):
        attach(build(), make())


def test_the_unet_of_a_model_with_a_language_model_is_attached_to() -> None:
    model = nn.ModuleDict({"text": make_decoder(), "unet": make_unet("sd1")})
    assert host_of(model) is model
    assert {site.section for site in find_sites(model)} == {"down", "mid", "up"}


def test_old_releases_of_torch_attach_to_models_that_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1")
    attach(make_decoder(), make()).detach()
    with raises(HypernetworkError, "2.4.1"):
        attach(torch.compile(make_decoder()), make())


def test_a_file_of_another_width_is_refused() -> None:
    with raises(NoMatchingSitesError, "768", str(WIDTH)):
        attach(make_decoder(), make(768))


def test_a_file_for_more_layers_is_refused_or_warned_of() -> None:
    with raises(NoMatchingSitesError, "32:5-", "32:self:0-2"):
        attach(make_decoder(), make("32:5-"))


def test_an_image_encoder_beside_a_decoder_stays_out() -> None:
    text = {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 8,
        "image_size": 8,
        "patch_size": 4,
    }
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text, intermediate_size=16),
        vision_config=transformers.CLIPVisionConfig(**vision),
    )
    model = transformers.LlavaForConditionalGeneration(config)
    assert len(find_sites(model)) == 2
    assert type(host_of(model)).__name__ == "LlamaModel"


def test_an_audio_encoder_beside_a_decoder_in_an_unknown_order_stays_out() -> None:
    model = nn.ModuleDict({"audio_tower": make_decoder(), "language_model": Unknown()})
    with raises(NoMatchingSitesError, "language_model.layers.0.qkv_proj"):
        attach(model, make())


@pytest.mark.skipif(not hasattr(transformers, "PaliGemmaForConditionalGeneration"), reason="transformers before 4.41")
def test_a_decoder_with_a_bidirectional_prompt_is_found() -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    text = {**sizes, "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "model_type": "gemma"}
    vision = {**sizes, "image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}
    config = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    model = transformers.PaliGemmaForConditionalGeneration(config).eval().requires_grad_(False)
    for site in find_sites(model):
        site.module.is_causal = False  # as of transformers 5
    assert len(find_sites(model)) == 2
    before = model(torch.arange(5)[None] + 5).logits
    with attach(model, make(), 1.0) as attachment:
        assert len(attachment.sites) == 2
        assert not torch.equal(model(torch.arange(5)[None] + 5).logits, before)
