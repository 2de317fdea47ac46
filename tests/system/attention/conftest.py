from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from tests.support.small_models import TEXT_WIDTH, make_scheduler, make_text_encoder, make_unet, make_vae
from tests.support.tiny_model import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), length=16)


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
