"""`hnloader scan --sarif` follows the rules of the SARIF 2.1.0 schema for everything that it writes.

The schema is strict where it has `additionalProperties: false`: unknown properties are errors. The tables below hold
these rules for the objects in use; docs/dev/security-evidence.md has the command to check a log with the schema itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import CliRunner

from hnloader.cli.app import app
from tests.support.builders import simple_tree, write
from tests.support.hostile import hostile_files

# object -> property -> whether it must be there, and what it is: a type, a list of one kind, values, or an object.
OBJECTS: dict[str, dict[str, tuple[bool, object]]] = {
    "log": {"$schema": (False, str), "version": (True, ("2.1.0",)), "runs": (True, ["run"])},
    "run": {"tool": (True, "tool"), "results": (False, ["result"])},
    "tool": {"driver": (True, "driver")},
    "driver": {"name": (True, str), "version": (False, str), "rules": (False, ["rule"])},
    "rule": {
        "id": (True, str),
        "shortDescription": (False, "message"),
        "defaultConfiguration": (False, "configuration"),
    },
    "configuration": {"level": (False, ("none", "note", "warning", "error"))},
    "message": {"text": (True, str)},
    "result": {
        "ruleId": (False, str),
        "level": (False, ("none", "note", "warning", "error")),
        "message": (True, "message"),
        "locations": (False, ["location"]),
        "properties": (False, dict),
    },
    "location": {"physicalLocation": (False, "place"), "logicalLocations": (False, ["logical"])},
    "place": {"artifactLocation": (True, "artifact"), "region": (False, "region")},
    "artifact": {"uri": (False, "URI reference")},
    "region": {"byteOffset": (False, int), "byteLength": (False, int)},
    "logical": {"name": (False, str), "kind": (False, str)},
}
# RFC 3986: the characters of a URI reference, everything else being percent-encoded.
URI = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*")


def check(value: Any, kind: object, where: str = "log") -> None:
    """Assert that a value is what the tables say."""
    if isinstance(kind, list):
        assert isinstance(value, list), where
        for index, part in enumerate(value):
            check(part, kind[0], f"{where}[{index}]")
    elif isinstance(kind, tuple):
        assert value in kind, where
    elif kind == "URI reference":
        assert URI.fullmatch(value), where
        assert not urlsplit(value).fragment and not urlsplit(value).query, where
    elif isinstance(kind, str):
        known = OBJECTS[kind]
        assert value.keys() <= known.keys(), where
        for name, (needed, part) in known.items():
            assert not needed or name in value, f"{where}: {name} is missing"
            if name in value:
                check(value[name], part, f"{where}.{name}")
    else:
        assert type(value) is kind and (kind is not int or value >= 0), where


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile files under names that a URI must escape, and a sound one."""
    place = tmp_path_factory.mktemp("sarif") / "down loads"
    place.mkdir()
    for index, file in enumerate(hostile_files(place / "sang")):
        (place / f"{index} ü#100%?{file.suffix}").write_bytes(file.data)
    write(place / "sound.pt", simple_tree())
    return place


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [True, False])
def test_log_follows_the_schema_and_names_bad_files(
    absolute: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    out = folder.parent / "scan.sarif"
    result = CliRunner().invoke(app, ["scan", str(folder if absolute else folder.name), "--json", "--sarif", str(out)])
    assert result.exit_code == 4
    log = json.loads(out.read_text(encoding="utf-8"))
    check(log, "log")
    (run,) = log["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {one["ruleId"] for one in run["results"]} <= rules
    uris = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]]
    assert all(uri.startswith("file:///") for uri in uris) == absolute
    bad = {one["path"] for one in json.loads(result.stdout) if one["verdict"] in rules}
    assert {unquote(urlsplit(uri).path) for uri in uris} == bad


def test_empty_log_follows_the_schema(tmp_path: Path) -> None:
    write(tmp_path / "sound.pt", simple_tree())
    out = tmp_path / "scan.sarif"
    assert CliRunner().invoke(app, ["scan", str(tmp_path / "sound.pt"), "--sarif", str(out)]).exit_code == 0
    log = json.loads(out.read_text(encoding="utf-8"))
    check(log, "log")
    assert log["runs"][0]["results"] == []
