"""The documentation site covers the public names, the commands and the training settings."""

from __future__ import annotations

import dataclasses
import importlib
import re

import hnloader
import hnloader.demo
import hnloader.embeddings
from hnloader.training.config import Config
from lab import site
from tests.support.paths import ROOT

API = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
DOCUMENTED = re.findall(r"^::: ([\w.]+)", API, re.MULTILINE)


def test_api_page_has_every_public_name() -> None:
    public = {f"{module.__name__}.{name}" for module in (hnloader, hnloader.embeddings) for name in module.__all__}
    errors = {f"hnloader.{name}" for name in hnloader.errors.__all__}
    assert sorted(public - errors - set(DOCUMENTED)) == []
    assert "hnloader.errors" in DOCUMENTED


def test_api_page_names_exist() -> None:
    for name in DOCUMENTED:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


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
