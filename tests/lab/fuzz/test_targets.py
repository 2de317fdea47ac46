"""Run every target of the fuzzer on its kept inputs and some more; `make fuzz` runs for longer."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnloader.formats.registry import formats
from hnloader.training import config
from lab.fuzz import differential
from lab.fuzz.__main__ import NAMES
from lab.fuzz.choices import Choices
from lab.fuzz.corpus_archive import CORPUS, read_corpus
from lab.fuzz.makers.texts import CONFIG_KEYS, INNER_KEYS
from lab.fuzz.targets import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_every_target_has_a_corpus() -> None:
    assert set(NAMES) == set(TARGETS) == {path.stem for path in CORPUS.iterdir()}
    assert all(len(read_corpus(name)) > 30 for name in NAMES)


def test_every_format_has_a_target() -> None:
    assert {one.name for one in formats()} == {target.format for target in TARGETS.values()} - {""}


@pytest.mark.parametrize("name", NAMES)
def test_kept_inputs(name: str) -> None:
    for data in read_corpus(name).values():
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_inputs(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", ["pickle", "changed", "zip", "legacy"])
def test_empty_input_makes_a_sound_file(name: str) -> None:
    before = differential.counts["both read the same"]
    TARGETS[name].run(b"")
    assert differential.counts["both read the same"] == before + 1


def test_corpus_makes_many_different_pickles() -> None:
    assert len({TARGETS["pickle"].make(Choices(data)) for data in read_corpus("pickle").values()}) > 15


def test_configurations_use_the_real_settings() -> None:
    classes = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]
    names = {field.name for kind in classes for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    assert set(CONFIG_KEYS) | set(INNER_KEYS) <= names
