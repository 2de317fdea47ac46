from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tests.support.small_models import TEXT_WIDTH, make_scheduler, make_text_encoder, make_unet, make_vae


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


@pytest.fixture
def sd_components(tokenizer: CLIPTokenizer) -> dict[str, object]:
    """Return the arguments of StableDiffusionPipeline."""
    return {
        "unet": make_unet("sd1"),
        "vae": make_vae(),
        "text_encoder": make_text_encoder(TEXT_WIDTH["sd1"]),
        "tokenizer": tokenizer,
        "scheduler": make_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
