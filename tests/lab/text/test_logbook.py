"""The texts and the run of `make real-text`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lab.text.__main__ import main
from lab.text.logbook import page, style_share, write_pages
from tests.support.small_language_models import save_language_model


def test_pages_are_in_their_style() -> None:
    pages = [page(random.Random(seed)) for seed in range(50)]
    assert len(set(pages)) == 50
    assert style_share(pages) == 1
    assert style_share(["Once upon a time there was a lamp.", "At 10:30. one ship", pages[0]]) == pytest.approx(1 / 3)


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    one, two = (write_pages(tmp_path / name, 3) for name in "ab")
    assert [path.read_text() for path in sorted(one.iterdir())] == [path.read_text() for path in sorted(two.iterdir())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_run_with_a_tiny_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_language_model(tmp_path / "llm")
    assert main(["--model", str(model), "--work", str(tmp_path / "work"), "--minutes", "0.001"]) == 0
    printed = capfd.readouterr().out
    for fact in (
        "200 pages and 40 other texts",
        "$ hnloader train",
        "--- log 0.5 ---",
        "language models of width 32",
        "unchanged",
        "in peft",
    ):
        assert fact in printed
    assert (tmp_path / "work" / "log-lora" / "adapter_config.json").is_file()
