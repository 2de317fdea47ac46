"""Captions of a training run and the number of their tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.training import prepare, read_config
from hnloader.training.captions import check_caption_lengths, count_tokens, count_with_placeholder, training_caption
from tests.support.trainings import Run, read


def test_count_tokens_without_a_vocabulary() -> None:
    assert count_tokens("a cat") == 2
    assert count_tokens("it's 12 o'clock, isn't it?") == 12
    assert count_tokens("") == 0


def test_long_captions_are_reported(images: Path) -> None:
    (images / "0.txt").write_text("word " * 75)
    (images / "1.txt").write_text("word " * 76)
    found = read(images)
    check_caption_lengths(found, lambda each, index: each.caption or "", count_tokens, 75)
    (problem,) = found.problems
    assert problem.path.name == "1.png"
    assert "76 tokens" in problem.message
    assert "first 75" in problem.message


def test_the_placeholder_token_comes_first_and_counts_as_its_vectors(images: Path) -> None:
    config = read_config(None, {"method": "embedding", "output": "art.pt", "embedding.num_vectors": 5})
    found = read(images)
    assert training_caption(found.images[0], config, 0) == "<art>, a thing number a"
    assert count_with_placeholder(config, count_tokens, 5)("<art>, a thing <art>") == 13


@pytest.mark.parametrize(
    "caption",
    [
        "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g",
        "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g, <word>",
        "a b c d e f g h i j k l m n o p q r s t u v w x y z a b <word>",
        "in the way of <word>: " + "a b " * 40,
    ],
)
@pytest.mark.parametrize("vectors", [1, 4, 30])
def test_an_embedding_learns_from_long_captions(caption: str, vectors: int, settings_of: Run, images: Path) -> None:
    for path in images.glob("*.png"):
        path.with_suffix(".txt").write_text(caption)
    config = settings_of("word.pt", method="embedding", embedding__num_vectors=vectors, steps=3)
    training = prepare(config)
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    training.run()
    for old, new in zip(before, training.adapter.parameters, strict=True):
        assert (old != new).any(dim=1).all()  # every vector
    cut = any("the model reads the first 30" in note for note in training.notes)
    assert cut == (vectors > 1 or "z a b <word>" not in caption)
