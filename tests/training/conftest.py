from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hnloader.training import prepare, read_config
from tests.support.small_models import make_scheduler, make_unet, make_vae
from tests.support.tiny_model import make_tokenizer
from tests.support.trainings import SETTINGS, Run, config_in


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of six images of two shapes, some with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(6):
        size = (40, 40) if index % 2 else (64, 32)
        values = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
        if index < 3:
            (folder / f"{index}.txt").write_text(f"a thing number {'abc'[index]}")
    return folder


@pytest.fixture
def settings_of(tiny_model: Path, images: Path, tmp_path: Path) -> Run:
    def make(name: str = "style.pt", **changes: object) -> Any:
        given = {**SETTINGS, "model": str(tiny_model), "images": str(images), "output": str(tmp_path / name)}
        return read_config(None, {**given, **{key.replace("__", "."): value for key, value in changes.items()}})

    return make


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    """A random pipeline of SDXL's layout: two text encoders whose states are put side by side."""
    torch.manual_seed(0)
    common = {
        "vocab_size": 54,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    first = CLIPTextModel(CLIPTextConfig(hidden_size=48, **common))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=80, projection_dim=32, **common))
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("words"))
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet("sdxl"),
        scheduler=make_scheduler(),
    )


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and what a training run of two steps leaves."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "images").mkdir()
    for index in range(6):
        values = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{index}.png")
    prepare(config_in(folder, tiny_model)).run()
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copied")
