"""The tab in the stand-ins: its images are jobs of the host, one at a time, with the tags that were asked for."""

from __future__ import annotations

import sys
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
    """A host with the extension and two files, started."""
    webui.install()
    (webui.hypernetworks / "sketches").mkdir(parents=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "sketches/ink.pt", ALL_WIDTHS, seed=2)
    webui.start()
    return webui


@pytest.fixture
def pages(running: Webui, monkeypatch: pytest.MonkeyPatch) -> Host:
    """What the tab tells the pages of the host."""
    given: list[Host] = []
    monkeypatch.setattr("hnloader_webui.tab.build", given.append)
    ((_, title, elem_id),) = running.tabs()
    assert (title, elem_id) == ("Hypernetworks", "hnloader")
    return given[0]


def request(webui: Webui, *hypernetworks: tuple[str, float], **fields: Any) -> ImageRequest:
    chosen = tuple((webui.hypernetworks / name, Tag(Path(name).stem, strength)) for name, strength in hypernetworks)
    defaults = {"prompt": "a cat", "negative": "blurry", "seed": 7, "steps": 4, "hypernetworks": chosen}
    return ImageRequest(**{**defaults, **fields})


def nothing(step: int, steps: int) -> None: ...


def same(first: Image.Image, second: Image.Image) -> bool:
    return numpy.array_equal(numpy.asarray(first), numpy.asarray(second))


def made(webui: Webui) -> list[Any]:
    return webui.part("processing").made


def idle(webui: Webui) -> bool:
    """Nothing of a job is left: the lock becomes free, no hooks, no interruption."""
    free = webui.part("call_queue").queue_lock.comes_to_rest()
    hooks = sum(len(module._forward_pre_hooks) for module in webui.unet.modules())
    return free and hooks == 0 and not webui.shared.state.interrupted and not webui.shared.state.job


def test_an_image_is_a_job_of_the_host_with_the_tags_that_were_asked_for(running: Webui, pages: Host) -> None:
    fields = {"sampler": "Euler a", "width": 16, "height": 24, "guidance": 5.0}
    image = pages.generator.image(request(running, ("ink.pt", 0.5), ("sketches/ink.pt", -1), **fields), nothing)
    (job,) = made(running)
    assert job.prompt == "a cat <hypernet:ink:0.5><hypernet:sketches/ink:-1>"
    assert (job.negative_prompt, job.seed, job.steps, job.cfg_scale) == ("blurry", 7, 4, 5.0)
    assert (job.sampler_name, job.width, job.height) == ("Euler a", 16, 24)
    assert job.do_not_save_samples
    assert job.do_not_save_grid
    assert image.size == (16, 24)
    assert "Hypernet hashes: " in image.info["parameters"]
    assert same(image, pages.generator.image(request(running, prompt=job.prompt, **fields), nothing))
    assert not same(image, pages.generator.image(request(running, **fields), nothing))
    assert idle(running)
    assert not running.reports


@pytest.mark.parametrize(("kind", "side"), [("", 512), ("is_sd2", 768), ("is_sdxl", 1024)])
def test_without_a_size_it_is_the_model_s_own_and_the_sampler_the_first(
    running: Webui, pages: Host, kind: str, side: int
) -> None:
    setattr(running.shared.sd_model, kind or "is_sd1", True)
    assert pages.generator.image(request(running, steps=1), nothing).size == (side, side)
    assert made(running)[0].sampler_name == pages.generator.samplers[0]


def test_steps_are_told(running: Webui, pages: Host) -> None:
    told: list[tuple[int, int]] = []
    pages.generator.image(request(running), lambda step, steps: told.append((step, steps)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    running.generate("another job", steps=4)
    assert len(told) == 4


def test_the_quick_setting_does_not_act_and_is_there_again_afterwards(running: Webui, pages: Host) -> None:
    plain = pages.generator.image(request(running), nothing)
    running.shared.opts.sd_hypernetwork = "ink"
    assert same(pages.generator.image(request(running), nothing), plain)
    assert running.shared.opts.sd_hypernetwork == "ink"


def test_cancelling_in_a_step_ends_the_job_and_another_one_works(running: Webui, pages: Host) -> None:
    steps: list[int] = []

    def cancel(step: int, total: int) -> None:
        steps.append(step)
        if step == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        pages.generator.image(request(running, ("ink.pt", 1)), cancel)
    assert steps == [1, 2]
    assert idle(running)
    assert pages.generator.image(request(running), nothing).size == (512, 512)


@pytest.mark.parametrize("who", ["the page", "the webui's own button"])
def test_an_interruption_is_no_image(running: Webui, pages: Host, who: str) -> None:
    def interrupt(step: int, total: int) -> None:
        if step == 2:
            pages.generator.interrupt() if who == "the page" else running.shared.state.interrupt()

    with pytest.raises(CancelledError):
        pages.generator.image(request(running, ("ink.pt", 1)), interrupt)
    assert idle(running)


def test_interrupting_without_an_image_leaves_other_jobs(running: Webui, pages: Host) -> None:
    pages.generator.interrupt()
    assert not running.shared.state.interrupted


def test_it_stands_in_line_with_the_jobs_of_the_page(running: Webui, pages: Host) -> None:
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


def test_it_waits_for_the_job_that_runs_and_can_be_cancelled_while_it_does(
    running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnloader_webui.hosts.a1111._PATIENCE", 1.0)  # time enough to get the lock that is let go
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
    assert len(made(running)) == 1
    lock.release()
    assert idle(running)


def test_two_pages_make_their_images_one_after_the_other(running: Webui, pages: Host) -> None:
    told: dict[int, list[int]] = {1: [], 2: []}

    def progress_of(page: int) -> Callable[[int, int], None]:
        return lambda step, steps: told[page].append(step)

    threads = [
        threading.Thread(target=pages.generator.image, args=(request(running, seed=page), progress_of(page)))
        for page in told
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([step for step in steps if step] == [1, 2, 3, 4] for steps in told.values())
    assert idle(running)


def test_what_cannot_be_applied_is_an_error_not_an_image_without_it(running: Webui, pages: Host) -> None:
    save_hypernetwork(running.hypernetworks / "wide.pt", (12,))
    with pytest.raises(HypernetworkError, match=r"'wide' was not applied"):
        pages.generator.image(request(running, ("wide.pt", 1)), nothing)
    with pytest.raises(HypernetworkError, match=r"'inkk' was not applied.*'ink'"):
        pages.generator.image(request(running, prompt="a <hypernet:inkk>"), nothing)
    with pytest.raises(HypernetworkError, match="gone"):
        pages.generator.image(request(running, ("gone.pt", 1)), nothing)
    (running.hypernetworks / "a>b.pt").write_bytes((running.hypernetworks / "ink.pt").read_bytes())
    with pytest.raises(HypernetworkError, match="Rename the file"):
        pages.generator.image(request(running, ("a>b.pt", 1)), nothing)
    assert idle(running)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (ZeroDivisionError("in a sampler"), HypernetworkError, "could not make the image: ZeroDivisionError: in a"),
        (MemoryError("8 GB"), MemoryError, "8 GB"),
    ],
)
def test_an_error_of_the_host_is_told_and_the_next_job_runs(
    running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type, said: str
) -> None:
    def fail(latents: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(running.part("processing"), "_draw", lambda *values: fail(values))
        with pytest.raises(raised, match=said):
            pages.generator.image(request(running, ("ink.pt", 1)), nothing)
    assert idle(running)
    pages.generator.image(request(running), nothing)


def test_the_folders_are_the_host_s(running: Webui, pages: Host) -> None:
    assert list(pages.folders()) == [running.hypernetworks]
    assert pages.output() == running.folder / "output"
    assert pages.converted() == running.hypernetworks / "converted"
    assert pages.loras() == running.folder / "models" / "Lora"
    assert pages.lora_base()["source"] == Path("first.safetensors")


def test_a_lora_without_a_checkpoint_says_what_to_do(
    running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        if not running.forge:
            raise FileNotFoundError

    monkeypatch.setattr(running.sd_models, "select_checkpoint", none)
    with pytest.raises(HypernetworkError, match="Choose one"):
        pages.lora_base()


def test_new_files_reach_the_host_s_list(running: Webui, pages: Host) -> None:
    (running.hypernetworks / "late.safetensors").write_bytes(b"")
    pages.on_change()
    assert "late" in running.shared.hypernetworks


def test_a_page_that_cannot_be_built_leaves_the_rest(
    running: Webui, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(host: Host) -> None:
        raise AttributeError("no Blocks")

    monkeypatch.setattr("hnloader_webui.tab.build", fail)
    assert running.tabs() == []
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tab" in line)
    assert "AttributeError: no Blocks" in line
    assert running.reports == []


def test_a_seam_that_cannot_be_loaded_leaves_the_others(
    running: Webui, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = sys.modules["hnloader_webui.runtime"]
    monkeypatch.setattr(runtime, "SEAMS", ("nowhere", *runtime.SEAMS))
    callbacks = running.part("script_callbacks")
    callbacks.clear_callbacks()
    runtime.start()
    assert "Without nowhere: ModuleNotFoundError" in capsys.readouterr().out
    assert len(callbacks.callbacks["ui_tabs"]) == 1


def test_the_page_is_built_anew_after_a_reload(running: Webui) -> None:
    for _ in range(2):
        ((page, _, _),) = running.tabs()
        assert {"hnl-library", "hnl-compare", "hnl-convert"} <= {
            getattr(block, "elem_id", None) for block in page.blocks.values()
        }
        running.reload()
    assert running.reports == []


def test_trainings_lie_in_the_hosts_folders_and_take_its_checkpoint(running: Webui, pages: Host) -> None:
    place = pages.training
    assert place is not None
    assert place.library() == running.hypernetworks
    assert place.embeddings is not None
    assert place.embeddings() == running.folder / "embeddings"
    assert place.folder() == pages.output() / "trainings"
    checkpoint = pages.lora_base()["source"] if pages.lora_base else None
    assert place.models() == [str(checkpoint)]
    assert place.may_name_python


def test_who_reaches_the_host_from_elsewhere_names_no_program(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Host] = []
    monkeypatch.setattr("hnloader_webui.tab.build", given.append)
    monkeypatch.setattr(running.part("shared").cmd_opts, "listen", True, raising=False)
    running.tabs()
    assert given[0].training is not None
    assert not given[0].training.may_name_python
