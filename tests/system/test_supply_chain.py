"""Dependencies and archives: the lock, a reason for each dependency, a wheel with reproducible bytes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Its index depends on the kind of processor.
UNLOCKED = {"torch"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE)}


def wanted(requirement: str) -> list[str]:
    """Return the names in a requirement, including the requirements of an extra of hnloader itself."""
    name = re.match(r"[\w.-]+", requirement)[0]
    if normal(name) != "hnloader":
        return [normal(name)]
    extras = re.search(r"\[(.*)\]", requirement)[1].split(",")
    return [found for extra in extras for each in PROJECT["optional-dependencies"][extra] for found in wanted(each)]


def direct() -> set[str]:
    given = [*PROJECT["dependencies"], *(each for extra in PROJECT["optional-dependencies"].values() for each in extra)]
    return {name for requirement in given for name in wanted(requirement)}


def test_every_entry_of_the_lock_is_pinned_and_has_hashes_and_none_says_where_from() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(entries) > 50
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==\S+( ; .+?)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n)?)+", entry), entry
    assert "://" not in LOCK
    assert "index" not in LOCK.replace("index-url", "index")


def test_the_lock_has_everything_that_the_tests_need_and_agrees_with_the_constraints() -> None:
    needed = {name for requirement in PROJECT["optional-dependencies"]["dev"] for name in wanted(requirement)}
    assert needed | {"safetensors"} - UNLOCKED <= locked().keys() | UNLOCKED, "run `make lock`"
    constraints = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name, version in constraints.items():
        assert locked().get(normal(name), version) == version, f"{name}: run `make lock`"
    assert not UNLOCKED & locked().keys()


def test_every_direct_dependency_has_its_reason_in_the_docs_and_a_lower_bound() -> None:
    page = (ROOT / "docs" / "dev" / "supply-chain.md").read_text(encoding="utf-8")
    told = set(map(normal, re.findall(r"^\| `([\w.-]+)`", page, re.MULTILINE)))
    assert told == direct()
    for requirement in [*PROJECT["dependencies"], *(r for e in PROJECT["optional-dependencies"].values() for r in e)]:
        assert requirement.startswith(("hnloader[", "types-PyYAML")) or ">=" in requirement, requirement


@pytest.mark.slow
def test_the_wheel_and_the_source_archive_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    built = []
    for number in range(2):
        place = tmp_path / f"{number}"
        shutil.copytree(
            ROOT, place, ignore=shutil.ignore_patterns(".*", "dist", "build", "__pycache__", "results", "finds")
        )
        for path in place.rglob("*"):  # a checkout of another day
            path.touch()
        command = [sys.executable, "-m", "hatchling", "build"]
        environment = {"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin"}
        subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
        built.append({path.name: path.read_bytes() for path in (place / "dist").iterdir()})
    assert {Path(name).suffix for name in built[0]} == {".whl", ".gz"}
    assert built[0] == built[1]
    wheel = next((tmp_path / "0" / "dist").glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert all(name.startswith(("hnloader/", "hnloader-")) for name in names)
    assert "hnloader/py.typed" in names
    assert {"model.safetensors", "tokenizer.json"} <= {
        name.rpartition("/")[2] for name in names if name.startswith("hnloader/demo/language_model/")
    }
    assert "hnloader/demo/text_hypernetworks/past.safetensors" in names
    with tarfile.open(next((tmp_path / "0" / "dist").glob("*.gz"))) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "SECURITY.md",
        "LICENSE",
        "docs/security.md",
        "lab/fuzz/corpus/zip.zip",
        "extension/api.py",
        "tests/system/test_supply_chain.py",
    } <= sources
