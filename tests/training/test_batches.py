"""The batches of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hnloader.training import prepare
from hnloader.training.pixels import load_sample
from tests.support.trainings import Run


def asked_of_the_cache(training: Any) -> list[tuple[str, bool, tuple[int, int]]]:
    """Make some batches; return the names of the images, whether they were mirrored, and their shifts."""
    asked: list[tuple[str, bool, tuple[int, int]]] = []
    plain = training.task.batches.cache.latents

    def latents(image: Any, *, flipped: bool, shift: tuple[int, int]) -> Any:
        asked.append((image.path.name, flipped, shift))
        return plain(image, flipped=flipped, shift=shift)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.task.batches.cache, "latents", latents)
        for number in range(60):
            training.task.batches.training(training.task.sampler[number], training.task.images)
    return asked


def test_random_shift(settings_of: Run) -> None:
    training = prepare(settings_of(data__random_shift=2, data__random_flip=False))
    shifts = [shift for _, _, shift in asked_of_the_cache(training)]
    plain = training.task.batches.cache.latents
    assert {right for right, _ in shifts} == {down for _, down in shifts} == {-2, -1, 0, 1, 2}

    image, denoiser = training.task.images[0], training.task.denoiser
    sample = load_sample(image, training.config.data, denoiser.resolution, denoiser.size_multiple)
    for shift in ((1, -2), (0, 0)):
        mean, _ = training.task.denoiser.encode_image(sample.shifted(*shift))
        assert torch.equal(plain(image, shift=shift).mean, mean)
    assert not torch.equal(plain(image, shift=(1, -2)).mean, plain(image).mean)


def test_images_whose_caption_names_a_side_are_not_mirrored(settings_of: Run, images: Path) -> None:
    paths = sorted(images.glob("?.png"))
    for path, caption in zip(paths, ["a dot on the Left", "the right half", "bright leftovers", "a dot"], strict=False):
        path.with_suffix(".txt").write_text(caption)
    training = prepare(settings_of(data__captions="sidecar", data__validation_split=0))
    mirrored = {name for name, flipped, _ in asked_of_the_cache(training) if flipped}
    assert not mirrored & {path.name for path in paths[:2]}
    assert mirrored >= {path.name for path in paths[2:4]}


def test_masks_exclude_pixels_from_the_loss(settings_of: Run, images: Path) -> None:
    from PIL import Image

    for path in list(images.glob("?.png")):
        with Image.open(path) as image:
            mask = Image.new("L", image.size)
            mask.paste(255, (0, 0, image.width // 2, image.height))
        mask.save(path.with_name(path.stem + ".mask.png"))
    training = prepare(settings_of(data__masks=True, data__random_flip=False))
    batch = training.task.batches.training(training.task.sampler[0], training.task.images)
    assert batch.masks is not None
    losses = training.task.denoiser.losses(batch)
    prediction, target = training.task.denoiser.predict(batch)
    half = batch.latents.shape[-1] // 2
    expected = (prediction - target)[..., :half].pow(2).mean(dim=(1, 2, 3))
    # Scaling the mask softens its edge.
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)
    assert not torch.allclose(losses, (prediction - target).pow(2).mean(dim=(1, 2, 3)), rtol=0.02)
