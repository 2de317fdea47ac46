from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.training import Config, read_config
from tests.support.predictors import SETTINGS, save_styles
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
