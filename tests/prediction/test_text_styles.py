"""The training of predictors for language models: it learns, resumes bit for bit, and has a file for each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hnloader.attention import attach
from hnloader.errors import ConfigError, DatasetError
from hnloader.prediction.predictor import Emitted, Predictor
from hnloader.prediction.predictor_file import load_predictor
from hnloader.prediction.predictor_task import PredictorTask
from hnloader.prediction.row_hooks import RowHooks
from hnloader.scopes import Scope
from hnloader.training import prepare
from hnloader.training.predictor_config import DesignConfig
from tests.support.errors import raises
from tests.support.predictors import save_styles
from tests.support.small_decoders import LAYERS, WIDTH, make_decoder
from tests.support.small_language_models import save_texts, sentences
from tests.support.trainings import Run


def test_the_training_tells_styles_apart(text_settings: Run) -> None:
    changes = {"steps": 60, "learning_rate": 2e-2, "validate_every_n_steps": 30, "predictor__design__per_layer": True}
    changes |= {"optimizer": "adamw"}
    trainer = prepare(text_settings(batch_size=4, **changes))
    result = trainer.run()
    assert result.best is not None
    assert result.best.loss < 0.9 * (result.initial_loss or 0)
    task = trainer.task
    assert isinstance(task, PredictorTask)
    with trainer.applied(), torch.no_grad():
        own = task.validation_loss()
    assert own < task._losses["of another style"] < task._losses["none"]
    stored = load_predictor(result.output)
    assert stored.predictor.kind == "text"
    assert (stored.about.step, stored.about.styles) == (60, 3)
    assert len(stored.predictor.scopes) == LAYERS


def test_a_resumed_training_ends_with_the_same_bits(text_settings: Run) -> None:
    whole = prepare(text_settings("whole.safetensors", optimizer="muon")).run()
    trainer = prepare(text_settings("parts.safetensors", optimizer="muon"))
    part = trainer.run(lambda event: trainer.stop() if event.step == 3 else None)
    assert (part.reason, part.step) == ("interrupted", 3)
    rest = prepare(text_settings("parts.safetensors", optimizer="muon"), resume=True).run()
    one, other = load_file(whole.output), load_file(rest.output)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_predictor_is_trained_further(text_settings: Run, tiny_text_predictor: Path) -> None:
    known = load_predictor(tiny_text_predictor).predictor
    trainer = prepare(text_settings(start_from=str(tiny_text_predictor), steps=3))
    pairs = zip(trainer.task.predictor.parameters(), known.parameters(), strict=True)  # type: ignore[attr-defined]
    assert all(torch.equal(one, other) for one, other in pairs)
    again = load_predictor(trainer.run().output)
    assert again.about.step == 9
    # What is usual among texts is learned once.
    assert torch.equal(again.predictor.encoder.usual.mean, known.encoder.usual.mean)  # type: ignore[union-attr,arg-type]


def test_previews_and_the_report_show_texts(text_settings: Run) -> None:
    result = prepare(text_settings(previews__every_n_steps=3, previews__max_tokens=3)).run()
    folder = result.output.with_suffix(".training")
    previews = (folder / "previews" / "previews.txt").read_text(encoding="utf-8")
    assert previews.count("step 6\n") == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "hypernetwork of another style" in page
    assert page.count("Style ") == 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@torch.no_grad()
def test_the_rows_of_a_batch_have_the_hypernetworks_of_their_styles(family: str) -> None:
    model = make_decoder(family)
    torch.manual_seed(0)
    design = DesignConfig(core_size=3, style_size=6, embedding_size=4, hidden_size=10)
    predictor = Predictor([Scope(WIDTH)], 12, design, "text")
    predictor.head.weight.normal_()
    emitted = predictor.read(torch.randn(2, 3, 12))
    tokens = torch.randint(0, 50, (2, 7))

    def logits(rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=rows, use_cache=False).logits
        return found

    plain, hooks = logits(tokens), RowHooks(model)
    with hooks.attached():
        with hooks.applied(predictor.sides(emitted)):
            both = logits(tokens)
        assert torch.equal(logits(tokens), plain)
    for row in range(2):
        mine = predictor.hypernetwork(Emitted(emitted.cores[row : row + 1], emitted.hidden[row : row + 1]))
        with attach(model, mine, 1.0):
            alone = logits(tokens[row : row + 1])
        assert torch.allclose(both[row : row + 1], alone, atol=1e-4)
        assert not torch.allclose(both[row : row + 1], plain[row : row + 1], atol=1e-3)


def test_styles_and_model_must_fit(text_settings: Run, tiny_model: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "'styles'", "texts", "images"):
        prepare(text_settings(model=str(tiny_model)))
    with raises(ConfigError, "'styles'", "images", "language model"):
        prepare(text_settings(styles=str(save_styles(tmp_path / "images"))))
    with raises(ConfigError, "text.block_size"):
        prepare(text_settings(text__block_size=10_000))


def test_bad_folders_of_texts(text_settings: Run, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    save_texts(folder / "red", sentences(3))
    (save_texts(folder / "empty", ["", " "]) / "captions.md").write_text("no text")
    save_texts(folder / "one", sentences(1))
    with raises(DatasetError, "1 style", "2 texts"):
        prepare(text_settings(styles=str(folder)))
    save_texts(folder / "blue", [*sentences(3, color="blue"), ""])
    trainer = prepare(text_settings(styles=str(folder), data__validation_split=0))
    assert trainer.task.amount == "2 styles"
    for words in ("empty", "one: found a single usable text", "1 problem with texts"):
        assert any(words in note for note in trainer.notes)
