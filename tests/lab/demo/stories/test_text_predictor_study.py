"""The study of the bundled predictor for texts: what it counts, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.demo import text_predictor_path
from lab.demo.stories import text_predictor_study
from lab.demo.stories.text_predictor_study import TextStudy, main, shares, subjects


def test_shares_of_texts_and_units() -> None:
    found = shares(["She waits. He waited.", "He waited.", ""], lambda unit: "waited" in unit)
    assert found == (1 / 3, 2 / 4)


def test_the_stories_of_a_style_are_in_it_and_differ() -> None:
    for subject in subjects(2):
        told = [*subject.given, *subject.others]
        assert len({str(story) for story in told}) == len(told)
        texts = [story.body for story in told]
        assert shares(texts, subject.shows)[1] > 0.99


@pytest.mark.slow
def test_the_bundled_predictor_reads_a_style(tmp_path: Path) -> None:
    study = TextStudy(text_predictor_path(), prompts=1)
    first, second = [subject for subject in subjects(1) if subject.name in ("past", "unseen 00")]
    own, other = study.predict(first, tmp_path), study.predict(second, tmp_path)
    assert study.loss(first, own) < study.loss(first, None)
    assert study.loss(first, own) < study.loss(first, other)
    assert study.speed(study.written(first, tmp_path))[1]


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_style(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_predictor_study, "MEASURED", 2)
    assert main(["--prompts", "2", "--unseen", "1"]) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")]
    assert rows == ["| style", "| past", "| bare", "| doubt", "| reversed", "| sea", "| unseen 00"]
    assert "the same bits each time" in out
