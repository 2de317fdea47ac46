"""The lesson of the encoder: it learns what the examples of a style share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnloader.prediction.encoder_lesson import EncoderLesson
from hnloader.prediction.image_encoder import ImageEncoder
from hnloader.prediction.text_encoder import TextEncoder
from tests.support.predictors import task_of
from tests.support.trainings import Run


def drawn(styles: int, examples: int, random: torch.Generator) -> Tensor:
    """Return latents in which each style has a slope across the image; each example has its own spot."""
    slopes = torch.randn(styles, 1, 4, 1, 1, generator=random)
    latents = slopes * torch.linspace(-1, 1, 8).view(1, 1, 1, 8, 1) + torch.zeros(1, examples, 4, 8, 8)
    rows, columns = torch.randint(8, (2, styles, examples), generator=random)
    for style in range(styles):
        for example in range(examples):
            latents[style, example, :, rows[style, example], columns[style, example]] += 2
    return latents


def loss_of(lesson: EncoderLesson, encoder: ImageEncoder, latents: Tensor, shift: int = 0) -> Tensor:
    """Return the loss of the last example of each style, from the others of that style, or of another."""
    styles = encoder.read(latents[:, :-1]).roll(shift, 0)
    return lesson.loss(styles, torch.zeros(len(latents), 0), latents[:, -1])


def test_an_encoder_learns_what_the_examples_of_a_style_share() -> None:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    encoder, lesson = ImageEncoder(4, 8, 16), EncoderLesson(ImageEncoder(4, 8, 16), 8, 0)
    lesson.calibrate(drawn(100, 1, random)[:, 0], torch.zeros(100, 0))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *lesson.guess.parameters()], 3e-3)
    validation = drawn(40, 3, random)
    with torch.no_grad():
        before = float(loss_of(lesson, encoder, validation))
    for _ in range(80):
        optimizer.zero_grad()
        loss_of(lesson, encoder, drawn(16, 3, random)).backward()
        optimizer.step()
    with torch.no_grad():
        own, other = float(loss_of(lesson, encoder, validation)), float(loss_of(lesson, encoder, validation, 1))
    assert own < 0.7 * before
    assert own < 0.7 * other


def test_captions_tell_what_a_style_cannot() -> None:
    torch.manual_seed(0)
    lesson = EncoderLesson(ImageEncoder(4, 8, 16), 8, 1)
    captions = torch.randn(64, 1)
    latents = captions.view(64, 1, 1, 1).expand(64, 4, 8, 8).contiguous()
    lesson.calibrate(latents, captions)
    optimizer = torch.optim.AdamW(lesson.guess.parameters(), 1e-2)
    styles = torch.zeros(64, 8)
    for _ in range(60):
        optimizer.zero_grad()
        loss = lesson.loss(styles, captions, latents)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        own, other = (float(lesson.loss(styles, captions.roll(shift, 0), latents)) for shift in (0, 1))
    assert own < 0.2
    assert own < 0.2 * other


def test_what_is_guessed_is_in_usual_units() -> None:
    torch.manual_seed(0)
    for features, values in (
        (ImageEncoder(4, 8, 16), torch.randn(200, 4, 8, 8) * 5 + 3),
        (TextEncoder(6, 8, 16), torch.randn(200, 6) * 5 + 3),
    ):
        lesson = EncoderLesson(features, 8, 0)
        lesson.calibrate(values, torch.zeros(200, 0))
        torch.nn.init.zeros_(lesson.guess[2].weight)
        torch.nn.init.zeros_(lesson.guess[2].bias)
        # A guess of the mean is wrong by the variance, which is 1.
        with torch.no_grad():
            error = float(lesson.loss(torch.zeros(200, 8), torch.zeros(200, 0), values))
        assert error == pytest.approx(1, abs=0.02)


def test_slopes_tell_the_direction_of_a_gradient() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(1, 8, 16)
    ramp = torch.linspace(-1, 1, 6).view(1, 1, 6, 1).expand(1, 1, 6, 10)
    with torch.no_grad():
        numbers = [encoder.pooled(each)[0, :4].tolist() for each in (ramp, ramp.flip(2), torch.ones(1, 1, 6, 10))]
    (mean, deviation, down, right), (_, _, up, _), (_, _, none, _) = numbers
    assert deviation == pytest.approx(float(ramp.std(unbiased=False)), rel=1e-4)
    assert down == pytest.approx(deviation, rel=1e-4)  # all of it is explained by the row
    assert up == pytest.approx(-down, rel=1e-5)
    assert [mean, right, none] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_wide_or_tiny_image_has_slopes() -> None:
    encoder = ImageEncoder(4, 8, 16)
    for size in ((1, 1), (2, 9)):
        assert encoder.read(torch.randn(1, 1, 4, *size)).isfinite().all()


def test_a_lesson_never_shows_what_is_guessed(predictor_settings: Run) -> None:
    data = (task := task_of(predictor_settings(predictor__encoder_batch_size=7))).data
    for step in range(5):
        lesson = data.lesson(step, task.styles)
        assert len(lesson.references) == 7
        assert len(lesson.styles) == len(lesson.captions) == len(lesson.values)
        assert set(lesson.styles.tolist()) == set(range(7))
        for style, value in zip(lesson.styles, lesson.values, strict=True):
            assert not any(torch.equal(value, shown) for shown in lesson.references[style])
    same, other = data.lesson(3, task.styles), data.lesson(4, task.styles)
    again = data.lesson(3, task.styles)
    assert torch.equal(same.values, again.values)
    assert same.values.shape != other.values.shape or not torch.equal(same.values, other.values)


@pytest.mark.parametrize("texts", [False, True])
def test_the_lesson_changes_the_encoder_and_not_the_loss(
    predictor_settings: Run, text_settings: Run, texts: bool
) -> None:
    losses, gradients = [], []
    for count in (0, 4):
        settings = text_settings if texts else predictor_settings
        task = task_of(settings(predictor__encoder_batch_size=count))
        assert (len(task.adapter.parameters) > len(list(task.predictor.parameters()))) == bool(count)
        with task.adapter.enabled(training=True):
            loss = task.loss(0)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(task.predictor.encoder.each.weight.grad)
    assert losses[0] == losses[1]
    # A new predictor changes nothing, so its encoder learns nothing from the model yet.
    assert gradients[0] is None or not gradients[0].any()
    assert gradients[1] is not None
    assert gradients[1].any()
