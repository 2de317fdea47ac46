"""Train an embedding."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from hnloader.embeddings import load_embedding
from hnloader.embeddings.prompt_words import PlaceholderTokens
from hnloader.errors import ConfigError
from hnloader.training import prepare, train
from hnloader.training.denoiser import Denoiser
from tests.support.trainings import Run, raises


def test_an_embedding_changes_and_the_encoder_does_not(settings_of: Run) -> None:
    config = settings_of(
        "word.safetensors", method="embedding", embedding__num_vectors=3, embedding__initialization_text="ab"
    )
    training = prepare(config)
    pipeline = training.task.denoiser.pipeline
    table = pipeline.text_encoder.get_input_embeddings().weight.clone()
    ids = pipeline.tokenizer("ab", add_special_tokens=False)["input_ids"]
    tokenizer = pipeline.tokenizer
    result = training.run()
    found = load_embedding(result.output)
    assert (found.name, found.step, found.count) == ("word", 12, 3)
    start = table[[ids[index % len(ids)] for index in range(3)]]
    assert 1e-4 < float((found.vectors - start).abs().max()) < 0.2
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight, table)
    assert pipeline.tokenizer is tokenizer


def test_diffusers_loads_the_same_embedding(settings_of: Run, tmp_path: Path) -> None:
    config = settings_of("word.pt", method="embedding", embedding__num_vectors=2)
    training = prepare(config)
    training.run()
    pipeline = training.task.denoiser.pipeline
    with torch.no_grad(), training.adapter.enabled(training=False), training.ema.applied():
        ours = training.task.denoiser.encode_text("a <word> b").states
    pipeline.load_textual_inversion(str(training.output), token="<word>")
    theirs = training.task.denoiser.encode_text("a <word> b").states
    torch.testing.assert_close(ours, theirs)


def test_steps_add_up(settings_of: Run) -> None:
    start = train(settings_of("word.pt", method="embedding", steps=3)).output
    result = train(settings_of("more.safetensors", method="embedding", steps=2, start_from=str(start)))
    assert load_embedding(result.output).step == 5


def test_too_many_vectors_are_refused(settings_of: Run) -> None:
    with raises(ConfigError, "31 vectors", "at most 30"):
        prepare(settings_of("word.pt", method="embedding", embedding__num_vectors=31))


def test_both_encoders_of_sdxl_give_gradients(sdxl: StableDiffusionXLPipeline) -> None:
    denoiser = Denoiser(sdxl)
    vectors = [torch.nn.Parameter(torch.randn(2, width)) for width in (48, 80)]
    tokens = [
        PlaceholderTokens(sdxl, f"tokenizer{suffix}", f"text_encoder{suffix}", {"<w>": each})
        for suffix, each in zip(("", "_2"), vectors, strict=True)
    ]
    plain = denoiser.encode_text("a b").states
    with tokens[0].added(), tokens[1].added():
        text = denoiser.encode_text("a <w> b", trained=True)
        assert torch.equal(denoiser.encode_text("a b").states, plain)
        (text.states.sum() + text.pooled.sum()).backward()
    assert all(each.grad is not None and float(each.grad.abs().sum()) > 0 for each in vectors)
    assert torch.equal(denoiser.encode_text("a b").states, plain)
