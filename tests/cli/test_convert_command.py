"""`hnloader convert`: what is written, shown and reported, exit codes, and what can be wrong on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.files import TEMPORARY_SUFFIX
from hnloader.formats.registry import suffixes
from tests.support.builders import simple_tree, write
from tests.support.paths import GOLDENS, ROOT

PAGE = "<!DOCTYPE html><html>not found</html>"


def run(*arguments: object, **environment: str):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env=environment)


def names(folder: Path) -> list[str]:
    """Every file below the folder, hidden ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Two good files, one of them in a subfolder."""
    (tmp_path / "old" / "sub").mkdir(parents=True)
    shutil.copy(GOLDENS / "relu_121.pt", tmp_path / "old")
    shutil.copy(GOLDENS / "gelu_full.pt", tmp_path / "old" / "sub")
    return tmp_path / "old"


@pytest.fixture
def mixed(old: Path) -> Path:
    """The same with a web page, a LoRA and a note."""
    (old / "page.pt").write_text(PAGE)
    write(old / "lora.pt", {"lora_unet_mid.lora_up.weight": simple_tree()[8][0]["linear.0.weight"]})  # type: ignore[index]
    (old / "notes.txt").write_text("not looked at")
    return old


def test_one_file_becomes_safetensors_beside_it(old: Path) -> None:
    result = run(old / "relu_121.pt")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"✓ {old / 'relu_121.pt'} → {old / 'relu_121.safetensors'}  converted and verified\n"
    assert hnloader.load(old / "relu_121.safetensors").metadata == hnloader.load(old / "relu_121.pt").metadata


def test_safetensors_become_pt(old: Path, tmp_path: Path) -> None:
    run(old / "relu_121.pt", "--out", tmp_path / "there.safetensors")
    result = run(tmp_path / "there.safetensors", "--out", tmp_path / "back.pt")  # the ending says which format
    assert result.exit_code == 0, result.output
    assert hnloader.inspect(tmp_path / "back.pt").format == "pt"
    assert run(tmp_path / "there.safetensors", "--to", "pt").exit_code == 0
    assert hnloader.inspect(tmp_path / "there.pt").metadata == hnloader.inspect(old / "relu_121.pt").metadata


def test_folders_are_mirrored_or_flat(old: Path, tmp_path: Path) -> None:
    assert run(old, "--out", tmp_path / "new").exit_code == 0
    assert names(tmp_path / "new") == ["relu_121.safetensors", "sub/gelu_full.safetensors"]
    assert run(old, "--out", tmp_path / "flat", "--flat").exit_code == 0
    assert names(tmp_path / "flat") == ["gelu_full.safetensors", "relu_121.safetensors"]


def test_exit_codes(mixed: Path, tmp_path: Path) -> None:
    assert run(mixed, "--out", tmp_path / "new").exit_code == 3
    assert run(mixed / "page.pt", "--out", tmp_path / "new").exit_code == 1
    (mixed / "page.pt").unlink()
    assert run(mixed, "--out", tmp_path / "new").exit_code == 0  # other models in a folder are skipped
    assert run(mixed / "lora.pt").exit_code == 1  # alone, it fails


def test_exit_codes_are_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert "| 3 |" in page
    described = " ".join(run("--help").stdout.split())
    for code in (0, 1, 2, 3, 130):
        assert f" {code} " in described


def test_bad_files_are_listed_and_others_counted(mixed: Path) -> None:
    result = run(mixed)
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"✗ {mixed / 'page.pt'}: a web page (HTML)") for line in lines)
    assert any(line.startswith(f"- {mixed / 'lora.pt'}: skipped; a LoRA, not a hypernetwork") for line in lines)
    for outcome, count in (("converted", 2), ("skipped", 1), ("failed", 1)):
        assert any(line.split()[:2] == [outcome, str(count)] for line in lines)
    assert "notes.txt" not in result.output


def test_a_dry_run_writes_nothing(mixed: Path) -> None:
    before = names(mixed)
    result = run(mixed, "--dry-run")
    assert result.exit_code == 3
    assert f"• {mixed / 'relu_121.pt'} → {mixed / 'relu_121.safetensors'}" in result.stdout
    assert names(mixed) == before


def test_a_second_run_changes_nothing(old: Path) -> None:
    assert run(old).exit_code == 0
    times = {name: (old / name).stat().st_mtime_ns for name in names(old)}
    result = run(old)
    assert result.exit_code == 0
    assert any(line.split()[:4] == ["up", "to", "date", "2"] for line in result.stdout.splitlines())
    assert {name: (old / name).stat().st_mtime_ns for name in names(old)} == times


def test_a_target_with_other_settings_is_not_up_to_date(old: Path) -> None:
    run(old / "relu_121.pt")
    halved = run(old / "relu_121.pt", "--dtype", "fp16")
    assert "relu_121.safetensors exists" in halved.stdout
    assert halved.exit_code == 1
    assert run(old / "relu_121.pt", "--dtype", "float16", "--on-existing", "overwrite").exit_code == 0
    assert hnloader.inspect(old / "relu_121.safetensors").dtypes == ("float16",)
    assert "up to date" in run(old / "relu_121.pt", "--dtype", "half").stdout


@pytest.mark.parametrize("to", ["safetensors", "pt"])
def test_pairs_are_verified(to: str, old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    run(old, "--out", new, "--to", to)
    verified = run(old, "--out", new, "--to", to, "--verify-only")
    assert verified.exit_code == 0, verified.output
    assert any(line.split()[:2] == ["verified", "2"] for line in verified.stdout.splitlines())
    other = hnloader.load(new / f"relu_121.{to}")
    with torch.no_grad():
        other.side(other.widths[0], "k").state_dict()["linear.0.weight"][0, 0] += 1
    hnloader.save(other, new / f"relu_121.{to}")
    (new / "sub" / f"gelu_full.{to}").unlink()
    before = names(new)
    result = run(old, "--out", new, "--to", to, "--verify-only")
    assert result.exit_code == 1
    assert "gelu_full" in result.stdout
    assert names(new) == before


@pytest.mark.parametrize("name", ["style.json", "table.csv"])
@pytest.mark.parametrize("existing", ["skip", "rename", "overwrite"])
def test_reports_replace_other_files_only_with_overwrite(name: str, existing: str, old: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"notes": "mine"}')
    arguments = (old, "--out", tmp_path / "new", "--report", tmp_path / name)
    result = run(*arguments, "--on-existing", existing)
    assert (result.exit_code == 0) == (existing == "overwrite")
    assert ("mine" in (tmp_path / name).read_text()) == (existing != "overwrite")
    assert (tmp_path / "new").exists() == (existing == "overwrite")
    (tmp_path / name).unlink()
    for _ in range(2):  # an earlier report is replaced
        assert run(*arguments, "--on-existing", existing).exit_code == 0
    assert "relu_121" in (tmp_path / name).read_text()


def test_reports_hold_every_file(mixed: Path, tmp_path: Path) -> None:
    run(mixed, "--report", tmp_path / "report.json", "--out", tmp_path / "new")
    entries = {Path(entry["source"]).name: entry for entry in json.loads((tmp_path / "report.json").read_text())}
    assert {name: entry["outcome"] for name, entry in entries.items()} == {
        "gelu_full.pt": "converted",
        "lora.pt": "skipped",
        "page.pt": "failed",
        "relu_121.pt": "converted",
    }
    assert entries["page.pt"]["error"] == "UnknownFormatError"
    assert entries["relu_121.pt"]["source_sha256"] == hnloader.inspect(mixed / "relu_121.pt").sha256
    run(mixed, "--report", tmp_path / "report.csv", "--out", tmp_path / "new")
    with (tmp_path / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(file)}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "gelu_full.pt": "up to date",
        "lora.pt": "skipped",
        "page.pt": "failed",
        "relu_121.pt": "up to date",
    }
    assert rows["page.pt"]["target"] == str(tmp_path / "new" / "page.safetensors")


def test_equal_notes_are_shown_once(old: Path) -> None:
    result = run(old, "--dtype", "bfloat16", "--no-verify")
    assert result.exit_code == 0
    names_first = f"Note: {old / 'relu_121.pt'}, {old / 'sub' / 'gelu_full.pt'}: the tensors are rounded to bfloat16"
    assert result.stderr.count("rounded to bfloat16") == 1
    assert names_first in result.stderr
    assert "verified" not in result.stdout


def test_compositions_are_skipped_with_advice(old: Path) -> None:
    (old / "both.hns").write_text("['relu_121', 'gelu_full']")
    result = run(old)
    assert result.exit_code == 0
    assert "both.hns: skipped; a composition of several hypernetworks" in result.stdout
    named = run(old / "both.hns")
    assert named.exit_code == 1
    assert "hnloader merge" in named.stdout


# -- what can be wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "'--jobs'"),
        (["--dtype", "flaot16"], "Did you mean float16?"),
        (["--dtype", "int8"], "float32, float16, bfloat16"),
        (["--to", "safetensor"], "Did you mean safetensors?"),
        (["--on-existing", "ask"], "skip, overwrite, rename"),
        (["--flat"], "--out"),
        (["--verify-only", "--dry-run"], "--dry-run"),
        (["--report", "report.txt"], ".json or .csv"),
        (["--report", "no/such/folder/report.json"], "no/such/folder"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, old: Path) -> None:
    before = names(old)
    result = run(old, *arguments, COLUMNS="300")
    assert result.exit_code == 2
    assert message in result.stderr
    assert names(old) == before


def test_nothing_to_convert(tmp_path: Path) -> None:
    empty = run(tmp_path)
    assert empty.exit_code == 1
    assert all(suffix in empty.stderr for suffix in suffixes())
    missing = run(tmp_path / "missing")
    assert missing.exit_code == 1
    assert missing.stdout.startswith(f"✗ {tmp_path / 'missing'}: ")
    pattern = run(tmp_path / "*.pt")
    assert pattern.stdout.startswith(f"✗ {tmp_path / '*.pt'}: ")


def test_out_is_a_file(old: Path) -> None:
    (old / "file").touch()
    result = run(old, "--out", old / "file")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {old / 'file'}: ")
    assert run(old, "--out", old / "file" / "below").exit_code == 1


def test_a_full_disk_loses_nothing(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = run(old, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert result.stdout.count("No space left on device") == 2
    assert names(tmp_path / "new") == []
    assert run(old, "--out", tmp_path / "new").exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_short_writes_fail(old: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); from hnloader.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "convert", str(old), "--out", str(tmp_path / "new")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout.count("cannot write") == 2
    assert ended.stdout.count("File too large") == 2
    assert names(tmp_path / "new") == []


def test_unwritable_folders_fail(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: object, flags: int, *arguments: object, **named: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)  # the tests may run as root, whom no permission stops
    result = run(old, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert result.stdout.count("Read-only file system") == 2
    assert result.stdout.count("cannot write") == 2


def test_the_source_is_never_replaced(old: Path) -> None:
    before = (old / "relu_121.pt").read_bytes()
    (old / "relu_121.safetensors").symlink_to(old / "relu_121.pt")
    for mode in ("skip", "overwrite"):
        result = run(old / "relu_121.pt", "--on-existing", mode)
        assert result.exit_code == 1
        assert "relu_121.pt" in result.stdout
    same = run(old / "relu_121.pt", "--out", old / "relu_121.pt", "--on-existing", "overwrite", "--normalize")
    assert same.exit_code == 1
    assert (old / "relu_121.pt").read_bytes() == before


def test_names_that_differ_only_in_case(old: Path, tmp_path: Path) -> None:
    shutil.copy(old / "sub" / "gelu_full.pt", old / "RELU_121.pt")
    result = run(old, "--out", tmp_path / "new")
    assert result.exit_code == 0
    assert names(tmp_path / "new") == ["RELU_121.safetensors", "relu_121-2.safetensors", "sub/gelu_full.safetensors"]
    assert "differs only in upper and lower case" in result.stdout


def test_long_paths_and_names_of_every_language(old: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep" / Path(*["x" * 50] * 6)
    deep.mkdir(parents=True)
    for name in ("Ölfarbe.pt", "スタイル 🎨.pt", "мазок.pt", "new\nline.pt", "[red]{0}%s.pt", "-leading.pt"):
        shutil.copy(old / "relu_121.pt", deep / name)
    result = run(tmp_path / "deep", "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert len(str(deep)) > 300
    assert len(names(tmp_path / "new")) == 6
    assert (tmp_path / "new" / deep.relative_to(tmp_path / "deep") / "スタイル 🎨.safetensors").is_file()
    assert len(result.stdout.splitlines()) == len([line for line in result.stdout.splitlines() if "\x1b" not in line])


def test_too_long_names_fail(old: Path) -> None:
    longest = old / ("x" * 250 + ".pt")
    shutil.copy(old / "relu_121.pt", longest)
    result = run(old)
    assert result.exit_code == 3
    assert "File name too long" in result.stdout
    assert not [name for name in names(old) if name.endswith(TEMPORARY_SUFFIX)]


def test_a_loop_of_links(old: Path, tmp_path: Path) -> None:
    (old / "sub" / "loop").symlink_to(old, target_is_directory=True)
    assert run(old, "--out", tmp_path / "new").exit_code == 0
    assert names(tmp_path / "new") == ["relu_121.safetensors", "sub/gelu_full.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for child processes")
def test_ctrl_c_finishes_running_files_and_reports(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for number in range(1000):
        write(tmp_path / "old" / f"{number}.pt", simple_tree(seed=number))
    arguments = ["convert", tmp_path / "old", "--out", tmp_path / "new", "--report", tmp_path / "report.json"]
    command = [sys.executable, "-m", "hnloader", *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "new").glob("*.safetensors")):
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    done = names(tmp_path / "new")
    assert running.returncode == 130, err
    assert 0 < len(done) < 1000
    assert all(name.endswith(".safetensors") for name in done)
    assert len(json.loads((tmp_path / "report.json").read_text())) == len(done)
    assert f" {len(done)} of 1,000 files" in err
    assert any(line.split()[:2] == ["converted", str(len(done))] for line in out.splitlines())
