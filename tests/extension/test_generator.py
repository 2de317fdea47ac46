"""Images for Compare, as jobs of the webui."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.prompt import Tag
from hnloader.ui import Host, ImageRequest
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A webui with the extension and two files, started."""
    webui.install()
    (webui.hypernetworks / "sketches").mkdir(parents=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "sketches/ink.pt", ALL_WIDTHS, seed=2)
    webui.start()
    return webui


def request(webui: Webui, *hypernetworks: tuple[str, float], **fields: Any) -> ImageRequest:
    chosen = tuple((webui.hypernetworks / name, Tag(Path(name).stem, strength)) for name, strength in hypernetworks)
    defaults = {"prompt": "a cat", "negative": "blurry", "seed": 7, "steps": 4, "hypernetworks": chosen}
    return ImageRequest(**{**defaults, **fields})


def nothing(step: int, steps: int) -> None: ...


def same(first: Image.Image, second: Image.Image) -> bool:
    return numpy.array_equal(numpy.asarray(first), numpy.asarray(second))


def test_image_is_a_job_with_tags(running: Webui, pages: Host) -> None:
    fields = {"sampler": "Euler a", "width": 16, "height": 24, "guidance": 5.0}
    image = pages.generator.image(request(running, ("ink.pt", 0.5), ("sketches/ink.pt", -1), **fields), nothing)
    (job,) = running.made
    assert job.prompt == "a cat <hypernet:ink:0.5><hypernet:sketches/ink:-1>"
    assert (job.negative_prompt, job.seed, job.steps, job.cfg_scale) == ("blurry", 7, 4, 5.0)
    assert (job.sampler_name, job.width, job.height) == ("Euler a", 16, 24)
    assert job.do_not_save_samples
    assert job.do_not_save_grid
    assert image.size == (16, 24)
    assert "Hypernet hashes: " in image.info["parameters"]
    assert same(image, pages.generator.image(request(running, prompt=job.prompt, **fields), nothing))
    assert not same(image, pages.generator.image(request(running, **fields), nothing))
    assert running.idle()
    assert not running.reports


def test_progress_counts_steps(running: Webui, pages: Host) -> None:
    seen: list[tuple[int, int]] = []
    pages.generator.image(request(running), lambda step, steps: seen.append((step, steps)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    running.generate("another job", steps=4)
    assert len(seen) == 4


def test_cancel_during_a_step(running: Webui, pages: Host) -> None:
    steps: list[int] = []

    def cancel(step: int, total: int) -> None:
        steps.append(step)
        if step == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        pages.generator.image(request(running, ("ink.pt", 1)), cancel)
    assert steps == [1, 2]
    assert running.idle()
    assert pages.generator.image(request(running), nothing).size == (512, 512)


@pytest.mark.parametrize("who", ["the page", "the webui's own button"])
def test_interruption_cancels(running: Webui, pages: Host, who: str) -> None:
    def interrupt(step: int, total: int) -> None:
        if step == 2:
            pages.generator.interrupt() if who == "the page" else running.shared.state.interrupt()

    with pytest.raises(CancelledError):
        pages.generator.image(request(running, ("ink.pt", 1)), interrupt)
    assert running.idle()


def test_interrupt_without_an_image_does_nothing(running: Webui, pages: Host) -> None:
    pages.generator.interrupt()
    assert not running.shared.state.interrupted


def test_two_pages_take_turns(running: Webui, pages: Host) -> None:
    seen: dict[int, list[int]] = {1: [], 2: []}

    def progress_of(page: int) -> Callable[[int, int], None]:
        return lambda step, steps: seen[page].append(step)

    threads = [
        threading.Thread(target=pages.generator.image, args=(request(running, seed=page), progress_of(page)))
        for page in seen
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([step for step in steps if step] == [1, 2, 3, 4] for steps in seen.values())
    assert running.idle()


@pytest.mark.parametrize(
    ("name", "prompt", "fact"),
    [
        ("wide.pt", "a", "'wide'"),
        ("", "a <hypernet:inkk>", "'ink'"),
        ("gone.pt", "a", "'gone'"),
        ("a>b.pt", "a", "a>b"),
    ],
)
def test_failed_tag_is_an_error(name: str, prompt: str, fact: str, running: Webui, pages: Host) -> None:
    save_hypernetwork(running.hypernetworks / "wide.pt", (12,))
    (running.hypernetworks / "a>b.pt").write_bytes((running.hypernetworks / "ink.pt").read_bytes())
    chosen = [(name, 1.0)] if name else []
    with pytest.raises(HypernetworkError) as raised:
        pages.generator.image(request(running, *chosen, prompt=prompt), nothing)
    assert fact in str(raised.value)
    assert running.idle()


@pytest.mark.parametrize(
    ("error", "kind", "fact"),
    [
        (ZeroDivisionError("in a sampler"), HypernetworkError, "ZeroDivisionError: in a sampler"),
        (MemoryError("8 GB"), MemoryError, "8 GB"),
    ],
)
def test_error_of_the_webui_leaves_the_next_job(
    running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, fact: str
) -> None:
    def fail(latents: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(running.part("processing"), "_draw", lambda *values: fail(values))
        with pytest.raises(kind) as raised:
            pages.generator.image(request(running, ("ink.pt", 1)), nothing)
    assert fact in str(raised.value)
    assert running.idle()
    pages.generator.image(request(running), nothing)
