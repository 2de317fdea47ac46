"""Checks and setup by `prepare`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hnloader
from hnloader.errors import ConfigError
from hnloader.training import prepare, train
from tests.support.bytes_kept import bytes_kept
from tests.support.trainings import Run, raises


def test_saved_states_are_kept_without_restart(settings_of: Run) -> None:
    config = settings_of(steps=4)
    train(config)
    with raises(ConfigError, "--resume"):
        train(config)
    assert train(settings_of(steps=6), resume=True).step == 6
    assert train(config, restart=True).step == 4


@pytest.mark.parametrize("resume", [False, True])
def test_an_existing_output_is_kept_without_restart(resume: bool, settings_of: Run) -> None:
    config = settings_of(steps=2)
    output = Path(config.output)
    output.write_bytes(b"old")
    with raises(ConfigError, str(output), "--restart"):
        train(config, resume=resume)
    assert output.read_bytes() == b"old"
    train(config, restart=True)
    assert output.read_bytes() != b"old"


def test_gradient_checkpointing_saves_memory(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(**changes: object) -> tuple[list[torch.Tensor], int]:
        """The gradients of a step, and how many bytes were kept for them."""
        training = prepare(settings_of(hypernetwork__dropout=0, **changes))

        def loss() -> torch.Tensor:
            return training.task.loss(0)

        with training.adapter.enabled(training=True):
            loss().backward()
            found = [parameter.grad for parameter in training.adapter.parameters]
            return found, bytes_kept(training.task.denoiser.unet, loss, monkeypatch)

    (plain, all_bytes), (saving, fewer) = kept(), kept(gradient_checkpointing=True)
    assert fewer < 0.7 * all_bytes
    for one, two in zip(plain, saving, strict=True):
        torch.testing.assert_close(one, two)


def test_a_training_starts_from_a_prediction(settings_of: Run, tiny_predictor: Path, tmp_path: Path) -> None:
    config = settings_of(start_from="predict", start_predictor=str(tiny_predictor), steps=2)
    trainer = prepare(config)
    predicted = tmp_path / "style.training" / "predicted.safetensors"
    for one, other in zip(trainer.adapter.parameters, hnloader.load(predicted).parameters(), strict=True):
        assert torch.equal(one.cpu(), other)
    found = hnloader.load(trainer.run().output)
    assert found.metadata["step"] == 2
    # The validation image is not shown to the predictor.
    digests = found.metadata["images_sha256"]
    assert isinstance(digests, list)
    assert set(digests) == {image.digest for image in trainer.task.images}  # type: ignore[attr-defined]
    before = predicted.stat().st_mtime_ns
    assert prepare(config, resume=True).state.step == 2
    assert predicted.stat().st_mtime_ns == before
    with raises(ConfigError, "embedding"):
        prepare(settings_of("other.pt", start_from="predict", method="embedding"))
