from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import hnloader
from hnloader.cli.app import app
from tests.support.paths import GOLDENS


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two valid files, one in a subfolder, an empty file and a web page."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "relu_121.pt").write_bytes((GOLDENS / "relu_121.pt").read_bytes())
    (tmp_path / "sub" / "gelu_full.pt").write_bytes((GOLDENS / "gelu_full.pt").read_bytes())
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path


def test_one_file_is_shown_in_full() -> None:
    path = GOLDENS / "gelu_full.pt"
    result = run(path)
    assert result.exit_code == 0
    info = hnloader.inspect(path)
    for text in ("SD 1", "320, 640, 768, 1280", "gelu", "1,234 steps on golden-base (deadbeef01)", "float16"):
        assert text in result.stdout
    assert info.sha256 in result.stdout.replace("\n", "")
    assert f"{info.short_hash} (2022: {info.legacy_hash})" in result.stdout
    assert info.sha256 not in run(path, "--no-hash").stdout


def test_folder_is_a_table_with_the_errors_below(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    (row,) = (line for line in lines if "sub/gelu_full.pt" in line)
    assert "SD 1" in row
    assert "1-0.05-1, gelu" in row
    assert any(line.startswith("✗ empty.pt") and "empty" in line for line in lines)
    assert any(line.startswith("✗ page.safetensors") and "web page" in line.lower() for line in lines)
    assert "notes.txt" not in result.stdout
    assert "2 hypernetworks, 2 other files" in result.stderr


def test_valid_files_exit_with_0(folder: Path) -> None:
    result = run(folder / "relu_121.pt", folder / "sub")
    assert result.exit_code == 0
    assert "relu_121.pt" in result.stdout
    assert "gelu_full.pt" in result.stdout


def test_table_with_hashes(folder: Path) -> None:
    short = hnloader.inspect(folder / "relu_121.pt").short_hash
    assert short in run(folder, "--hash").stdout
    assert short not in run(folder).stdout


def test_narrow_terminal(folder: Path) -> None:
    result = run(folder, COLUMNS="80")
    assert max(map(len, result.stdout.splitlines()[:6])) <= 80
    assert "sub/gelu_full.pt" in result.stdout
    assert "1-2-1, relu" in result.stdout


def test_json(folder: Path) -> None:
    result = run(folder, "--json")
    assert result.exit_code == 1
    entries = {Path(entry["path"]).name: entry for entry in json.loads(result.stdout)}
    assert set(entries) == {"relu_121.pt", "gelu_full.pt", "empty.pt", "page.safetensors"}
    assert entries["relu_121.pt"] == hnloader.inspect(folder / "relu_121.pt").to_dict(hashes=False)
    assert entries["empty.pt"]["error"]["kind"] == "CorruptFileError"
    (one,) = json.loads(run(folder / "relu_121.pt", "--json", "--hash").stdout)
    assert one["sha256"] == hnloader.inspect(folder / "relu_121.pt").sha256


def test_missing_file(tmp_path: Path) -> None:
    result = run(tmp_path / "gone.pt")
    assert result.exit_code == 1
    assert len((result.stdout + result.stderr).strip().splitlines()) == 1
    assert "gone.pt" in result.stdout


def test_empty_folder(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert ".safetensors, .pt, .hns" in result.stderr


def test_control_characters_in_files_never_reach_the_terminal(tmp_path: Path) -> None:
    data = torch.load(GOLDENS / "relu_121.pt", weights_only=True)
    evil = "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]\u202egpj\r\nnext"
    data |= {"name": evil, "sd_checkpoint_name": evil, "optional_info": evil}
    path = tmp_path / "[red]evil[slash].pt"
    torch.save(data, path)
    for result in (run(path), run(tmp_path), run(path, "--json")):
        assert result.exit_code == 0
        for letter in "\x1b\x07\u202e\r":
            assert letter not in result.output
    assert "[bold]x[/bold]" in run(path).stdout
    assert "[red]evil[slash].pt" in run(tmp_path).stdout


def test_malicious_file_is_refused_without_running(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path = tmp_path / "evil.pt"
    torch.save({768: Evil()}, path)
    result = run(path)
    assert result.exit_code == 1
    assert not marker.exists()
    assert len(result.stdout.strip().splitlines()) == 1


def test_missing_argument_is_a_usage_error() -> None:
    result = run()
    assert result.exit_code == 2


def test_many_files_of_another_kind_share_a_line(folder: Path) -> None:
    for index in range(50):
        save_file({f"lora_unet_{index}.lora_up.weight": torch.zeros(2, 2)}, folder / f"lora-{index:02}.safetensors")
        torch.save({f"key {index}": "a text"}, folder / f"other-{index:02}.pt")
        (folder / f"cut-off-{index:02}.pt").write_bytes((GOLDENS / "relu_121.pt").read_bytes()[: 100 + index])
    result = run(folder)
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line.startswith("✗")]
    assert "✗ 50 files: a LoRA; lora-00.safetensors, lora-01.safetensors and 48 more" in lines
    assert "✗ 50 files: a dict without a key per width; other-00.pt, other-01.pt and 48 more" in lines
    # Damaged files, and small groups, have a line each.
    assert sum(line.startswith("✗ cut-off-") for line in lines) == 50
    assert len(lines) == 2 + 50 + 2
    assert "2 hypernetworks, 152 other files" in result.stderr
    assert len(json.loads(run(folder, "--json").stdout)) == 154
