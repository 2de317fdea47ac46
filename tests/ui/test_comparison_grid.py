"""Prompts by hypernetworks by strengths."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hnloader.errors import HypernetworkError
from hnloader.ui.comparison_grid import Comparison, numbered, read_prompts, read_strengths, save_comparison
from hnloader.ui.page_host import ImageRequest

INK, OIL = Path("styles/ink.pt"), Path("styles/oil.pt")


class Recorder:
    """Remembers what it was asked for."""

    samplers = ()
    default_guidance = None

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


def test_every_hypernetwork_at_every_strength_and_the_model_alone_once() -> None:
    recorder = Recorder()
    asked = comparison(seed=7)
    list(asked.images(recorder, lambda *_: None))
    row = [[], [("ink", 0.5)], [("ink", 1.0)], [("oil", 0.5)], [("oil", 1.0)]]
    assert made(recorder.asked) == [(prompt, 7, cell) for prompt in ("cat", "dog") for cell in row]
    assert {one.negative for one in recorder.asked} == {"blurry"}
    assert asked.to_make == 10


def test_seeds_are_the_same_for_every_prompt() -> None:
    recorder = Recorder()
    list(comparison(seed=7, seeds=2, strengths=(1.0,), hypernetworks=(INK,)).images(recorder, lambda *_: None))
    assert [(prompt, seed) for prompt, seed, _ in made(recorder.asked)] == [
        ("cat", 7), ("cat", 8), ("dog", 7), ("dog", 8)
    ]  # fmt: skip


def test_progress_counts_steps_over_all_images() -> None:
    told: list[tuple[int, int, str]] = []
    list(comparison().images(Recorder(), lambda *news: told.append(news)))
    assert [done for done, _, _ in told] == list(range(1, 21))
    assert told[-1] == (20, 20, "Image 10 of 10, step 2 of 2")


def test_the_grid_has_a_cell_for_each_image() -> None:
    asked = comparison()
    rows = [row for row, complete in asked.images(Recorder(), lambda *_: None) if complete]
    grid = asked.grid(rows)
    red = sum(count for count, color in grid.getcolors(grid.width * grid.height) or [] if color == (255, 0, 0))
    assert red == 10 * 192 * 192


@pytest.mark.parametrize("strengths", [(0.0,), (1.0,), (-1.0, 0.25)])
def test_a_grid_is_made_of_any_strengths(strengths: tuple[float, ...]) -> None:
    asked = comparison(strengths=strengths, seeds=2)
    assert asked.grid([row for row, complete in asked.images(Recorder(), lambda *_: None) if complete]).width > 192


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": ()}, "no prompt"),
        ({"hypernetworks": ()}, "No hypernetwork"),
        ({"strengths": ()}, "no strength"),
        ({"seeds": 0}, "At least one seed"),
        ({"seed": -1}, "Seeds are 0 to"),
        ({"seed": 2**32 - 1, "seeds": 2}, "Seeds are 0 to"),
        ({"seeds": 100}, "1,000 images"),
    ],
)
def test_what_cannot_be_compared_is_told(changes: dict[str, object], said: str) -> None:
    with pytest.raises(HypernetworkError, match=said):
        comparison(**changes).check()


def test_strengths_as_people_write_them() -> None:
    assert read_strengths(" 0, .5;1 \n-2,0.50") == (0, 0.5, 1, -2)
    for text in ("0,5x", "nan", "inf", "one"):
        with pytest.raises(HypernetworkError, match="is no strength"):
            read_strengths(text)


def test_prompts_are_lines() -> None:
    assert read_prompts("a cat\n\n  a dog \n") == ("a cat", "a dog")


def test_a_number_that_another_program_takes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hnloader.ui.comparison_grid.numbered", lambda folder, prefix, seed: folder / f"{prefix}00001-3.png"
    )
    paths = [save_comparison(Image.new("RGB", (8, 8), color), tmp_path, 3, "") for color in ("red", "blue")]
    assert [path.name for path in paths] == ["compare-00001-3.png", "compare-00002-3.png"]
    with Image.open(paths[0]) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_images_are_numbered_on(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    first = save_comparison(Image.new("RGB", (8, 8)), folder, 3, "Prompt: ä")
    second = save_comparison(Image.new("RGB", (8, 8)), folder, 3, "")
    assert [first.name, second.name] == ["compare-00001-3.png", "compare-00002-3.png"]
    assert numbered(folder, "", 3).name == "00001-3.png"
    with Image.open(first) as image:
        assert image.info["parameters"] == "Prompt: ä"
