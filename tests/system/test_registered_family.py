"""A family of models that is registered from outside is known everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import hnloader
from hnloader import families
from hnloader.attention import find_sites
from hnloader.embeddings import Embedding, load_embedding
from hnloader.families import Family
from hnloader.pipelines import _family_of_file
from hnloader.ui.catalog import filters

WIDTHS = (24, 40)
DUMMY = Family(
    name="Dummy",
    text_width=24,
    self_widths=frozenset({40}),
    encoder_widths=(24,),
    resolution=96,
    pipeline="StableDiffusionXLPipeline",
    checkpoint_prefix="dummy_encoder.",
    unet={
        "block_out_channels": [40],
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
    attention_layers=r"(?P<section>down|up)_blocks\.(?P<number>\d+)\.layers\.\d+\.attn[12]|middle\.attn[12]",
    lora_base="dummy_v1",
    modelspec="dummy-v1",
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(families, "_families", list(families._families))
    families.register(DUMMY)
    yield


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(40, 8), nn.Linear(width, 8), nn.Linear(width, 8)
        self.to_out = nn.ModuleList([nn.Linear(8, 40)])


def model_of_the_family() -> nn.Module:
    """A model whose layers have names that no known family uses."""

    def layer() -> nn.Module:
        return nn.ModuleDict({"attn1": Attention(40), "attn2": Attention(24)})

    def block() -> nn.Module:
        return nn.ModuleDict({"layers": nn.ModuleList([layer()])})

    return nn.ModuleDict(
        {"down_blocks": nn.ModuleList([block(), block()]), "middle": layer(), "up_blocks": nn.ModuleList([block()])}
    )


def hypernetwork() -> hnloader.Hypernetwork:
    return hnloader.Hypernetwork.new(WIDTHS, hnloader.Architecture((1, 2, 1)), name="style")


def test_a_file_is_inspected_as_made_for_the_family(tmp_path: Path) -> None:
    hnloader.save(hypernetwork(), tmp_path / "style.safetensors")
    assert hnloader.inspect(tmp_path / "style.safetensors").families == ("Dummy",)
    with safe_open(tmp_path / "style.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == "dummy-v1/hypernetwork"


def test_blocks_are_named_and_attached_by_the_pattern_of_the_family() -> None:
    model = model_of_the_family()
    assert [site.block for site in find_sites(model)] == ["down.0"] * 2 + ["down.1"] * 2 + ["mid"] * 2 + ["up.0"] * 2
    with hnloader.attach(model, hypernetwork(), {"down.1": 1.0}) as attachment:
        assert len(attachment.sites) == 8


def test_messages_name_the_family() -> None:
    other = hnloader.Hypernetwork.new((768,), hnloader.Architecture((1, 1)), name="other")
    with pytest.raises(hnloader.NoMatchingSitesError) as caught:
        hnloader.attach(model_of_the_family(), other)
    assert "Dummy (24)" in str(caught.value)
    with pytest.raises(hnloader.NoMatchingSitesError) as caught:
        hnloader.attach(nn.Linear(2, 2), hypernetwork())
    assert "SDXL or Dummy" in str(caught.value)


def test_a_lora_has_the_names_of_the_family(tmp_path: Path) -> None:
    save_file(model_of_the_family().state_dict(), tmp_path / "model.safetensors")
    made = hnloader.export_lora(
        hypernetwork(),
        tmp_path / "model.safetensors",
        tmp_path / "style-lora.safetensors",
        hnloader.LoraOptions(kind="lycoris"),
    )
    with safe_open(made.path, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
    assert metadata["ss_base_model_version"] == "dummy_v1"
    assert metadata["modelspec.architecture"] == "dummy-v1/lora"
    assert metadata["modelspec.resolution"] == "96x96"
    assert {name.partition(".")[0] for name in names} >= {"lora_unet_middle_attn2_to_k", "lora_unet_middle_attn1_to_v"}


def test_the_unet_of_the_family_can_be_built() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(DUMMY.unet_config())
    assert {site.width for site in find_sites(unet)} == set(WIDTHS)


def test_a_checkpoint_is_recognized_by_its_prefix_or_its_configuration(tmp_path: Path) -> None:
    save_file({"dummy_encoder.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert _family_of_file(tmp_path / "model.safetensors", None) is DUMMY
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert _family_of_file(tmp_path / "model.safetensors", tmp_path).name == "SD 1"


def test_an_embedding_of_diffusers_has_the_width_of_the_family(tmp_path: Path) -> None:
    save_file({"word": torch.zeros(1, 24)}, tmp_path / "word.safetensors")
    assert load_embedding(tmp_path / "word.safetensors").made_for == "Dummy"


def test_embeddings_and_the_library_page_name_the_family() -> None:
    assert Embedding(torch.zeros(1, 24)).made_for == "Dummy"
    assert "Dummy" in filters()


def test_an_embedding_for_two_encoders_has_the_family_with_their_widths() -> None:
    families.register(replace(DUMMY, name="Twin", text_width=50, encoder_widths=(20, 30)))
    assert Embedding(torch.zeros(1, 20), torch.zeros(1, 30)).made_for == "Twin"
    assert Embedding(torch.zeros(1, 30)).made_for == "Twin, second encoder only"
    assert Embedding(torch.zeros(1, 20), torch.zeros(1, 31)).made_for == "text encoders of 20 and 31"


def test_names_and_text_widths_are_unique() -> None:
    with pytest.raises(ValueError, match="24"):
        families.register(DUMMY)
