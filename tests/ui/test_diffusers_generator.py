"""Images from diffusers pipelines. Their quality is tested with `hnloader.generation`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hnloader.embeddings import Embedding, save_embedding
from hnloader.errors import CancelledError, HypernetworkError
from hnloader.infotext import made_with, parse
from hnloader.library import Library
from hnloader.ui.diffusers_generator import BUNDLED, DiffusersGenerator
from hnloader.ui.page_host import ImageRequest, ModelDefaults
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture
def generator(tiny_model: Path) -> DiffusersGenerator:
    return DiffusersGenerator([str(tiny_model)], lambda: Library([]), device="cpu")


def test_offers_the_given_models_and_the_bundled_one(generator: DiffusersGenerator, tiny_model: Path) -> None:
    assert generator.models() == (str(tiny_model), BUNDLED)
    assert generator.lora_base() == {"source": str(tiny_model), "config": None, "device": "cpu"}
    assert generator.defaults(str(tiny_model)) == ModelDefaults()
    assert generator.default_guidance == 7.0
    generator.choose(BUNDLED)
    assert generator.default_guidance == 3.0


def test_refuses_an_unknown_model(generator: DiffusersGenerator) -> None:
    with pytest.raises(HypernetworkError, match="'other'"):
        generator.choose("other")


def test_an_image_holds_its_parameters(generator: DiffusersGenerator) -> None:
    steps: list[tuple[int, int]] = []
    image = generator.image(ImageRequest("a cat", seed=7, steps=2), lambda *progress: steps.append(progress))
    assert steps == [(1, 2), (2, 2)]
    infotext = parse(image.info["parameters"])
    assert (infotext.prompt, infotext.settings["Seed"]) == ("a cat", "7")


def test_an_interruption_cancels_the_current_image_only(generator: DiffusersGenerator) -> None:
    generator.interrupt()
    generator.image(ImageRequest("a cat", steps=1), lambda *_: None)
    with pytest.raises(CancelledError):
        generator.image(ImageRequest("a cat", steps=3), lambda *_: generator.interrupt())


@pytest.mark.parametrize("form", ["pt", "bin", "png"])
def test_embeddings_of_the_library_act_by_their_words(form: str, tiny_model: Path, tmp_path: Path) -> None:
    save_embedding(Embedding(torch.ones(2, 24), name="ink"), tmp_path / f"ink.{form}")
    save_hypernetwork(tmp_path / "oil.pt")
    generator = DiffusersGenerator([str(tiny_model)], lambda: Library([tmp_path]), device="cpu")
    image = generator.image(ImageRequest("ink and oil", seed=7, steps=1), lambda *_: None)
    assert [used.name for used in made_with(parse(image.info["parameters"]))] == ["ink"]
    (tmp_path / f"ink.{form}").unlink()
    plain = generator.image(ImageRequest("ink and oil", seed=7, steps=1), lambda *_: None)
    assert plain.tobytes() != image.tobytes()


def test_a_given_embedding_replaces_that_of_the_library(tiny_model: Path, tmp_path: Path) -> None:
    for seed, folder in enumerate(("library", "other")):
        (tmp_path / folder).mkdir()
        vectors = torch.randn(2, 24, generator=torch.Generator().manual_seed(seed))
        save_embedding(Embedding(vectors, name="ink"), tmp_path / folder / "ink.pt")
    generator = DiffusersGenerator([str(tiny_model)], lambda: Library([tmp_path / "library"]), device="cpu")
    asked = ImageRequest("ink", seed=7, steps=1)
    images = [
        generator.image(request, lambda *_: None)
        for request in (asked, replace(asked, embeddings=(tmp_path / "other" / "ink.pt",)))
    ]
    names = [[used.name for used in made_with(parse(image.info["parameters"]))] for image in images]
    assert names == [["ink"], ["ink"]]
    assert images[0].tobytes() != images[1].tobytes()
