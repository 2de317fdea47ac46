"""A whole training: it learns, resumes bit for bit and loses nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader.embeddings import load_embedding
from hnloader.errors import ConfigError, DivergedError, HypernetworkError
from hnloader.files import TEMPORARY_SUFFIX
from hnloader.training import Event, prepare, schema, train
from hnloader.training.run_folder import run_folder
from hnloader.training.state import states
from tests.support.trainings import SETTINGS, Run, raises, weights


def test_the_output_is_a_webui_file_with_metadata(settings_of: Run) -> None:
    config = settings_of()
    result = train(config)
    assert (result.reason, result.step) == ("done", 12)
    written = torch.load(result.output, weights_only=True)
    assert {key for key in written if isinstance(key, int)} == {16, 24}
    assert isinstance(written[16], tuple)
    assert (written["step"], written["name"], written["sd_checkpoint_name"]) == (12, "style", "tiny")
    assert (written["layer_structure"], written["activation_func"], written["is_layer_norm"]) == (
        [1, 8, 1],
        "mish",
        True,
    )
    assert json.loads(written["training_config"])["steps"] == 12


def test_train_accepts_a_file_a_mapping_or_a_config(settings_of: Run, tmp_path: Path) -> None:
    config = settings_of("one/style.pt", steps=2)
    (tmp_path / "config.yaml").write_text(schema.write(config))
    by_file = hnloader.train(tmp_path / "config.yaml")
    settings = {**SETTINGS, "steps": 2, "model": config.model, "images": config.images}
    steps: list[int] = []
    by_mapping = hnloader.train(
        {**settings, "output": str(tmp_path / "two" / "style.pt")},
        callback=lambda event: event.message or steps.append(event.step),
    )
    by_config = hnloader.train(settings_of("three/style.pt", steps=2))
    assert steps[0] == 1
    assert steps[-1] == 2
    for result in (by_mapping, by_config):
        assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(by_file.output), strict=True))
    with raises(ConfigError, "'stepps'", "'steps'"):
        hnloader.train({"stepps": 3})
    with raises(ConfigError, "none.yaml"):
        hnloader.train(str(tmp_path / "none.yaml"))


def test_training_lowers_the_loss_and_leaves_the_model_alone(settings_of: Run) -> None:
    config = settings_of(
        steps=60, learning_rate="3e-3", validate_every_n_steps=60, hypernetwork__norm=False, ema_decay=0
    )
    training = prepare(config)
    pipeline = training.task.denoiser.pipeline
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    first = training.validator.loss()
    result = training.run()
    assert result.history[-1]["validation_loss"] < first
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    assert not any(module._forward_pre_hooks for module in pipeline.unet.modules())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hypernetwork", "embedding"])
def test_the_same_seed_gives_the_same_file(method: str, settings_of: Run) -> None:
    one, two = (train(settings_of(f"{name}/style.pt", method=method, steps=5)) for name in ("a", "b"))
    three = train(settings_of("c/style.pt", method=method, steps=5, seed=2))
    first, second, third = (
        weights(result.output) if method == "hypernetwork" else [load_embedding(result.output).vectors]
        for result in (one, two, three)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True))


@pytest.mark.slow
def test_an_interrupted_training_gives_the_same_weights(settings_of: Run) -> None:
    whole = train(settings_of("whole/style.pt"))
    random.seed(0)
    for moment in sorted(random.sample(range(1, 12), 4)):
        config = settings_of(f"cut-{moment}/style.pt")
        training = prepare(config)

        def stop(event: Event, training: Any = training, moment: int = moment) -> None:
            if event.step == moment - 1 or moment == 1:
                training.stop()

        interrupted = training.run(stop)
        assert interrupted.reason == "interrupted"
        assert interrupted.step == max(moment - 1, 1)
        again = prepare(config, resume=True)
        assert again.state.step == interrupted.step
        result = again.run()
        assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(whole.output), strict=True))
        assert result.history == whole.history
        assert result.best[:2] == whole.best[:2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hypernetwork", "embedding"])
def test_a_killed_training_gives_the_same_weights(method: str, settings_of: Run) -> None:
    """Nothing after the last saved state is there, as after kill -9."""
    config = settings_of("a/style.pt", method=method, gradient_accumulation_steps=2)
    expected = train(config)

    class KilledError(Exception):
        pass

    def kill(event: Event) -> None:
        if event.step == 10:
            raise KilledError

    killed = settings_of("b/style.pt", method=method, gradient_accumulation_steps=2)
    with pytest.raises(KilledError):
        prepare(killed).run(kill)
    result = train(killed, resume=True)
    assert [path.name for path in states(run_folder(result.output))][-1] == "state-00000012.safetensors"
    if method == "hypernetwork":
        assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(expected.output), strict=True))
    else:
        assert torch.equal(load_embedding(result.output).vectors, load_embedding(expected.output).vectors)


def test_a_diverging_training_keeps_its_last_state(settings_of: Run) -> None:
    config = settings_of()
    training = prepare(config)

    def poison(event: Event) -> None:
        if event.step == 6:
            with torch.no_grad():
                training.adapter.parameters[0].fill_(float("inf"))

    with raises(DivergedError, "state-00000004", "learning_rate"):
        training.run(poison)
    resumed = prepare(config, resume=True)
    assert resumed.state.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in resumed.adapter.parameters)


@pytest.mark.parametrize(("batch_size", "advice"), [(2, "batch_size to 1"), (1, "data.resolution lower")])
def test_a_device_without_enough_memory(
    batch_size: int, advice: str, settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(settings_of(batch_size=batch_size))

    def full(index: int) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(training.task, "loss", full)
    for run in (training.run, lambda: training.train_step(1)):  # the latter is a step of --find-lr
        with pytest.raises(HypernetworkError, match=f"Step 1 ran out of memory.*gradient_checkpointing.*{advice}"):
            run()


def test_steps_of_the_start_file_are_added(settings_of: Run, tmp_path: Path) -> None:
    start = train(settings_of("start.pt", steps=6)).output
    changes = {"steps": 4, "start_from": str(start), "learning_rate": "1e-3:7, 1e-4:9, 1e-5", "lr_warmup_steps": 0}
    again = settings_of("next.pt", **changes)
    rates: list[float] = []
    messages: list[str] = []
    training = prepare(again)

    def report(event: Event) -> None:
        messages.append(event.message)
        if not event.message:
            rates.append(event.learning_rate)
        if event.step == 2:
            training.stop()

    assert training.run(report).step == 2
    assert hnloader.load(training.output).metadata["step"] == 8
    assert any("6 steps" in message and "10" in message for message in messages)
    resumed = prepare(again, resume=True)
    resumed.run(report)
    assert hnloader.load(training.output).metadata["step"] == 10
    assert list(dict.fromkeys(rates)) == [1e-3, 1e-4, 1e-5]

    whole = train(settings_of("whole/next.pt", **changes)).output
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(training.output), strict=True))


def test_overwriting_the_start_file_counts_its_steps_once(settings_of: Run) -> None:
    train(settings_of("style.pt", steps=3), restart=True)
    config = settings_of("style.pt", steps=5, start_from=str(settings_of("style.pt").output))
    training = prepare(config, restart=True)
    training.run(lambda event: training.stop())
    assert hnloader.load(training.output).metadata["step"] == 4
    resumed = prepare(config, resume=True)
    assert not any("was trained for" in note for note in resumed.notes)
    assert hnloader.load(resumed.run().output).metadata["step"] == 8


@pytest.mark.slow
def test_prior_preservation(settings_of: Run) -> None:
    def moved(weight: float) -> float:
        changes = {
            "prior__weight": weight,
            "prior__prompts": ["a cat"],
            "steps": 40,
            "learning_rate": "3e-3",
            "ema_decay": 0,
        }
        training = prepare(settings_of(f"{weight}/style.pt", **changes))
        training.run()
        with torch.no_grad(), training.adapter.enabled(training=False):
            draws = training.task.sampler[3]
            other = training.task.batches.prior(training.task.batches.training(draws, training.task.images), draws)
            after, _ = training.task.denoiser.predict(other)
            with training.adapter.disabled():
                before, _ = training.task.denoiser.predict(other)
            return float((after - before).square().mean())

    assert moved(20.0) < 0.5 * moved(0.0)


def test_half_written_files_are_removed(settings_of: Run) -> None:
    config = settings_of(steps=2)
    folder = run_folder(Path(config.output))
    halves = [folder.parent, folder, folder / "cache", folder / "previews"]
    for place in halves:
        place.mkdir(exist_ok=True)
        (place / f".half.0123456789ab{TEMPORARY_SUFFIX}").write_bytes(b"half")
    train(config)
    assert not list(folder.parent.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_only_one_training_of_an_output_runs(settings_of: Run) -> None:
    config = settings_of(steps=3, save_every_n_steps=1)
    second = prepare(config)

    def meanwhile(event: Event) -> None:
        if event.step == 1:
            with raises(HypernetworkError, str(config.output), "another training run"):
                second.run()
            with raises(HypernetworkError, str(config.output), "another training run"):
                prepare(config, restart=True)

    train(config, callback=meanwhile)
    assert len(states(run_folder(Path(config.output)))) == 3
