from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hnloader.cli.app import app
from tests.support.builders import simple_tree, write

EVIL = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["scan", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "files"
    (found / "sub").mkdir(parents=True)
    write(found / "good.pt", simple_tree())
    (found / "notes.txt").write_text("hello")
    return found


def test_harmless_files_exit_with_0(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert "good.pt" in result.stdout and "notes.txt" not in result.stdout
    assert "notes.txt" in run(folder, "--all").stdout
    assert "1 not a hypernetwork, 1 safe" in result.stderr


def test_exit_codes_of_unreadable_and_suspicious_files(folder: Path) -> None:
    (folder / "empty.pt").touch()
    assert run(folder).exit_code == 1
    (folder / "sub" / "evil.pkl").write_bytes(EVIL)
    result = run(folder)
    assert result.exit_code == 4
    assert "the global 'os.system' at byte 12" in result.stdout
    assert run(folder / "gone.pt").exit_code == 1


def test_unknown_option_exits_with_2() -> None:
    assert run("--wrong").exit_code == 2


def test_json(folder: Path) -> None:
    (folder / "sub" / "evil.pkl").write_bytes(EVIL)
    files = {Path(one["path"]).name: one for one in json.loads(run(folder, "--json").stdout)}
    assert set(files) == {"good.pt", "notes.txt", "evil.pkl"}
    assert files["evil.pkl"]["verdict"] == "suspicious"
    assert files["evil.pkl"]["findings"] == [
        {"what": "the global 'os.system'", "callable": "os.system", "offset": 12, "member": None}
    ]
    assert "torch._utils._rebuild_tensor_v2" in files["good.pt"]["callables"]


def test_sarif_replaces_earlier_findings_but_never_a_scanned_file(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for path in before:
        assert run(folder, "--sarif", path).exit_code == 1
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):
        run(folder, "--sarif", folder / "out.sarif")
        assert "2.1.0" in (folder / "out.sarif").read_text()


def test_sarif(folder: Path, tmp_path: Path) -> None:
    (folder / "sub" / "evil file.pkl").write_bytes(EVIL)
    (folder / "empty.pt").touch()
    out = tmp_path / "out.sarif"
    assert run(folder, "--sarif", out).exit_code == 4
    log = json.loads(out.read_text())
    assert log["version"] == "2.1.0"
    (one,) = log["runs"]
    rules = {rule["id"] for rule in one["tool"]["driver"]["rules"]}
    by_rule = {result["ruleId"]: result for result in one["results"]}
    assert set(by_rule) == {"suspicious", "unreadable"} <= rules
    place = by_rule["suspicious"]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"].endswith("sub/evil%20file.pkl")
    assert place["region"] == {"byteOffset": 12, "byteLength": 1}
    assert (by_rule["suspicious"]["level"], by_rule["unreadable"]["level"]) == ("error", "warning")


def test_control_characters_in_files_never_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x04\x8c\x02os\x8c\x0e\x1b[2J\x07\r[b]\xe2\x80\xaesy\x93)R.")
    for result in (run(path), run(path, "--all"), run(path, "--json"), run(path, "--sarif", tmp_path / "s")):
        assert result.exit_code == 4
        for letter in "\x1b\x07\r\u202e":
            assert letter not in result.output
    assert not set("\x1b\x07\r\u202e") & set((tmp_path / "s").read_text())
