"""The fuzzer notices everything that readers must never do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.fuzz import watching
from lab.fuzz.watching import ForbiddenError, watched


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda: exec("1 + 1"),  # noqa: S102
        lambda: os.system("true"),
        lambda: subprocess.run([sys.executable, "-c", ""], check=False),
        lambda: __import__("antigravity"),
        lambda: Path("/tmp/hnloader-fuzz-probe").write_text("x"),
    ],
    ids=["exec", "system", "program", "import", "write"],
)
def test_forbidden_events(forbidden: Callable[[], object]) -> None:
    with pytest.raises(ForbiddenError), watched():
        forbidden()


def test_memory_and_canary_calls() -> None:
    code = (
        "from lab.fuzz import canary\nfrom lab.fuzz.watching import ForbiddenError, watched\n"
        "def tried(act):\n    try:\n        with watched():\n            act()\n"
        "    except ForbiddenError as error:\n        return str(error)\n    return 'unnoticed'\n"
        "import json\nprint(json.dumps([tried(canary.sing), tried(lambda: len(bytearray(b'x') * (400 << 20)))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    called, memory = json.loads(done.stdout)
    assert "canary" in called
    assert "MiB" in memory


def test_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_SECONDS", 0.0)
    with pytest.raises(ForbiddenError) as error, watched():
        sum(range(100_000))
    assert "CPU time" in str(error.value)
