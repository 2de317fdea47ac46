"""Train on texts: the loss, the loop, resuming, previews and errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import hnloader
from hnloader.errors import ConfigError, DatasetError, ModelError
from hnloader.training import prepare, read_config, train
from hnloader.training.method_comparison import Plan
from hnloader.training.rate_search import find_learning_rate
from hnloader.training.run_folder import run_folder
from hnloader.training.text_batches import padded
from tests.support.small_decoders import WIDTH
from tests.support.small_language_models import save_language_model, save_lines, save_texts, sentences
from tests.support.trainings import raises, weights

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("models") / "llm", chat=True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("texts"), sentences(40))


@pytest.fixture
def settings_of(llm: Path, texts: Path, tmp_path: Path) -> Run:
    def make(name: str = "style.safetensors", **changes: object) -> Any:
        given = {"model": str(llm), "texts": str(texts), "output": str(tmp_path / name), "steps": 12}
        given |= {"learning_rate": "1e-3", "lr_warmup_steps": 2, "text.block_size": 32}
        given |= {"save_every_n_steps": 4, "validate_every_n_steps": 4, "previews.every_n_steps": 0}
        given |= {"hypernetwork.dropout": 0.2, "ema_decay": 0.9}
        return read_config(None, {**given, **{key.replace("__", "."): value for key, value in changes.items()}})

    return make


def test_the_output_is_a_file_for_language_models(settings_of: Run) -> None:
    result = train(settings_of("style"))
    assert (result.reason, result.step, result.output.name) == ("done", 12, "style.safetensors")
    made = hnloader.load(result.output)
    assert [str(scope) for scope in made.scopes] == [f"{WIDTH}:self"]
    assert (made.metadata["step"], made.metadata["name"], made.metadata["sd_checkpoint_name"]) == (12, "style", "llm")
    assert json.loads(str(made.metadata["training_config"]))["texts"]


def test_training_lowers_the_loss_and_leaves_the_model_alone(settings_of: Run) -> None:
    training = prepare(settings_of(steps=60, learning_rate="1e-2", ema_decay=0, hypernetwork__dropout=0))
    model = training.task.language.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = training.validator.loss()
    result = training.run()
    assert result.history[-1]["validation_loss"] < first - 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trained = result.history[-1]["validation_loss"]
    with torch.no_grad():
        with hnloader.attach(model, result.output):
            assert training.task.validation_loss() == pytest.approx(trained, abs=1e-6)
        assert abs(training.task.validation_loss() - trained) > 0.5


def test_the_loss_is_that_of_each_text_alone(settings_of: Run, tmp_path: Path) -> None:
    rows = [{"text": text} for text in sentences(9)] + [{"prompt": "the cat", "completion": "sees the dog and then ."}]
    path = save_lines(tmp_path / "rows.jsonl", rows)
    training = prepare(settings_of(texts=str(path), data__validation_split=0.3, hypernetwork__dropout=0))
    task = training.task
    model = task.language.model

    def alone(row: Any) -> tuple[float, int]:
        logits = model(row.tokens[None]).logits[0, :-1]
        losses = functional.cross_entropy(logits, row.tokens[1:], reduction="none")[row.trained[1:]]
        return float(losses.sum()), len(losses)

    with torch.no_grad(), task.adapter.enabled(training=True):
        for index in range(2 * len(task.batches)):
            found = [alone(row) for row in task.batches[index]]
            expected = sum(loss for loss, _ in found) / sum(count for _, count in found)
            assert float(task.loss(index)) == pytest.approx(expected, rel=1e-5)
        found = [alone(row) for row in task.validation_rows]
        expected = sum(loss for loss, _ in found) / sum(count for _, count in found)
        assert task.validation_loss() == pytest.approx(expected, rel=1e-5)
    assert len(task.validation_rows) == 3
    assert len(task.rows) == 7


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gpt_neox", "opt", "mistral", "gemma3", "falcon_new"])
def test_padding_changes_no_text(family: str, settings_of: Run, tmp_path: Path) -> None:
    model = save_language_model(tmp_path / family, family)
    (tmp_path / "texts").mkdir()
    save_texts(tmp_path / "texts", ["the cat sees the dog . " * 3, "a bird ."])
    task = prepare(settings_of(model=str(model), texts=str(tmp_path / "texts"), data__validation_split=0)).task
    rows = sorted(task.rows, key=lambda row: len(row.tokens))
    tokens, _ = padded(rows, torch.device("cpu"))
    with torch.no_grad():
        together = task.language.model(tokens, use_cache=False).logits
        for index, row in enumerate(rows):
            single = task.language.model(row.tokens[None], use_cache=False).logits[0]
            torch.testing.assert_close(together[index, : len(row.tokens)], single, rtol=0, atol=1e-5)


def test_layers_below_the_first_scope_record_no_gradients(settings_of: Run) -> None:
    task = prepare(settings_of(hypernetwork__scopes=[f"{WIDTH}:self:1"])).task
    seen: list[bool] = []
    for layer in task.language.model.model.layers:
        layer.register_forward_hook(lambda module, given, output: seen.append(_first(output).requires_grad))
    with task.adapter.enabled(training=True):
        task.loss(0).backward()
    assert seen[:3] == [False, True, True]
    assert all(parameter.grad is not None for parameter in task.adapter.parameters)
    assert all(parameter.grad is None for parameter in task.language.model.parameters())


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("moment", [1, 6, 9])
def test_a_killed_training_gives_the_same_weights(moment: int, settings_of: Run) -> None:
    changes = {"gradient_accumulation_steps": 2, "previews__every_n_steps": 5, "previews__max_tokens": 3}
    expected = train(settings_of("whole/style", **changes))
    config = settings_of("cut/style", **changes)

    class KilledError(Exception):
        pass

    def kill(event: Any) -> None:
        if event.step == moment:
            raise KilledError

    with pytest.raises(KilledError):
        prepare(config).run(kill)
    result = train(config, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(expected.output), strict=True))
    assert result.history == expected.history


def test_early_stopping_and_best_weights(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(steps=50, validate_every_n_steps=1, early_stopping_patience=2))
    measured = iter([6.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(training.validator, "loss", lambda: next(measured))
    result = training.run()
    assert (result.reason, result.step, result.best.step) == ("early_stopped", 3, 1)
    assert hnloader.load(result.best.path).metadata["step"] == 1
    assert result.best.path.name == "best.safetensors"


def test_changed_texts_and_another_model_are_noticed(settings_of: Run, tmp_path: Path) -> None:
    config = settings_of(steps=2)
    train(config)
    (tmp_path / "more").mkdir()
    changed = settings_of(steps=3, texts=str(save_texts(tmp_path / "more", sentences(8))))
    assert any("texts changed" in note for note in prepare(changed, resume=True).notes)
    other = save_language_model(tmp_path / "other", num_hidden_layers=2)
    with raises(ConfigError, "llm", "other"):
        prepare(settings_of(steps=3, model=str(other)), resume=True)


def test_previews_are_the_same_texts_for_the_same_weights(settings_of: Run, llm: Path) -> None:
    changes = {"previews__prompts": ["the cat", "the {name}"], "previews__max_tokens": 5, "learning_rate": "1e-9"}
    result = train(settings_of(steps=8, previews__every_n_steps=4, **changes))
    folder = run_folder(result.output) / "previews"
    made = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert sorted(made) == [f"step-{step:08d}.json" for step in (1, 4, 8)]
    assert [entry["prompt"] for entry in made["step-00000001.json"]] == ["the cat", "the style"]
    assert made["step-00000001.json"] == made["step-00000008.json"]
    assert all(1 <= len(entry["text"].split()) <= 5 for entry in made["step-00000001.json"])
    listed = (folder / "previews.txt").read_text()
    assert listed.count("the cat") >= 3
    assert "step 8" in listed
    page = (run_folder(result.output) / "report.html").read_text()
    assert made["step-00000008.json"][0]["text"].split()[0] in page


def test_trackers_get_losses_and_texts(settings_of: Run) -> None:
    result = train(settings_of(steps=2, previews__every_n_steps=2, previews__max_tokens=3, trackers=["tensorboard"]))
    (file,) = (run_folder(result.output) / "logs").glob("events.out.tfevents.*")
    written = file.read_bytes()
    for tag in (b"validation_loss", b"learning_rate", b"preview 0"):
        assert tag in written


def test_previews_continue_validation_texts_by_default(settings_of: Run, tmp_path: Path) -> None:
    long = [f"{text} and then the old king follows the queen" for text in sentences(6)]
    task = prepare(settings_of(texts=str(save_texts(tmp_path / "long", long)), previews__count=2)).task
    assert len(task.preview_prompts) == 2
    (held,) = task._validation_documents
    assert held.parts[0].text.startswith(task.preview_prompts[0])
    assert 3 < len(task.preview_prompts[0].split()) < 9


def test_chats_are_trained_on(settings_of: Run, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "the cat ?"}, {"role": "assistant", "content": "a dog ."}]
    path = save_lines(tmp_path / "chat.jsonl", [{"messages": chat}] * 6)
    task = prepare(settings_of(texts=str(path))).task
    assert [int(row.trained.sum()) for row in task.rows] == [4] * 5
    assert task.preview_prompts == ("user: the cat ? bot: ",)


def test_the_report_and_the_notes(settings_of: Run, tmp_path: Path) -> None:
    folder = save_texts(tmp_path / "few", ["<b>the cat</b> sees .", "the dog sees the king ."])
    (folder / "broken.txt").write_bytes(b"\xff\xff")
    messages: list[str] = []
    training = prepare(settings_of(texts=str(folder), steps=4, text__block_size=64))
    result = training.run(lambda event: messages.append(event.message))
    assert any("broken.txt" in message for message in messages)
    assert any("less than a batch of 64" in message for message in messages)
    page = (run_folder(result.output) / "report.html").read_text()
    assert "2 texts" in page
    assert "broken.txt" in page
    assert "<script" not in page


def test_pieces_of_few_documents_are_for_validation(settings_of: Run, tmp_path: Path) -> None:
    folder = save_texts(tmp_path / "book", [" ".join(sentences(60))])
    task = prepare(settings_of(texts=str(folder), data__validation_split=0.25)).task
    assert len(task.validation_rows) == round(0.25 * (len(task.rows) + len(task.validation_rows)))
    assert task.has_validation
    none = prepare(settings_of("none", texts=str(save_texts(tmp_path / "one", ["the cat sees ."])))).task
    assert not none.has_validation
    assert math.isfinite(none.validation_loss())


def test_the_rate_follows_from_the_width(settings_of: Run) -> None:
    assert prepare(settings_of(learning_rate="auto")).config.learning_rate == pytest.approx(3e-3)


def test_learning_rates_are_searched(settings_of: Run) -> None:
    found = find_learning_rate(settings_of(learning_rate="auto"), seconds=0.1)
    assert len(found.tried) == 7
    assert all(each.loss != found.initial_loss for each in found.tried)


def test_gradient_checkpointing_gives_the_same_gradients(settings_of: Run) -> None:
    def gradients(**changes: object) -> list[torch.Tensor]:
        task = prepare(settings_of(hypernetwork__dropout=0, hypernetwork__scopes=["32:self:1-"], **changes)).task
        calls.clear()
        layers = task.language.model.model.layers
        for number, layer in enumerate(layers):
            layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        with task.adapter.enabled(training=True):
            task.loss(0).backward()
        return [parameter.grad for parameter in task.adapter.parameters]

    calls: list[int] = []
    plain = gradients()
    assert calls == [0, 1, 2]
    for one, other in zip(plain, gradients(gradient_checkpointing=True), strict=True):
        torch.testing.assert_close(one, other)
    # Layers below the first scope are computed once.
    assert sorted(calls) == [0, 1, 1, 2, 2]


def test_scopes_have_their_own_weights(settings_of: Run) -> None:
    scopes = [f"{WIDTH}:self:0", f"{WIDTH}:self:1-"]
    result = train(settings_of(steps=1, hypernetwork__scopes=scopes))
    assert [str(scope) for scope in hnloader.load(result.output).scopes] == scopes
    more = train(settings_of("more", steps=1, start_from=str(result.output)))
    assert hnloader.load(more.output).metadata["step"] == 2


def test_each_layer_has_its_own_weights(settings_of: Run) -> None:
    result = train(settings_of(steps=1, hypernetwork__scopes=["each"]))
    assert [str(scope) for scope in hnloader.load(result.output).scopes] == [f"{WIDTH}:self:{n}" for n in range(3)]


# -- errors


def test_contradicting_settings(settings_of: Run, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": "images"}, "'texts'"),
        ({"method": "embedding"}, "'method'"),
        ({"prior__weight": 1}, "'prior.weight'"),
        ({"name": "style.pt"}, "'output'"),
        ({"method": "lora", "name": "style.safetensors"}, "'output'"),
        ({"text__block_size": 129}, "128"),
        ({"text__block_size": 1}, "'text.block_size'"),
        ({"hypernetwork__scopes": [f"{WIDTH}:self:7"]}, "'hypernetwork.scopes'"),
        ({"hypernetwork__scopes": ["x"]}, "'hypernetwork.scopes'"),
        ({"hypernetwork__scopes": ["each", f"{WIDTH}"]}, "'hypernetwork.scopes'"),
        ({"hypernetwork__scopes": [f"{WIDTH}"], "hypernetwork__widths": [WIDTH]}, "'hypernetwork.scopes'"),
        ({"hypernetwork__widths": [99]}, "99"),
    ]
    for changes, fact in cases:
        with raises(ConfigError, fact):
            prepare(settings_of(**changes))


def test_images_and_texts_need_their_own_models(settings_of: Run, llm: Path, tiny_model: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "'texts'", "tiny"):
        prepare(settings_of(model=str(tiny_model)))
    with raises(ConfigError, "'images'", "llm"):
        prepare(read_config(None, {"model": str(llm), "images": str(tmp_path), "output": str(tmp_path / "a.pt")}))


def test_unusable_texts(settings_of: Run, tmp_path: Path) -> None:
    with raises(DatasetError, "does not exist"):
        prepare(settings_of(texts=str(tmp_path / "nowhere")))
    short = save_lines(tmp_path / "short.jsonl", [{"prompt": "the cat " * 40, "completion": "sees"}])
    with raises(DatasetError, "short.jsonl, line 1", "32"):
        prepare(settings_of(texts=str(short)))


def test_models_without_tokenizer_or_projections(settings_of: Run, tmp_path: Path) -> None:
    bare = save_language_model(tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    with raises(ModelError, str(bare), "tokenizer"):
        prepare(settings_of(model=str(bare)))
    (bare / "config.json").write_text("{broken")
    with raises(ModelError, str(bare)):
        prepare(settings_of(model=str(bare)))


def test_methods_are_compared_on_images_only(settings_of: Run) -> None:
    with raises(ConfigError, "'texts'"):
        Plan(settings_of(), ["the cat"])
