"""Predict in a browser, with a small model and predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import hnloader
from hnloader.library import Library
from hnloader.ui.diffusers_generator import DiffusersGenerator
from hnloader.ui.page_host import PredictionPlace
from tests.support.browsers import set_slider, turn_to
from tests.support.predictors import save_style
from tests.support.trainings import save_image

pytestmark = pytest.mark.slow


@pytest.fixture
def predict(
    host_of: Callable[..., object],
    server_for: Callable[..., object],
    open_page: Callable[..., Page],
    tiny_model: Path,
    tiny_predictor: Path,
    tmp_path: Path,
) -> Page:
    """The page Predict with the tiny model, and an empty library."""
    folder = tmp_path / "library"
    folder.mkdir()
    generator = DiffusersGenerator([str(tiny_model)], lambda: Library([folder]), device="cpu", predictor=tiny_predictor)
    host = replace(
        host_of(folder),  # type: ignore[type-var]
        generator=generator,
        models=generator,
        prediction=PredictionPlace(generator.predict, lambda: folder),
        pages=("generate", "library", "predict"),
    )
    page = open_page(server_for(host).url)  # type: ignore[attr-defined]
    turn_to(page, "Predict")
    return page


def test_images_become_a_file_and_are_shown_at_three_strengths(predict: Page, tmp_path: Path) -> None:
    status = predict.locator("#hnl-predict-status")
    expect(status.get_by_role("heading")).to_have_text("No style yet")
    images = save_style(tmp_path / "images", 120)
    predict.locator("#hnl-predict-images input[type=file]").set_input_files(sorted(images.glob("*.png")))
    predict.locator("#hnl-predict").click()
    expect(status.get_by_role("alert")).to_contain_text("Output name")
    predict.locator("#hnl-predict-name").locator("input, textarea").fill("ink")
    predict.locator("#hnl-predict-prompt").locator("input, textarea").fill("a cat")
    set_slider(predict, "hnl-predict-steps", 1)
    predict.locator("#hnl-predict").click()
    expect(status).to_contain_text("<hypernet:ink:1>")
    expect(predict.locator("#hnl-predict-image img")).to_be_visible()
    found = hnloader.load(tmp_path / "library" / "ink.pt")
    hashes = found.metadata["images_sha256"]
    assert isinstance(hashes, list)
    assert len(hashes) == 4
    predict.locator("#hnl-predict").click()
    expect(status.get_by_role("alert")).to_contain_text("exists")
    turn_to(predict, "Library")
    expect(predict.locator(".hnl-card")).to_have_count(1)


def test_bad_images_are_named(predict: Page, tmp_path: Path) -> None:
    status = predict.locator("#hnl-predict-status")
    predict.locator("#hnl-predict-name").locator("input, textarea").fill("ink")
    predict.locator("#hnl-predict").click()
    expect(status.get_by_role("alert")).to_contain_text("found none")
    predict.locator("#hnl-predict-images input[type=file]").set_input_files(save_image(tmp_path / "red.png"))
    predict.locator("#hnl-predict").click()
    expect(status.get_by_role("alert")).to_contain_text("single color")
    assert list((tmp_path / "library").iterdir()) == []
