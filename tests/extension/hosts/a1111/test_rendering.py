"""Jobs of the webui for the pages: their place in the queue, and the defaults of the model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from hnloader import families
from hnloader.errors import CancelledError
from hnloader.families import Family
from hnloader.prompt import Tag
from hnloader.ui import Host, ImageRequest
from tests.support.standins.unets import TEXT_WIDTH, WIDTHS
from tests.support.standins.webui import Webui


def request(webui: Webui, *hypernetworks: tuple[str, float], **fields: Any) -> ImageRequest:
    chosen = tuple((webui.hypernetworks / name, Tag(Path(name).stem, strength)) for name, strength in hypernetworks)
    defaults = {"prompt": "a cat", "negative": "blurry", "seed": 7, "steps": 4, "hypernetworks": chosen}
    return ImageRequest(**{**defaults, **fields})


def nothing(step: int, steps: int) -> None: ...


@pytest.mark.parametrize("side", [512, 96])
def test_size_and_sampler_have_defaults(
    running: Webui, pages: Host, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is that of the model's family, and of SD 1 for an unknown one."""
    if side != 512:
        family = Family("Small", TEXT_WIDTH, frozenset(WIDTHS), resolution=side)
        monkeypatch.setattr(families, "_families", [*families._families, family])
    assert pages.generator.image(request(running, steps=1), nothing).size == (side, side)
    assert running.made[0].sampler_name == pages.generator.samplers[0]


def test_quick_setting_is_off_during_the_job(running: Webui, pages: Host) -> None:
    plain = pages.generator.image(request(running), nothing)
    running.shared.opts.sd_hypernetwork = "ink"
    assert same(pages.generator.image(request(running), nothing), plain)
    assert running.shared.opts.sd_hypernetwork == "ink"


def same(first: Image.Image, second: Image.Image) -> bool:
    return numpy.array_equal(numpy.asarray(first), numpy.asarray(second))


def test_job_waits_in_line(running: Webui, pages: Host) -> None:
    """A webui that never rests, 'Generate forever' in two tabs, asks again before the job before has ended."""
    lock = running.part("call_queue").queue_lock
    order: list[str] = []

    def another_tab() -> None:
        with lock:
            order.append("the tab's job")

    def image() -> None:
        pages.generator.image(request(running, steps=1), lambda step, steps: order.append("ours") if step else None)

    ours, later = threading.Thread(target=image), threading.Thread(target=another_tab)
    lock.acquire()
    ours.start()
    assert lock.comes_to_rest(jobs=2)
    later.start()
    assert lock.comes_to_rest(jobs=3)
    lock.release()
    for thread in (ours, later):
        thread.join(60)
    assert order == ["ours", "the tab's job"]


def test_waiting_job_can_be_cancelled(running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnloader_webui.hosts.a1111.rendering._POLL", 1.0)  # time enough to get the lock that is let go
    waited: list[int] = []
    lock = running.part("call_queue").queue_lock

    def while_waiting(step: int, steps: int) -> None:
        waited.append(step)
        if len(waited) == 2:
            lock.release()

    lock.acquire()
    pages.generator.image(request(running, steps=1), while_waiting)
    assert waited == [0, 0, 1]

    def give_up(step: int, steps: int) -> None:
        raise CancelledError

    lock.acquire()
    with pytest.raises(CancelledError):
        pages.generator.image(request(running), give_up)
    assert len(running.made) == 1
    lock.release()
    assert running.idle()
