"""A training as a whole: it learns, goes on bit for bit, and never loses what was there."""

from __future__ import annotations

import hashlib
import html
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader.embeddings import load_embedding
from hnloader.errors import ConfigError, DivergedError, HypernetworkError
from hnloader.files import TEMPORARY_SUFFIX
from hnloader.training import prepare, read_config, schema, train
from hnloader.training import state as states_on_disk
from hnloader.training.loop import Event, folder_of
from hnloader.training.pixels import moved
from hnloader.training.pixels import prepare as prepare_image
from hnloader.training.state import states
from tests.support.bytes_kept import bytes_kept

SETTINGS: dict[str, object] = {
    "steps": 12,
    "batch_size": 2,
    "learning_rate": "1e-3",
    "warmup": 2,
    "save_every": 4,
    "measure_every": 4,
    "keep": 3,
    "previews.every": 0,
    "hypernetwork.dropout": 0.2,
    "hypernetwork.norm": True,
    "ema": 0.9,
    "noise_offset": 0.05,
}

Run = Callable[..., Any]


@pytest.fixture
def settings_of(tiny_model: Path, images: Path, tmp_path: Path) -> Run:
    def make(name: str = "style.pt", **changes: object) -> Any:
        given = {**SETTINGS, "model": str(tiny_model), "images": str(images), "output": str(tmp_path / name)}
        return read_config(None, {**given, **{key.replace("__", "."): value for key, value in changes.items()}})

    return make


def weights(path: Path) -> list[torch.Tensor]:
    return list(hnloader.load(path).state_dict().values())


# -- what comes out


def test_the_file_is_a_webuis_with_step_checkpoint_and_settings(settings_of: Run) -> None:
    config = settings_of()
    result = train(config)
    assert (result.why, result.step) == ("done", 12)
    written = torch.load(result.output, weights_only=True)
    assert {key for key in written if isinstance(key, int)} == {16, 24}
    assert isinstance(written[16], tuple)
    assert (written["step"], written["name"], written["sd_checkpoint_name"]) == (12, "style", "tiny")
    assert (written["layer_structure"], written["activation_func"], written["is_layer_norm"]) == (
        [1, 2, 1],
        "relu",
        True,
    )
    assert json.loads(written["training_config"])["steps"] == 12


def test_train_takes_a_file_a_mapping_or_a_config(settings_of: Run, tmp_path: Path) -> None:
    config = settings_of("one/style.pt", steps=2)
    (tmp_path / "config.yaml").write_text(schema.write(config))
    by_file = hnloader.train(tmp_path / "config.yaml")
    settings = {**SETTINGS, "steps": 2, "model": config.model, "images": config.images}
    steps: list[int] = []
    by_mapping = hnloader.train(
        {**settings, "output": str(tmp_path / "two" / "style.pt")},
        report=lambda event: event.message or steps.append(event.step),
    )
    by_config = hnloader.train(settings_of("three/style.pt", steps=2))
    assert steps[0] == 1
    assert steps[-1] == 2
    for result in (by_mapping, by_config):
        assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(by_file.output), strict=True))
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        hnloader.train({"stepps": 3})
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        hnloader.train(str(tmp_path / "none.yaml"))


def test_training_lowers_the_loss_and_touches_nothing_else(settings_of: Run) -> None:
    config = settings_of(steps=60, learning_rate="3e-3", measure_every=60, hypernetwork__norm=False, ema=0)
    training = prepare(config)
    pipeline = training.denoiser.pipeline
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    first = training.held_out_loss()
    result = training.run()
    assert result.history[-1]["held_out"] < first
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    assert not any(module._forward_pre_hooks for module in pipeline.unet.modules())


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


def test_an_embedding_moves_from_its_words_and_the_encoder_stays(settings_of: Run) -> None:
    config = settings_of("word.safetensors", method="embedding", embedding__vectors=3, embedding__initial_text="ab")
    training = prepare(config)
    pipeline = training.denoiser.pipeline
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


def test_a_trained_embedding_acts_as_the_one_that_diffusers_loads(settings_of: Run, tmp_path: Path) -> None:
    config = settings_of("word.pt", method="embedding", embedding__vectors=2)
    training = prepare(config)
    training.run()
    pipeline = training.denoiser.pipeline
    with torch.no_grad(), training.adapter.acting(training=False), training._averaged():
        ours = training.denoiser.encode_text("a <word> b").states
    pipeline.load_textual_inversion(str(training.output), token="<word>")
    theirs = training.denoiser.encode_text("a <word> b").states
    torch.testing.assert_close(ours, theirs)


def test_a_hypernetwork_of_chosen_widths(settings_of: Run) -> None:
    result = train(settings_of(hypernetwork__widths=[24], steps=2))
    assert hnloader.load(result.output).widths == (24,)


def test_checkpointing_computes_the_same_and_keeps_less(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(**changes: object) -> tuple[list[torch.Tensor], int]:
        """The gradients of a step, and how many bytes were kept for them."""
        training = prepare(settings_of(hypernetwork__dropout=0, **changes))

        def loss() -> torch.Tensor:
            return training.denoiser.losses(training._batch(training._order[0])).mean()

        with training.adapter.acting(training=True):
            loss().backward()
            found = [parameter.grad for parameter in training.adapter.parameters]
            return found, bytes_kept(training.denoiser.unet, loss, monkeypatch)

    (plain, all_bytes), (saving, fewer) = kept(), kept(checkpointing=True)
    assert fewer < 0.7 * all_bytes
    for one, two in zip(plain, saving, strict=True):
        torch.testing.assert_close(one, two)


# -- going on


def test_an_interrupted_training_ends_as_an_uninterrupted_one(settings_of: Run) -> None:
    whole = train(settings_of("whole/style.pt"))
    random.seed(0)
    for moment in sorted(random.sample(range(1, 12), 4)):
        config = settings_of(f"cut-{moment}/style.pt")
        training = prepare(config)

        def stop(event: Event, training: Any = training, moment: int = moment) -> None:
            if event.step == moment - 1 or moment == 1:
                training.stop()

        interrupted = training.run(stop)
        assert interrupted.why == "interrupted"
        assert interrupted.step == max(moment - 1, 1)
        again = prepare(config, resume=True)
        assert again.state.step == interrupted.step
        result = again.run()
        assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(whole.output), strict=True))
        assert result.history == whole.history
        assert result.best[:2] == whole.best[:2]


@pytest.mark.parametrize("method", ["hypernetwork", "embedding"])
def test_going_on_from_a_state_that_was_saved_before_a_kill(method: str, settings_of: Run) -> None:
    """Nothing after the last saved state is there, as after kill -9."""
    config = settings_of("a/style.pt", method=method, accumulation=2)
    expected = train(config)

    class KilledError(Exception):
        pass

    def kill(event: Event) -> None:
        if event.step == 10:
            raise KilledError

    killed = settings_of("b/style.pt", method=method, accumulation=2)
    with pytest.raises(KilledError):
        prepare(killed).run(kill)
    result = train(killed, resume=True)
    assert [path.name for path in states(folder_of(result.output))][-1] == "state-00000012.safetensors"
    if method == "hypernetwork":
        assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(expected.output), strict=True))
    else:
        assert torch.equal(load_embedding(result.output).vectors, load_embedding(expected.output).vectors)


def test_saved_states_are_not_lost_by_accident(settings_of: Run) -> None:
    config = settings_of(steps=4)
    train(config)
    with pytest.raises(ConfigError, match="--resume"):
        train(config)
    assert train(settings_of(steps=6), resume=True).step == 6
    assert train(config, restart=True).step == 4


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_another_origin_is_not_replaced_by_accident(resume: bool, settings_of: Run) -> None:
    config = settings_of(steps=2)
    output = Path(config.output)
    output.write_bytes(b"old")
    with pytest.raises(ConfigError, match="exists, and no saved state"):
        train(config, resume=resume)
    assert output.read_bytes() == b"old"
    train(config, restart=True)
    assert output.read_bytes() != b"old"


def test_a_damaged_state_is_skipped(settings_of: Run) -> None:
    config = settings_of()
    train(config)
    newest = states(folder_of(Path(config.output)))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    training = prepare(config, resume=True)
    assert training.state.step == 8
    assert any("damaged" in note for note in training.notes)


def test_a_state_of_another_architecture_is_refused(settings_of: Run) -> None:
    train(settings_of(steps=4))
    with pytest.raises(HypernetworkError, match="another architecture"):
        prepare(settings_of(hypernetwork__layer_structure=[1, 3, 1]), resume=True)
    with pytest.raises(HypernetworkError, match="the optimizer AdamW, not SGD"):
        prepare(settings_of(optimizer="sgd"), resume=True)


def test_a_full_disk_stops_neither_the_training_nor_older_states(
    settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of()
    real = states_on_disk.save_file
    calls = []

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(states_on_disk, "save_file", full)
    messages = []
    result = prepare(config).run(lambda event: messages.append(event.message))
    assert result.why == "done"
    assert any("step 8 is not saved" in message and "No space left" in message for message in messages)
    folder = folder_of(result.output)
    assert [path.name for path in states(folder)] == ["state-00000004.safetensors", "state-00000012.safetensors"]
    assert not list(folder.glob(".*"))


def test_a_diverging_training_stops_with_the_last_state_and_advice(settings_of: Run) -> None:
    config = settings_of()
    training = prepare(config)

    def poison(event: Event) -> None:
        if event.step == 6:
            with torch.no_grad():
                training.adapter.parameters[0].fill_(float("inf"))

    with pytest.raises(DivergedError, match=r"state-00000004.*learning_rate"):
        training.run(poison)
    resumed = prepare(config, resume=True)
    assert resumed.state.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in resumed.adapter.parameters)


def test_training_stops_when_it_is_no_longer_better(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(steps=50, measure_every=1, patience=2))
    measured = iter([3.0, 4.0, 2.0, 1.0, 1.0, 5.0, 0.5])
    monkeypatch.setattr(training, "held_out_loss", lambda: next(measured))
    result = training.run()
    assert (result.why, result.step) == ("no longer better", 6)
    loss, step, path = result.best
    assert (loss, step) == (1.0, 4)
    assert hnloader.load(path).metadata["step"] == 4
    assert hnloader.load(result.output).metadata["step"] == 6
    assert states(folder_of(result.output))[-1].name == "state-00000006.safetensors"


def test_a_state_goes_on_with_its_own_model_wherever_that_lies(
    settings_of: Run, tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    from diffusers import UNet2DConditionModel

    train(settings_of(steps=4))
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert prepare(settings_of(model=str(moved)), resume=True).state.step == 4
    unet = UNet2DConditionModel.from_pretrained(moved / "unet")
    with torch.no_grad():
        unet.conv_in.weight.mul_(1.01)
    unet.save_pretrained(moved / "unet")
    with pytest.raises(ConfigError, match=rf"trained on another model than moved: its setting model was {tiny_model}"):
        prepare(settings_of(model=str(moved)), resume=True)


def test_going_on_with_other_images_is_told(settings_of: Run, images: Path) -> None:
    train(settings_of(steps=4))
    said = "the images are others than when the state was saved"
    assert said not in prepare(settings_of(), resume=True).notes
    (images / "0.txt").write_text("another caption")
    assert said in prepare(settings_of(), resume=True).notes


# -- starting from other files


def test_training_goes_on_from_a_webuis_file_and_its_optimizer(settings_of: Run, tmp_path: Path) -> None:
    start = train(settings_of("start.pt", steps=3, ema=0)).output
    hypernetwork = hnloader.load(start).float().requires_grad_(True)
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-3)
    for parameter in hypernetwork.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    companion = {
        "optimizer_name": "AdamW",
        "hash": hashlib.sha256(start.read_bytes()).hexdigest()[:10],
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(companion, start.with_name("start.pt.optim"))
    training = prepare(settings_of("next.pt", start_from=str(start)))
    assert not any("optimizer" in note for note in training.notes)
    found = training.optimizer.state_dict()["state"]
    expected = optimizer.state_dict()["state"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[index]["exp_avg"], expected[index]["exp_avg"]) for index in expected)
    assert training.run().step == 12

    torch.save({**companion, "hash": "0" * 10}, start.with_name("start.pt.optim"))
    other = prepare(settings_of("other.pt", start_from=str(start)))
    assert "belongs to another file" in other.notes[-1]


def companion_of(start: Path, **changes: object) -> dict[str, Any]:
    hypernetwork = hnloader.load(start).float().requires_grad_(True)
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-3)
    for parameter in hypernetwork.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    whole = hashlib.sha256(start.read_bytes()).hexdigest()
    made = {"optimizer_name": "AdamW", "hash": whole[:10], "optimizer_state_dict": optimizer.state_dict()}
    return {key: value for key, value in {**made, **changes}.items() if value != "left out"}


def old_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["AdamW", None, "left out"])
def test_companions_of_old_webuis(large: bool, name: object, settings_of: Run, tmp_path: Path) -> None:
    """With the old hash of eight digits, and without a name for the optimizer, which was AdamW."""
    structure = [1, 120, 1] if large else [1, 2, 1]
    start = train(settings_of("start.pt", steps=1, ema=0, hypernetwork__layer_structure=structure)).output
    assert (start.stat().st_size > 0x100000) == large
    beside = start.with_name("start.pt.optim")
    torch.save(companion_of(start, optimizer_name=name, hash=old_hash(start)), beside)
    training = prepare(settings_of("next.pt", start_from=str(start), steps=2))
    assert not any("optimizer" in note for note in training.notes)
    assert len(training.optimizer.state_dict()["state"]) == len(training.adapter.parameters)
    assert training.run().step == 2
    torch.save(companion_of(start, optimizer_name=name, hash="0" * 8), beside)
    assert "belongs to another file" in prepare(settings_of("other.pt", start_from=str(start))).notes[-1]


def test_companions_that_do_not_fit(settings_of: Run, tmp_path: Path) -> None:
    start = train(settings_of("start.pt", steps=1, ema=0)).output
    beside = start.with_name("start.pt.optim")
    sound = companion_of(start)
    state = sound["optimizer_state_dict"]["state"]
    broken: list[object] = [
        {**state, 0: {**state[0], "exp_avg": torch.zeros(3)}},
        {**state, 0: {"step": torch.tensor(1.0)}},
        {**state, 0: {**state[0], "exp_avg": "x"}},
        {**state, 0: {**state[0], "exp_avg_sq": torch.full_like(state[0]["exp_avg_sq"], float("nan"))}},
        {**state, 0: {**state[0], "step": None}},
    ]
    for each in broken:
        torch.save({**sound, "optimizer_state_dict": {**sound["optimizer_state_dict"], "state": each}}, beside)
        with pytest.raises(HypernetworkError, match=r"start.pt.optim"):
            prepare(settings_of("next.pt", start_from=str(start)))


def test_steps_are_counted_on_from_the_file_to_start_from(settings_of: Run, tmp_path: Path) -> None:
    start = train(settings_of("start.pt", steps=6)).output
    changes = {"steps": 4, "start_from": str(start), "learning_rate": "1e-3:7, 1e-4:9, 1e-5", "warmup": 0}
    again = settings_of("next.pt", **changes)
    rates: list[float] = []
    messages: list[str] = []
    training = prepare(again)

    def report(event: Event) -> None:
        messages.append(event.message)
        if not event.message:
            rates.append(event.rate)
        if event.step == 2:
            training.stop()

    assert training.run(report).step == 2
    assert hnloader.load(training.output).metadata["step"] == 8
    assert any("6 steps" in message and "will state 10" in message for message in messages)
    resumed = prepare(again, resume=True)
    resumed.run(report)
    assert hnloader.load(training.output).metadata["step"] == 10
    assert list(dict.fromkeys(rates)) == [1e-3, 1e-4, 1e-5]

    whole = train(settings_of("whole/next.pt", **changes)).output
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(training.output), strict=True))


def test_a_training_that_overwrites_the_file_it_started_from_counts_once(settings_of: Run) -> None:
    train(settings_of("style.pt", steps=3), restart=True)
    config = settings_of("style.pt", steps=5, start_from=str(settings_of("style.pt").output))
    training = prepare(config, restart=True)
    training.run(lambda event: training.stop())
    assert hnloader.load(training.output).metadata["step"] == 4
    resumed = prepare(config, resume=True)
    assert not any("was trained for" in note for note in resumed.notes)
    assert hnloader.load(resumed.run().output).metadata["step"] == 8


def test_an_embedding_counts_on_too(settings_of: Run) -> None:
    start = train(settings_of("word.pt", method="embedding", steps=3)).output
    result = train(settings_of("more.safetensors", method="embedding", steps=2, start_from=str(start)))
    assert load_embedding(result.output).step == 5


@pytest.mark.parametrize("step", [None, -3, "many", True, 2.5, [1]])
def test_steps_that_a_file_does_not_state_are_none(step: object, settings_of: Run) -> None:
    start = train(settings_of("start.pt", steps=1)).output
    written = torch.load(start, weights_only=True)
    torch.save({**written, "step": step}, start)
    assert prepare(settings_of("next.pt", start_from=str(start))).state.before == 0


# -- what trains nothing, or nothing good


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
    config = settings_of("word.pt", method="embedding", embedding__vectors=vectors, steps=3)
    training = prepare(config)
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    training.run()
    for old, new in zip(before, training.adapter.parameters, strict=True):
        assert (old != new).any(dim=1).all()  # every vector
    cut = any("of which the model reads the first 30" in note for note in training.notes)
    assert cut == (vectors > 1 or "z a b <word>" not in caption)


def test_more_vectors_than_the_encoder_reads_are_refused(settings_of: Run) -> None:
    with pytest.raises(ConfigError, match=r"31 vectors.*reads 30 tokens"):
        prepare(settings_of("word.pt", method="embedding", embedding__vectors=31))


@pytest.mark.parametrize("method", ["hypernetwork", "embedding"])
def test_a_training_without_gradients_is_an_error(
    method: str, settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(settings_of(method=method))
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    real = training.denoiser.losses

    def cut(*given: Any) -> Any:
        losses = real(*given)
        return losses.detach().requires_grad_() if losses.requires_grad else losses

    monkeypatch.setattr(training.denoiser, "losses", cut)
    with pytest.raises(HypernetworkError, match=rf"step 1: no gradient arrives at the {method}"):
        training.run()
    assert not training.output.exists()
    assert all(torch.equal(a, b) for a, b in zip(before, training.adapter.parameters, strict=True))


@pytest.mark.parametrize("steps", [3, 40])
def test_gradients_that_stay_zero_are_an_error(steps: int, settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(steps=steps, hypernetwork__norm=False, hypernetwork__dropout=0))
    real = training.denoiser.losses
    monkeypatch.setattr(training.denoiser, "losses", lambda *given: real(*given) * 0)
    with pytest.raises(HypernetworkError, match=rf"step {min(steps, 10)}: no gradient arrives"):
        training.run()


def test_a_few_steps_without_gradients_are_no_error(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(hypernetwork__norm=False))
    real, calls = training.denoiser.losses, iter(range(1000))
    monkeypatch.setattr(training.denoiser, "losses", lambda *given: real(*given) * float(next(calls) > 70))
    training.config = read_config(None, {**schema.plain(training.config), "measure_every": 0})
    monkeypatch.setattr(training.denoiser, "losses", lambda *given: real(*given) * float(next(calls) > 5))
    assert training.run().step == 12


def messages_with(training: Any, monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[str]:
    """Run with these losses at fixed noise, that of step 0 first."""
    given = iter(losses)
    monkeypatch.setattr(training, "_fixed_loss", lambda images: next(given))
    messages: list[str] = []
    result = training.run(lambda event: event.message and messages.append(event.message))
    assert result.first == losses[0]
    return [message for message in messages if "before the first step" in message]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0, 1.2, 1.1, 1.3], "nothing is better than before: the held-out loss was 1 before the first step, and the"),
        ([1.0, 1.0, 1.0, 1.0], "the lowest since then is 1 at step 4"),
        ([1.0, float("inf"), float("nan"), float("nan")], "it is not finite now"),
        ([1.0, 0.8, 1.1, 1.3], "fell to 0.8 at step 4 and is 1.3 now"),
    ],
)
def test_a_training_that_makes_nothing_better_says_so(
    losses: list[float], said: str, settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(settings_of())
    found = messages_with(training, monkeypatch, losses)
    assert said in found[-1]
    assert "learning_rate (now 1e-3)" in found[-1]
    assert said in html.unescape((folder_of(training.output) / "report.html").read_text())


def test_a_training_that_makes_something_better_says_nothing(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages_with(prepare(settings_of()), monkeypatch, [1.0, 1.2, 1.1, 0.9]) == []


def test_without_held_out_images_those_of_the_training_are_measured(
    settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = messages_with(prepare(settings_of("a.pt", data__held_out=0)), monkeypatch, [1.0, 1.5])
    assert "the loss on the training images was 1 before the first step" in found
    assert messages_with(prepare(settings_of("b.pt", data__held_out=0)), monkeypatch, [1.0, 0.5]) == []


def test_the_measurement_of_step_0_is_kept_over_an_interruption(settings_of: Run) -> None:
    config = settings_of()
    training = prepare(config)
    expected = training.held_out_loss()
    training.run(lambda event: training.stop())
    resumed = prepare(config, resume=True)
    assert resumed.state.first == expected
    result = resumed.run()
    assert result.first == expected
    assert result.history[0] == {"step": 0.0, "rate": result.history[0]["rate"], "held_out": expected}
    assert [entry["step"] for entry in result.history] == [0, 4, 8, 12]
    assert prepare(settings_of("none.pt", measure_every=0)).run().first is None


@pytest.mark.parametrize("kind", ["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"])
def test_initializations_that_begin_broken_are_remarked(kind: str, settings_of: Run) -> None:
    for norm in (False, True):
        changes = {"hypernetwork__initialization": kind, "hypernetwork__norm": norm, "steps": 1}
        training = prepare(settings_of(f"{kind}-{norm}.pt", **changes))
        said = [note for note in training.notes if "initialization" in note]
        assert len(said) == (kind != "Normal" and not norm)
        assert all(kind in note and "Take Normal, or norm: true" in note for note in said)


def test_files_to_start_from_that_do_not_fit(settings_of: Run, tmp_path: Path) -> None:
    from tests.support.tiny_model import save_hypernetwork

    wrong = save_hypernetwork(tmp_path / "wrong.pt", widths=(768,))
    with pytest.raises(ConfigError, match="768"):
        prepare(settings_of(start_from=str(wrong)))
    with pytest.raises(ConfigError, match="99"):
        prepare(settings_of(hypernetwork__widths=[99]))
    with pytest.raises(HypernetworkError, match="does not exist"):
        prepare(settings_of(start_from=str(tmp_path / "none.pt")))


def test_images_move_by_up_to_so_many_pixels(settings_of: Run) -> None:
    training = prepare(settings_of(data__shift=2, data__flip=False))
    asked: list[tuple[int, int]] = []
    plain = training.cache.latents

    def latents(image: Any, *, flipped: bool, shift: tuple[int, int]) -> Any:
        asked.append(shift)
        return plain(image, flipped=flipped, shift=shift)

    training.cache.latents = latents  # type: ignore[method-assign]
    for number in range(60):
        training._batch(training._order[number])
    assert {right for right, _ in asked} == {down for _, down in asked} == {-2, -1, 0, 1, 2}

    image = training._images[0]
    sample = prepare_image(image, training.config.data, training.resolution, training.denoiser.grain)
    for shift in ((1, -2), (0, 0)):
        mean, _ = training.denoiser.encode_image(moved(sample, *shift))
        assert torch.equal(plain(image, shift=shift).mean, mean)
    assert not torch.equal(plain(image, shift=(1, -2)).mean, plain(image).mean)


# -- parts of the loss


def test_masks_take_parts_of_the_image_out_of_the_loss(settings_of: Run, images: Path) -> None:
    from PIL import Image

    for path in list(images.glob("?.png")):
        with Image.open(path) as image:
            mask = Image.new("L", image.size)
            mask.paste(255, (0, 0, image.width // 2, image.height))
        mask.save(path.with_name(path.stem + ".mask.png"))
    training = prepare(settings_of(data__masks=True, data__flip=False))
    batch = training._batch(training._order[0])
    assert batch.masks is not None
    losses = training.denoiser.losses(batch)
    said, wanted = training.denoiser.predict(batch)
    half = batch.latents.shape[-1] // 2
    expected = (said - wanted)[..., :half].pow(2).mean(dim=(1, 2, 3))
    # Scaling the mask softens its edge.
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)
    assert not torch.allclose(losses, (said - wanted).pow(2).mean(dim=(1, 2, 3)), rtol=0.02)


def test_prior_preservation_holds_other_prompts(settings_of: Run) -> None:
    def moved(weight: float) -> float:
        changes = {"prior__weight": weight, "prior__prompts": ["a cat"], "steps": 40, "learning_rate": "3e-3", "ema": 0}
        training = prepare(settings_of(f"{weight}/style.pt", **changes))
        training.run()
        with torch.no_grad(), training.adapter.acting(training=False):
            batch = training._batch(training._order[3])
            return float(training._prior_loss(batch, training._order[3]))

    assert moved(20.0) < 0.5 * moved(0.0)


def test_previews_are_made_with_the_same_seeds_and_tiled(settings_of: Run) -> None:
    from PIL import Image

    changes = {"previews__every": 4, "previews__steps": 2, "previews__prompts": ["a", "{name} b"]}
    result = train(settings_of(steps=8, learning_rate="1e-2", **changes))
    folder = folder_of(result.output) / "previews"
    names = sorted(path.name for path in folder.glob("step-*.png"))
    assert names == [f"step-{step:08d}-{row}.png" for step in (1, 4, 8) for row in (0, 1)]
    assert (folder / "step-00000001-0.png").read_bytes() != (folder / "step-00000008-0.png").read_bytes()
    with Image.open(folder / "previews.gif") as animation:
        assert animation.n_frames == 3
    with Image.open(folder / "previews.png") as tiled:
        assert tiled.width > tiled.height


def test_the_report_shows_everything_in_one_file(settings_of: Run, images: Path) -> None:
    (images / "0.txt").write_text("<script>alert('a')</script> & more")
    (images / "broken.png").write_text("")
    result = train(settings_of(previews__every=6, previews__steps=2, measure_every=3))
    page = (folder_of(result.output) / "report.html").read_text()
    for words in ("held out", "layer_structure", "<polyline", "broken.png", "cannot be read", torch.__version__):
        assert words in page
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 7  # the previews and six images


def test_what_a_killed_training_had_half_written_is_cleared_up(settings_of: Run) -> None:
    config = settings_of(steps=2)
    folder = folder_of(Path(config.output))
    halves = [folder.parent, folder, folder / "cache", folder / "previews"]
    for place in halves:
        place.mkdir(exist_ok=True)
        (place / f".half.0123456789ab{TEMPORARY_SUFFIX}").write_bytes(b"half")
    train(config)
    assert not list(folder.parent.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_an_old_state_that_cannot_be_removed_stops_nothing(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("state-"):
            raise OSError(30, "Read-only file system")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = train(settings_of(steps=4, save_every=1, keep=1))
    assert result.why == "done"
    assert len(states(folder_of(result.output))) == 4


def test_a_second_training_of_the_same_output_is_refused_while_one_runs(settings_of: Run) -> None:
    config = settings_of(steps=3, save_every=1)
    second = prepare(config)
    refused: list[str] = []

    def meanwhile(event: Event) -> None:
        if event.step == 1:
            with pytest.raises(HypernetworkError, match="another training of") as caught:
                second.run()
            refused.append(str(caught.value))
            with pytest.raises(HypernetworkError, match="another training of"):
                prepare(config, restart=True)

    train(config, report=meanwhile)
    assert len(refused) == 1
    assert len(states(folder_of(Path(config.output)))) == 3
