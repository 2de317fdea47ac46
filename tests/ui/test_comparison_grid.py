"""Prompts by hypernetworks by strengths."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hnloader.errors import SettingsError
from hnloader.ui.comparison_grid import Comparison, read_prompts, read_strengths
from hnloader.ui.page_host import ImageRequest

INK, OIL, WASH = Path("styles/ink.pt"), Path("styles/oil.pt"), Path("styles/wash.bin")


class Recorder:
    """Records its requests."""

    samplers = ()
    default_guidance = None
    applies_embeddings = False

    def __init__(self) -> None:
        self.asked: list[ImageRequest] = []

    def image(self, request: ImageRequest, progress) -> Image.Image:
        self.asked.append(request)
        progress(1, 2)
        progress(2, 2)
        return Image.new("RGB", (64, 64), "red")

    def interrupt(self) -> None: ...


def comparison(**changes: object) -> Comparison:
    values = {"prompts": ("cat", "dog"), "hypernetworks": (INK, OIL), "strengths": (0.0, 0.5, 1.0)} | changes
    return Comparison(**values, request=ImageRequest("", "blurry", steps=2))


def made(asked: list[ImageRequest]) -> list[tuple[str, int, list[tuple[str, float]]]]:
    return [(one.prompt, one.seed, [(p.stem, t.strength) for p, t in one.hypernetworks]) for one in asked]


def test_makes_the_model_alone_once() -> None:
    recorder = Recorder()
    asked = comparison(seed=7)
    list(asked.make_rows(recorder, lambda *_: None))
    row = [[], [("ink", 0.5)], [("ink", 1.0)], [("oil", 0.5)], [("oil", 1.0)]]
    assert made(recorder.asked) == [(prompt, 7, cell) for prompt in ("cat", "dog") for cell in row]
    assert {one.negative for one in recorder.asked} == {"blurry"}
    assert asked.to_make == 10


def test_every_prompt_has_the_same_seeds() -> None:
    recorder = Recorder()
    list(comparison(seed=7, seeds=2, strengths=(1.0,), hypernetworks=(INK,)).make_rows(recorder, lambda *_: None))
    assert [(prompt, seed) for prompt, seed, _ in made(recorder.asked)] == [
        ("cat", 7), ("cat", 8), ("dog", 7), ("dog", 8)
    ]  # fmt: skip


def test_progress_counts_the_steps_of_all_images() -> None:
    reported: list[tuple[int, int, str]] = []
    list(comparison().make_rows(Recorder(), lambda *news: reported.append(news)))
    assert [done for done, _, _ in reported] == list(range(1, 21))
    assert reported[-1] == (20, 20, "Image 10 of 10, step 2 of 2")


def test_the_grid_has_a_cell_for_each_image() -> None:
    asked = comparison()
    rows = list(asked.make_rows(Recorder(), lambda *_: None))
    grid = asked.grid(rows)
    red = sum(count for count, color in grid.getcolors(grid.width * grid.height) or [] if color == (255, 0, 0))
    assert red == 10 * 192 * 192


def test_an_embedding_has_one_column() -> None:
    recorder = Recorder()
    asked = comparison(prompts=("cat", "a Wash, cat"), hypernetworks=(INK,), embeddings=((WASH, "wash"),))
    rows = list(asked.make_rows(recorder, lambda *_: None))
    assert [column.label for column in asked.columns] == ["none", "0.5", "1", "embedding"]
    assert [(one.prompt, one.embeddings) for one in recorder.asked if one.embeddings] == [
        ("cat wash", (WASH,)),
        ("a Wash, cat", (WASH,)),
    ]
    assert {one.prompt for one in recorder.asked if not one.embeddings} == {"cat", "a Wash, cat"}
    assert not any(one.embeddings and one.hypernetworks for one in recorder.asked)
    assert asked.grid(rows).width > 4 * 192
    assert "Embeddings: wash.bin" in asked.infotext()


def test_embeddings_alone_need_no_strengths() -> None:
    alone = comparison(hypernetworks=(), strengths=(), embeddings=((WASH, "wash"), (INK, "ink")))
    alone.check()
    assert [column.path for column in alone.columns] == [WASH, INK]
    assert "Strengths" not in alone.infotext()
    assert alone.grid(list(alone.make_rows(Recorder(), lambda *_: None))).width > 2 * 192


@pytest.mark.parametrize("strengths", [(0.0,), (1.0,), (-1.0, 0.25)])
def test_a_grid_takes_any_strengths(strengths: tuple[float, ...]) -> None:
    asked = comparison(strengths=strengths, seeds=2)
    assert asked.grid(list(asked.make_rows(Recorder(), lambda *_: None))).width > 192


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"prompts": ()}, "Prompts"),
        ({"hypernetworks": ()}, "Nothing is selected"),
        ({"strengths": ()}, "Strengths"),
        ({"seeds": 0}, "Seeds per prompt"),
        ({"seed": -1}, "-1"),
        ({"seed": 2**32 - 1, "seeds": 2}, str(2**32 - 1)),
        ({"seeds": 100}, "1,000"),
    ],
)
def test_refuses_missing_and_impossible_values(changes: dict[str, object], fact: str) -> None:
    with pytest.raises(SettingsError, match=fact):
        comparison(**changes).check()


def test_reads_strengths() -> None:
    assert read_strengths(" 0, .5;1 \n-2,0.50") == (0, 0.5, 1, -2)
    for text in ("5x", "nan", "inf", "one"):
        with pytest.raises(SettingsError, match=repr(text)):
            read_strengths(f"0,{text}")


def test_reads_one_prompt_per_line() -> None:
    assert read_prompts("a cat\n\n  a dog \n") == ("a cat", "a dog")
