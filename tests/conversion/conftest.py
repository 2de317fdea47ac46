from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from transformers import CLIPTokenizer

from tests.support.tiny_model import make_tokenizer

if TYPE_CHECKING:
    from tests.support.lora_models import Pipelines


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), length=16)


@pytest.fixture(scope="session")
def pipelines(tokenizer: CLIPTokenizer) -> Pipelines:
    """Small pipelines of each family, new at each call."""
    from tests.support.lora_models import Pipelines

    return Pipelines(tokenizer)
