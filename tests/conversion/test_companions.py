"""A hypernetwork and its `.optim` stay a pair, and replace other files only with overwrite."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader import HypernetworkError
from hnloader.conversion import convert
from hnloader.conversion.bulk import OnExisting, convert_many, dry_run
from hnloader.conversion.planning import plan
from hnloader.conversion.results import Result
from hnloader.conversion.to_format import ToFormat
from hnloader.errors import ExistingFileError
from hnloader.formats.registry import format_named
from tests.support.builders import simple_tree, write
from tests.support.formats import write_safetensors_with

KEEPING: tuple[OnExisting, ...] = ("skip", "rename")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pair(path: Path, seed: int = 0) -> Path:
    """A hypernetwork with its optimizer's state beside it."""
    write(path, simple_tree(8, seed=seed))
    state = {"state": {0: {"step": 5, "exp_avg": torch.arange(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    content = {"optimizer_name": "AdamW", "hash": sha256(path)[:10], "optimizer_state_dict": state}
    write(path.with_name(path.name + ".optim"), content)
    return path


def assert_pair(path: Path) -> None:
    state = torch.load(path.with_name(path.name + ".optim"), weights_only=True)
    assert state["hash"] == sha256(path)[:10]
    hnloader.load(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def convert_one(folder: Path, existing: OnExisting, suffix: str) -> Result:
    (result,) = convert_many(
        plan([folder / f"style{other(suffix)}"], suffix=suffix), ToFormat(suffix), on_existing=existing
    )
    return result


def other(suffix: str) -> str:
    return ".pt" if suffix == ".safetensors" else ".safetensors"


@pytest.fixture(params=[".safetensors", ".pt"])
def suffix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with a pair to convert into a file of this suffix."""
    source = pair(tmp_path / "style.pt")
    if request.param == ".pt":
        convert(source, tmp_path / "style.safetensors")
        source.unlink()
        (tmp_path / "style.pt.optim").unlink()
    return str(request.param)


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("existing", KEEPING)
@pytest.mark.parametrize("there", ["file", "state", "both", "link of a state", "broken link of a state", "folder"])
def test_existing_pairs_stay_without_overwrite(
    there: str, existing: OnExisting, bulk: bool, suffix: str, tmp_path: Path
) -> None:
    target, state = tmp_path / f"style{suffix}", tmp_path / f"style{suffix}.optim"
    if there in ("file", "both"):
        target.write_bytes(b"old file")
    if there in ("state", "both"):
        state.write_bytes(b"old state")
    if "link" in there:
        state.symlink_to(tmp_path / "elsewhere")
        if "broken" not in there:
            (tmp_path / "elsewhere").write_bytes(b"old state")
    if there == "folder":
        state.mkdir()
    before = contents(tmp_path)
    if bulk:
        result = convert_one(tmp_path, existing, suffix)
        assert result.outcome == ("skipped" if existing == "skip" else "converted"), result.reason
        made = result.target
    else:
        done = convert(tmp_path / f"style{other(suffix)}", target, on_existing=existing)
        assert done.action == ("skipped" if existing == "skip" else "converted")
        made = done.target
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert state.is_symlink() == ("link" in there)
    if existing == "skip":
        assert after == before
    else:
        assert made == tmp_path / f"style-2{suffix}"
        assert_pair(made)
        assert len(after) == len(before) + 2


@pytest.mark.parametrize("bulk", [False, True])
def test_overwrite_replaces_both(bulk: bool, suffix: str, tmp_path: Path) -> None:
    target = pair(tmp_path / "else.pt", seed=3).rename(tmp_path / f"style{suffix}")
    (tmp_path / "else.pt.optim").rename(tmp_path / f"style{suffix}.optim")
    before = sha256(target)
    if bulk:
        assert convert_one(tmp_path, "overwrite", suffix).outcome == "converted"
    else:
        convert(tmp_path / f"style{other(suffix)}", target)
    assert sha256(target) != before
    assert_pair(target)


@pytest.mark.parametrize("existing", ["skip", "rename", "overwrite"])
def test_a_second_run_keeps_the_pair(existing: OnExisting, suffix: str, tmp_path: Path) -> None:
    assert convert_one(tmp_path, existing, suffix).outcome == "converted"
    assert_pair(tmp_path / f"style{suffix}")
    before = contents(tmp_path)
    assert convert_one(tmp_path, existing, suffix).outcome == ("converted" if existing == "overwrite" else "up to date")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_a_run_killed_between_both_files_resumes(existing: OnExisting, suffix: str, tmp_path: Path) -> None:
    convert_one(tmp_path, existing, suffix)
    before = contents(tmp_path)
    (tmp_path / f"style{suffix}").unlink()
    assert convert_one(tmp_path, existing, suffix).outcome == "converted"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("existing", KEEPING)
def test_files_that_appear_meanwhile_stay(
    existing: OnExisting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write_it = pair(tmp_path / "style.pt"), format_named("safetensors").write
    assert write_it is not None

    def slowly(outgoing: object, path: Path) -> None:
        (tmp_path / "style.safetensors.optim").write_bytes(b"theirs")
        write_it(outgoing, path)  # type: ignore[arg-type]

    write_safetensors_with(monkeypatch, slowly)
    result = convert_one(tmp_path, existing, ".safetensors")
    assert result.outcome == "skipped"
    assert "exists" in result.reason
    assert (tmp_path / "style.safetensors.optim").read_bytes() == b"theirs"
    assert set(contents(tmp_path)) == {"style.pt", "style.pt.optim", "style.safetensors.optim"}
    assert source.exists()


def test_states_without_source_stay(tmp_path: Path) -> None:
    write(tmp_path / "style.pt", simple_tree(8))
    (tmp_path / "style.safetensors.optim").write_bytes(b"old")
    assert convert_one(tmp_path, "skip", ".safetensors").outcome == "converted"
    assert (tmp_path / "style.safetensors.optim").read_bytes() == b"old"


def test_a_dry_run_shows_renamed_pairs(tmp_path: Path) -> None:
    pair(tmp_path / "style.pt")
    (tmp_path / "style.safetensors.optim").write_bytes(b"old")
    planned = plan([tmp_path / "style.pt"], suffix=".safetensors")
    (result,) = dry_run(planned, ToFormat(".safetensors"), on_existing="rename")
    assert result.target == tmp_path / "style-2.safetensors"
    assert not (tmp_path / "style-2.safetensors").exists()


# -- what fails half way


@pytest.mark.parametrize(
    "fails", ["writing the file", "verification", "writing the state", "taking the name", "a change"]
)
def test_failures_keep_the_old_pair(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hnloader.conversion import companions, single

    source = pair(tmp_path / "style.pt")
    target = tmp_path / "style.safetensors"
    target.write_bytes(b"old file")
    (tmp_path / "style.safetensors.optim").write_bytes(b"old state")
    before = contents(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if fails == "writing the file":
        write_safetensors_with(monkeypatch, full)
    elif fails == "verification":
        monkeypatch.setattr(single, "verify_equal", full)
    elif fails == "writing the state":
        monkeypatch.setattr(companions, "write_tree", full)
    elif fails == "taking the name":
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, to: full() if to == target else replace(self, to))
    else:
        verify = single.verify_equal

        def changed(*arguments: object) -> object:
            os.utime(source, ns=(1, 1))
            return verify(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(single, "verify_equal", changed)
    with pytest.raises(HypernetworkError):
        convert(source, target)
    assert contents(tmp_path) == before


# -- private files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_results_of_private_files_are_private(suffix: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"style{other(suffix)}", tmp_path / f"style{suffix}"
    usual = mode(source)
    source.chmod(0o600)
    convert(source, target)
    assert mode(target) == 0o600
    assert mode(tmp_path / f"style{suffix}.optim") == usual
    source.chmod(0o640)
    (tmp_path / f"style{other(suffix)}.optim").chmod(0o600)
    target.chmod(0o664)
    convert(source, target)
    assert mode(target) == 0o660
    assert mode(tmp_path / f"style{suffix}.optim") == 0o600


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_saved_private_files_are_private(tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree(8))
    source.chmod(0o600)
    target = tmp_path / "new.safetensors"
    hnloader.save(hnloader.load(source), target, sources=[source])
    assert mode(target) == 0o600
    with pytest.raises(ExistingFileError):
        hnloader.save(hnloader.load(source), target, overwrite=False)
