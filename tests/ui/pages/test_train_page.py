"""The Train page in a browser, with training runs of the tiny model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from safetensors.torch import load_file

import hnloader
from hnloader.embeddings import load_embedding
from hnloader.ui.training_runs import TrainingRuns
from tests.support.tiny_model import save_images

pytestmark = pytest.mark.slow

QUICK = """previews.every_n_steps: 20
previews: {num_inference_steps: 1, count: 2}
validate_every_n_steps: 10
learning_rate: 1e-3"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = save_images(tmp_path / "my images", 6, 40)
    (folder / "0.txt").write_text("a house")
    (folder / "broken <b>.png").write_text("no image")
    return folder


@pytest.fixture
def url(host_of, server_for, folder: Path, tmp_path: Path) -> Iterator[str]:
    yield server_for(host_of(folder)).url
    left = TrainingRuns(tmp_path / "images" / "trainings")
    left.stop()
    while left.running() is not None:
        time.sleep(0.05)


def turn_to_train(page: Page) -> None:
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#hnl-train")).to_be_visible()


def fill(page: Page, elem_id: str, text: str) -> None:
    page.locator(f"#{elem_id} textarea, #{elem_id} input").first.fill(text)
    page.keyboard.press("Tab")


def ask(page: Page, images: Path, name: str, steps: int) -> None:
    fill(page, "hnl-train-images", str(images))
    fill(page, "hnl-train-name", name)
    fill(page, "hnl-train-steps", str(steps))
    if not page.locator("#hnl-train-more textarea").is_visible():
        page.get_by_text("More settings", exact=True).click()
    fill(page, "hnl-train-more", QUICK)


def test_start_watch_stop_resume_and_use_a_training(
    url: str, open_page, images: Path, folder: Path, tmp_path: Path
) -> None:
    page = open_page(url)
    turn_to_train(page)
    expect(page.locator("#hnl-train-details")).to_contain_text("No training runs yet")
    ask(page, images, "mine", 5000)
    status = page.locator("#hnl-train-status")
    page.locator("#hnl-train").click()
    expect(status.get_by_role("progressbar")).to_contain_text(re.compile(r"mine: step [\d,]+ of 5,000, .* left"))
    expect(page.locator("#hnl-train")).to_be_disabled()
    page.close()  # the training continues

    page = open_page(url)
    turn_to_train(page)
    status, details = page.locator("#hnl-train-status"), page.locator("#hnl-train-details")
    expect(status.get_by_role("progressbar")).to_contain_text("of 5,000")
    for order in ("strength", "step"):
        expect(details.get_by_alt_text(f"preview images by {order}")).to_be_visible()
    expect(details.locator("svg polyline")).to_have_count(2)
    expect(details).to_contain_text("Validation loss")
    page.locator("#hnl-train-stop").click()
    expect(status).to_contain_text("mine: Stopped.")
    expect(page.locator("#hnl-train-stop")).to_be_disabled()
    made = tmp_path / "images" / "trainings" / "mine" / "mine.pt"
    step = hnloader.load(made).metadata["step"]
    assert 0 < step < 5000

    page.locator("#hnl-train-resume").click()
    expect(status.get_by_role("progressbar")).to_contain_text("of 5,000, ")
    page.locator("#hnl-train-stop").click()
    expect(status).to_contain_text("mine: Stopped.")
    assert hnloader.load(made).metadata["step"] > step

    page.locator("#hnl-train-use").click()
    expect(page.locator("#hnl-train-notice")).to_contain_text("In a prompt: <hypernet:mine:1>")
    assert (folder / "mine.pt").read_bytes() == made.read_bytes()
    page.get_by_role("tab", name="Library").click()
    expect(page.locator(".hnl-card .hnl-name").filter(has_text="mine")).to_be_visible()


def test_train_a_finished_embedding_further(url: str, open_page, images: Path, tmp_path: Path) -> None:
    page = open_page(url)
    turn_to_train(page)
    ask(page, images, "word", 8)
    page.get_by_role("radio", name="embedding").check()
    page.locator("#hnl-train").click()
    status = page.locator("#hnl-train-status")
    expect(status).to_contain_text("word: Finished.")
    made = tmp_path / "images" / "trainings" / "word" / "word.pt"
    assert load_embedding(made).step == 8
    page.locator("#hnl-train-resume").click()
    expect(status.get_by_role("alert")).to_contain_text("word: finished at step 8.")
    fill(page, "hnl-train-steps", "12")
    page.locator("#hnl-train-resume").click()
    expect(page.locator("#hnl-train-details")).to_contain_text("12 of 12")
    expect(status).to_contain_text("word: Finished.")
    assert load_embedding(made).step == 12


def test_train_a_lora(url: str, open_page, images: Path, tmp_path: Path) -> None:
    page = open_page(url)
    turn_to_train(page)
    ask(page, images, "drawn", 4)
    page.get_by_role("radio", name="LoRA").check()
    page.locator("#hnl-train").click()
    expect(page.locator("#hnl-train-status")).to_contain_text("drawn: Finished.")
    fill(page, "hnl-train-prompt", "a house")
    page.locator("#hnl-train-try").click()
    expect(page.locator("#hnl-train-grid img")).to_be_visible()
    made = tmp_path / "images" / "trainings" / "drawn" / "drawn.safetensors"
    assert any("lora_down" in name for name in load_file(made))
    page.locator("#hnl-train-use").click()
    expect(page.locator("#hnl-train-notice")).to_contain_text("as 'drawn.safetensors'.")
    (copied,) = tmp_path.rglob("converted/drawn.safetensors")
    assert copied.read_bytes() == made.read_bytes()


def test_mistakes_and_images_are_shown(url: str, open_page, images: Path, tmp_path: Path) -> None:
    page = open_page(url)
    turn_to_train(page)
    status, said = page.locator("#hnl-train-status"), page.locator("#hnl-train-notice")
    page.locator("#hnl-train").click()
    expect(status.get_by_role("alert")).to_contain_text("Output name")
    fill(page, "hnl-train-name", "mine")
    page.locator("#hnl-train").click()
    expect(status.get_by_role("alert")).to_contain_text("'images' is missing")
    fill(page, "hnl-train-images", str(tmp_path / "none"))
    page.locator("#hnl-train-look").click()
    expect(said.get_by_role("alert")).to_contain_text("none: ")
    page.locator("#hnl-train").click()
    expect(status.get_by_role("alert")).to_contain_text("mine did not finish: none: ")
    expect(page.locator("body")).not_to_contain_text(str(tmp_path))

    fill(page, "hnl-train-images", str(images))
    page.locator("#hnl-train-look").click()
    expect(said).to_contain_text("6 images to train on, 1 with a caption.")
    expect(said.locator("tbody tr")).to_contain_text("broken <b>.png")
    expect(page.locator("#hnl-train-sheet img")).to_be_visible()

    page.get_by_text("More settings", exact=True).click()
    fill(page, "hnl-train-more", "stepps: 3")
    page.locator("#hnl-train").click()
    expect(status.get_by_role("alert")).to_contain_text("Did you mean 'steps'?")
    fill(page, "hnl-train-more", "nothing")
    page.locator("#hnl-train").click()
    expect(status.get_by_role("alert")).to_contain_text("`batch_size: 2`")
    fill(page, "hnl-train-more", "")
    fill(page, "hnl-train-python", str(tmp_path / "nowhere"))
    page.locator("#hnl-train").click()
    expect(status.get_by_role("alert")).to_contain_text("nowhere cannot be run: No such file or directory.")
    expect(status.get_by_role("alert")).to_contain_text("another Python interpreter")


def test_a_public_page_runs_no_other_python(host_of, server_for, open_page, folder: Path, tmp_path: Path) -> None:
    import dataclasses

    host = host_of(folder)
    closed = dataclasses.replace(host, training=dataclasses.replace(host.training, may_name_python=False))
    from hnloader.ui.pages.train_page import _Train

    assert _Train(closed, None, closed.training)._runs("/bin/sh").python != "/bin/sh"
    assert _Train(host, None, host.training)._runs("/bin/sh").python == "/bin/sh"
    page = open_page(server_for(closed).url)
    turn_to_train(page)
    page.get_by_text("More settings", exact=True).click()
    expect(page.locator("#hnl-train-more")).to_be_visible()
    expect(page.locator("#hnl-train-python")).to_be_hidden()
