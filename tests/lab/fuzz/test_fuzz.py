"""Every target of the fuzzer on its kept corpus and on some inputs more; `make fuzz` runs for longer."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.fuzz import differential, watching
from lab.fuzz.__main__ import CORPUS, NAMES
from lab.fuzz.choices import Choices
from lab.fuzz.makers import containers
from lab.fuzz.makers.pickles import PickleMaker
from lab.fuzz.targets import TARGETS
from lab.fuzz.watching import ForbiddenError, watched
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_every_target_has_a_corpus() -> None:
    assert set(NAMES) == set(TARGETS) == {path.name for path in CORPUS.iterdir()}
    assert all(any((CORPUS / name).iterdir()) for name in NAMES)
    assert len(list(CORPUS.glob("*/*"))) > 500


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_inputs(name: str) -> None:
    for path in sorted((CORPUS / name).iterdir()):
        TARGETS[name].run(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_some_more(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", ["pickle", "changed", "zip", "legacy"])
def test_without_the_fuzzers_bytes_the_file_is_sound_and_both_read_the_same(name: str) -> None:
    before = differential.counts["both read the same"]
    TARGETS[name].run(b"")
    assert differential.counts["both read the same"] == before + 1


def test_files_of_all_kinds_are_made_and_some_are_read() -> None:
    made = {TARGETS["pickle"].make(Choices(path.read_bytes())) for path in (CORPUS / "pickle").iterdir()}
    assert len(made) > 15


# -- that what may not happen is noticed


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda: exec("1 + 1"),  # noqa: S102
        lambda: os.system("true"),
        lambda: subprocess.run([sys.executable, "-c", ""], check=False),
        lambda: __import__("antigravity"),
        lambda: Path("/tmp/hnloader-fuzz-probe").write_text("x"),
    ],
    ids=["eval", "system", "a program", "import", "writing"],
)
def test_what_no_reader_may_do_is_noticed(forbidden: object) -> None:
    with pytest.raises(ForbiddenError), watched():
        forbidden()  # type: ignore[operator]


def test_a_reader_that_takes_memory_or_calls_what_a_file_names_is_noticed() -> None:
    code = (
        "from lab.fuzz import canary\nfrom lab.fuzz.watching import ForbiddenError, watched\n"
        "def tried(act):\n    try:\n        with watched():\n            act()\n"
        "    except ForbiddenError as error:\n        return str(error)\n    return 'unnoticed'\n"
        "import json\nprint(json.dumps([tried(canary.sing), tried(lambda: len(bytearray(b'x') * (400 << 20)))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    called, memory = json.loads(done.stdout)
    assert called == "the canary was called"
    assert "MiB were taken" in memory


def test_an_input_that_takes_long_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in CPU time, which here is more than nothing."""
    monkeypatch.setattr(watching, "MAX_SECONDS", 0.0)
    with pytest.raises(ForbiddenError, match="s of CPU time were taken"), watched():
        sum(range(100_000))


def test_a_name_that_torch_cannot_put_into_its_message_is_no_disagreement() -> None:
    maker = PickleMaker(Choices(b""))
    members = containers._members(Choices(b""), maker, maker.whole())
    data = containers.archive(Choices(b""), [*members, containers.Member(b"\xac", b"abc")], sound=True)
    with pytest.raises(UnicodeDecodeError):
        torch.load(io.BytesIO(data), weights_only=True)
    before = differential.counts["both refuse"]
    differential.compare(data)
    assert differential.counts["both refuse"] == before + 1


def test_a_disagreement_without_a_reason_is_a_find() -> None:
    with pytest.raises(differential.DisagreementError, match="stricter: nobody has said why"):
        differential._explain("stricter", differential.STRICTER, "nobody has said why")


def test_the_docs_name_every_reason() -> None:
    page = (ROOT / "docs" / "dev" / "fuzzing.md").read_text(encoding="utf-8")
    assert differential.table() in page
