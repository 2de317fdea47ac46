"""Words of embeddings in prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnloader.embeddings import Embedding, save_embedding
from hnloader.embeddings.prompt_words import PromptWords, has_word
from hnloader.errors import HypernetworkError, ModelError
from hnloader.generation import Settings, generate
from hnloader.infotext import made_with
from hnloader.pipelines import Model, load_model
from tests.support.lora_models import Pipelines
from tests.support.tiny_model import make_tokenizer


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model, device="cpu")


def vectors_of(pipeline: Any, word: str, part: str = "") -> torch.Tensor:
    """The vectors that the text encoder has for a word."""
    ids = getattr(pipeline, f"tokenizer{part}")(word, add_special_tokens=False)["input_ids"]
    table = getattr(pipeline, f"text_encoder{part}").get_input_embeddings().weight
    return table[ids].detach().clone()


def image(model: Model, prompt: str, *files: Path, negative: str = "") -> np.ndarray:
    settings = Settings(prompt, negative_prompt=negative, embeddings=files, seed=3, steps=2)
    return np.asarray(next(iter(generate(model, settings))).image)


def save(model: Model, path: Path, meaning: str, **options: Any) -> Path:
    save_embedding(Embedding(vectors_of(model.pipeline, meaning), name=path.stem), path, **options)
    return path


@pytest.mark.parametrize("prompt", ["a ink, red", "a <ink>, red", "a INK, red"])
def test_a_word_stands_for_its_vectors(model: Model, prompt: str, tmp_path: Path) -> None:
    ink = save(model, tmp_path / "ink.safetensors", "dog")
    tokenizer, expected = model.pipeline.tokenizer, image(model, "a dog, red")
    assert np.array_equal(image(model, prompt, ink), expected)
    assert not np.array_equal(image(model, prompt), expected)
    assert model.pipeline.tokenizer is tokenizer
    assert not model.pipeline.text_encoder.get_input_embeddings()._forward_hooks


def test_several_words_in_both_prompts(model: Model, tmp_path: Path) -> None:
    one, two = save(model, tmp_path / "one.pt", "dog"), save(model, tmp_path / "two words.pt", "cat")
    found = image(model, "one two words", one, two, negative="two words")
    assert np.array_equal(found, image(model, "dog cat", negative="cat"))


def test_the_token_of_diffusers_is_a_word_too(model: Model, tmp_path: Path) -> None:
    file = save(model, tmp_path / "learned_embeds.bin", "dog", token="<mine>")
    assert np.array_equal(image(model, "a <mine>", file), image(model, "a dog"))


def test_a_part_of_another_word_is_no_word() -> None:
    ink = Embedding(torch.zeros(1, 8), name="ink")
    assert has_word(ink, "(ink)") and has_word(ink, "<Ink>-like")
    assert not has_word(ink, "inks and pink")


def test_images_name_the_embeddings_that_acted(model: Model, tmp_path: Path) -> None:
    files = [save(model, tmp_path / f"{name}.pt", "dog") for name in ("ink", "oil")]
    made = next(iter(generate(model, Settings("a ink", embeddings=files, seed=3, steps=1))))
    (used,) = made_with(made.infotext)
    assert (used.kind, used.name, len(used.hash)) == ("embedding", "ink", 12)
    assert made.infotext.prompt == "a ink"


def test_embeddings_of_other_encoders_are_refused(model: Model, tmp_path: Path) -> None:
    save_embedding(Embedding(torch.zeros(1, 768)), tmp_path / "ink.pt")
    with pytest.raises(ModelError, match="SD 1"):
        image(model, "a ink", tmp_path / "ink.pt")


def test_two_embeddings_of_one_word_are_refused(model: Model) -> None:
    embeddings = [Embedding(torch.zeros(1, 24), name=name) for name in ("ink", "Ink")]
    with pytest.raises(HypernetworkError, match="ink"):
        PromptWords(model.pipeline, embeddings)


def test_each_encoder_of_sdxl_has_its_vectors(tmp_path: Path) -> None:
    pipe = Pipelines(make_tokenizer(tmp_path / "words", 16))("sdxl")

    def encoded(embeddings: list[Embedding], prompt: str) -> torch.Tensor:
        words = PromptWords(pipe, embeddings)
        with words.added(), torch.no_grad():
            given = words.inputs({"prompt": prompt})
            states: torch.Tensor = pipe.encode_prompt(**given, do_classifier_free_guidance=False)[0]
        return states

    first, second = vectors_of(pipe, "dog"), vectors_of(pipe, "dog", "_2")
    plain = encoded([], "a dog")
    assert torch.equal(encoded([Embedding(first, second, name="ink")], "a ink"), plain)
    # Of an embedding for one encoder, the other reads the word itself.
    width = first.shape[1]
    alone = encoded([Embedding(first, name="ink")], "a ink")
    assert torch.equal(alone[..., :width], plain[..., :width])
    assert torch.equal(alone[..., width:], encoded([], "a ink")[..., width:])


def test_images_can_hold_an_embedding(model: Model, tmp_path: Path) -> None:
    file = save(model, tmp_path / "ink.png", "dog")
    assert np.array_equal(image(model, "a ink", file), image(model, "a dog"))
