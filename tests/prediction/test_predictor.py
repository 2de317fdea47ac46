"""The predictor network: what it emits, and the hypernetworks that it makes."""

from __future__ import annotations

import pytest
import torch

import hnloader
from hnloader.network import SIDES
from hnloader.prediction.predictor import Emitted, Predictor
from hnloader.scopes import Scope
from hnloader.training.predictor_config import DesignConfig

SCOPES = [Scope(8), Scope(12)]


def predictor(**design: object) -> Predictor:
    torch.manual_seed(0)
    sizes = {"core_size": 3, "style_size": 6, "embedding_size": 4, "hidden_size": 10}
    made = Predictor(SCOPES, 4, DesignConfig(**{**sizes, **design}))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made.eval()


@pytest.mark.parametrize("activation", ["linear", "relu", "mish"])
@pytest.mark.parametrize("ratio", [0.5, 2])
def test_a_hypernetwork_computes_what_its_row_of_the_batch_computes(activation: str, ratio: float) -> None:
    made = predictor(activation=activation, layer_structure=(1, ratio, 1))
    emitted = made.emit(made.encoder.read(torch.randn(3, 2, 4, 6, 6)))
    sides = made.sides(emitted)
    for row in range(3):
        hn = made.hypernetwork(Emitted(emitted.cores[row : row + 1], emitted.hidden[row : row + 1]))
        for scope in SCOPES:
            context = torch.randn(3, 5, scope.width)
            for side in SIDES:
                expected = sides[scope, side](context)[row]
                assert torch.allclose(hn.transform(side, context[row]), expected, atol=1e-5)


def test_a_new_predictor_changes_nothing() -> None:
    made = Predictor(SCOPES, 4, DesignConfig(core_size=3, style_size=6, embedding_size=4, hidden_size=10))
    hn = made.hypernetwork(made.emit(torch.randn(1, 6)))
    context = torch.randn(2, 5, 8)
    assert torch.equal(hn(context)[0], context)


def test_the_order_of_the_images_does_not_matter() -> None:
    made = predictor()
    latents = torch.randn(1, 4, 4, 6, 6)
    assert torch.allclose(made.encoder.read(latents), made.encoder.read(latents.flip(1)), atol=1e-5)
    assert not torch.allclose(made.encoder.read(latents), made.encoder.read(latents[:, :1]), atol=1e-3)


def test_mixing_walks_from_one_hypernetwork_to_the_other() -> None:
    made = predictor()
    first, second = made.emit(torch.randn(1, 6)), made.emit(torch.randn(1, 6))
    context = torch.randn(2, 5, 8)

    def value(emitted: Emitted) -> torch.Tensor:
        return made.hypernetwork(emitted).transform("v", context)

    assert torch.allclose(value(first.mixed(second, 0)), value(first))
    assert torch.allclose(value(first.mixed(second, 1)), value(second), atol=1e-6)
    # The changes are linear in what is emitted.
    halfway = (value(first) + value(second)) / 2
    assert torch.allclose(value(first.mixed(second, 0.5)), halfway, atol=1e-5)


def test_a_predicted_file_is_a_usual_file(tmp_path: object) -> None:
    made = predictor(layer_structure=(1, 2, 1))
    hn = made.hypernetwork(made.emit(torch.randn(1, 6)), "style")
    path = f"{tmp_path}/style.pt"
    hnloader.save(hn, path)
    loaded = hnloader.load(path)
    assert str(loaded.architecture) == "1-2-1, relu"
    context = torch.randn(2, 5, 12)
    assert torch.equal(loaded.transform("k", context), hn.transform("k", context))
