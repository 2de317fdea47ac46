"""The generated pages of the documentation site cover the commands and the training settings."""

from __future__ import annotations

import dataclasses
import re

from hnloader.training.config import Config
from lab import site


def test_command_reference_has_every_command() -> None:
    page = site.commands_page()
    names = re.findall(r"^## hnloader (.+)$", page, re.MULTILINE)
    assert {"inspect", "convert", "generate", "train", "dataset check", "ui"} <= set(names)
    assert "| `--out PATH`, `-o PATH` |" in page


def test_settings_reference_has_every_setting() -> None:
    page = site.settings_page()
    for field in dataclasses.fields(Config):
        assert f"`{field.name}`" in page
    assert "| `data.random_flip` | true or false | `true` |" in page
