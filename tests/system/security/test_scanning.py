"""Verdicts on files, found without unpickling: calls of every kind are named, sound files are not accused."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path

import numpy
import pytest
import torch

from hnloader.scanning import Scan, scan, scan_all
from tests.support.builders import simple_tree, write
from tests.support.hostile import HostileFile, called, hostile_files, in_zip, named, rezipped, saved, short, text
from tests.support.paths import GOLDENS


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[HostileFile, Scan]]:
    folder = tmp_path_factory.mktemp("scan")
    found = []
    for index, file in enumerate(hostile_files(folder / "sang")):
        path = folder / f"{index}{file.suffix}"
        path.write_bytes(file.data)
        found.append((file, scan(path)))
    assert not (folder / "sang").exists()
    return found


@pytest.mark.slow
def test_every_file_with_a_call_is_suspicious(verdicts: list[tuple[HostileFile, Scan]]) -> None:
    missed = [(file.name, one.verdict) for file, one in verdicts if file.calls and one.verdict != "suspicious"]
    assert not missed


def test_suspicious_files_have_described_findings(verdicts: list[tuple[HostileFile, Scan]]) -> None:
    for file, one in verdicts:
        assert (one.verdict == "suspicious") == bool(one.findings), file.name
        assert all(finding.what for finding in one.findings)
        assert one.reason or one.verdict == "safe"


def test_files_that_inspect_refuses_are_never_safe(verdicts: list[tuple[HostileFile, Scan]]) -> None:
    for file, one in verdicts:
        assert one.verdict != "safe" or "inspect" not in file.readers, file.name


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDENS.glob("*.pt")))
def test_golden_files_are_safe(name: str) -> None:
    found = scan(GOLDENS / name)
    assert found.verdict == "safe" and not found.findings and found.callables


def test_callable_offset_and_member_are_named(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    code = called(named("posix:system"), text("true"))
    path.write_bytes(in_zip(rezipped(saved(simple_tree())), code))
    (finding,) = scan(path).findings
    assert (finding.callable, finding.member) == ("posix.system", "archive/data.pkl")
    import zipfile

    data = zipfile.ZipFile(path).read("archive/data.pkl")
    assert finding.offset is not None
    # The offset is that of GLOBAL's last byte, the names being read with it.
    assert data[: finding.offset + 1].endswith(b"cposix\nsystem\n")


def test_random_pickles_are_scanned(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": collections.Counter("abc"), "b": collections.UserDict()}))
    found = scan(path)
    assert found.verdict == "suspicious"
    assert [finding.callable for finding in found.findings] == ["collections.UserDict"]
    assert "collections.Counter" in found.callables
    path.write_bytes(pickle.dumps({"a": [1, 2.5, "x"], "b": collections.OrderedDict(a=1)}))
    found = scan(path)
    assert (found.verdict, found.callables) == ("not a hypernetwork", ["collections.OrderedDict"])


def test_consecutive_pickles_are_scanned(tmp_path: Path) -> None:
    path = tmp_path / "rows.pkl"
    path.write_bytes(pickle.dumps(1) + pickle.dumps(2) + b"\x80\x02" + called(named("os:system"), text("true")) + b".")
    found = scan(path)
    assert (found.verdict, found.pickles) == ("suspicious", 3)


def test_protocol_0_is_found_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.bin"
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert scan(path).findings[0].callable == "os.system"


def test_pickles_in_other_archives_are_found(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("inner/anything.xyz", b"\x80\x04" + called(named("os:system"), text("true")) + b".")
    (finding,) = scan(path).findings
    assert (finding.callable, finding.member) == ("os.system", "inner/anything.xyz")


def checkpoint_with(module: str, attribute: str, use: bytes, path: Path) -> Path:
    """A full checkpoint that names a global besides, and uses it by these opcodes."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(2)}}, buffer)
    path.write_bytes(in_zip(rezipped(buffer.getvalue()), short(module) + short(attribute) + b"\x93" + use))
    return path


@pytest.mark.parametrize(
    ("module", "attribute", "use"),
    [
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", b""),
        ("omegaconf.listconfig", "ListConfig", b")\x81}b"),
        ("pathlib", "PosixPath", short("a") + b"\x85R"),
        ("torch", "device", short("cpu") + b"\x85R"),
    ],
)
def test_checkpoints_with_common_classes_are_not_suspicious(
    module: str, attribute: str, use: bytes, tmp_path: Path
) -> None:
    found = scan(checkpoint_with(module, attribute, use, tmp_path / "model.ckpt"))
    assert (found.verdict, found.findings) == ("not a hypernetwork", [])


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("pytorch_lightning.trainer", "os.system"),
        ("pytorch_lightning.trainer.subprocess", "Popen"),
        ("pytorch_lightning.core.module", "torch.fx.GraphModule"),
        ("pytorch_lightning.core.module.torch.fx", "GraphModule"),
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),  # may be named, not called
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint.__init__"),
        ("pytorch_lightning.callbacks", "model_checkpoint.ModelCheckpoint"),
        ("omegaconf.base", "copy.copy"),
        ("omegaconf", "OmegaConf"),
        ("numpy.core.multiarray", "os.system"),
        ("numpy.core", "multiarray.scalar"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch", "FloatStorage"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.torch", "device"),
        ("collections", "OrderedDict.fromkeys"),
    ],
)
def test_only_listed_names_and_calls_are_accepted(module: str, attribute: str, tmp_path: Path) -> None:
    for use in (b")R", b")\x81", b")}\x92"):
        assert scan(checkpoint_with(module, attribute, use, tmp_path / "model.ckpt")).verdict == "suspicious", use


def test_arrays_in_other_models_are_not_suspicious(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.ckpt", {"state_dict": {"model.diffusion_model.x": torch.zeros(2)}, "l": numpy.float64(1)}
    )
    assert scan(path).verdict == "not a hypernetwork"


@pytest.mark.parametrize("data", [b"hello\n", b"\x89PNG\r\n\x1a\n" + bytes(50), b"<html>", b"[1, 2]", b"# cos\n"])
def test_other_files_are_not_suspicious(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert scan(path).verdict == "not a hypernetwork"


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pt"
    empty.touch()
    assert scan(empty).verdict == "unreadable"
    assert scan(tmp_path / "gone.pt").verdict == "unreadable"
    cut = tmp_path / "cut.pt"
    cut.write_bytes(saved(simple_tree())[:700])
    assert scan(cut).verdict == "unreadable"


def test_folders_with_loops_are_scanned_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "deep.pt", simple_tree())
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    assert [(one.path.name, one.verdict) for one in scan_all([tmp_path])] == [
        ("gone.pt", "unreadable"),
        ("deep.pt", "safe"),
    ]
