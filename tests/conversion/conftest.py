from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from transformers import CLIPTokenizer

if TYPE_CHECKING:
    from tests.support.lora_models import Pipelines


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


@pytest.fixture(scope="session")
def pipelines(tokenizer: CLIPTokenizer) -> Pipelines:
    """Small pipelines of each family, new at each call."""
    from tests.support.lora_models import Pipelines

    return Pipelines(tokenizer)
