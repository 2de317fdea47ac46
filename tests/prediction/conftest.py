from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.training import Config, read_config
from tests.support.predictors import SETTINGS, save_predictor_of, save_styles, save_text_styles
from tests.support.small_language_models import save_language_model
from tests.support.trainings import Run


@pytest.fixture
def styles_folder(tmp_path: Path) -> Path:
    """A folder of five styles."""
    return save_styles(tmp_path / "styles")


@pytest.fixture
def predictor_settings(tiny_model: Path, styles_folder: Path, tmp_path: Path) -> Run:
    def make(name: str = "predictor.safetensors", **changes: object) -> Config:
        given = {"model": str(tiny_model), "styles": str(styles_folder), "output": str(tmp_path / name)}
        given |= {key.replace("__", "."): value for key, value in changes.items()}  # type: ignore[dict-item]
        return read_config(None, {**SETTINGS, **given}, "predictor")

    return make


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of three layers with a tokenizer of words."""
    return save_language_model(tmp_path_factory.mktemp("models") / "tiny-llm")


@pytest.fixture(scope="session")
def tiny_text_predictor(tiny_language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor of the tiny language model, after a few steps of training."""
    return save_predictor_of(tiny_language_model, tmp_path_factory.mktemp("predictor"), texts=True)


@pytest.fixture
def text_settings(tiny_language_model: Path, tmp_path: Path) -> Run:
    styles = save_text_styles(tmp_path / "text-styles")

    def make(name: str = "predictor.safetensors", **changes: object) -> Config:
        given = {"model": str(tiny_language_model), "styles": str(styles), "output": str(tmp_path / name)}
        given |= {key.replace("__", "."): value for key, value in changes.items()}  # type: ignore[dict-item]
        return read_config(None, {**SETTINGS, **given}, "predictor")

    return make
