"""Files in ComfyUI's folders."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import pytest

from hnloader.errors import CorruptFileError, HypernetworkNotFoundError
from tests.support.paths import GOLDENS
from tests.support.standins.comfyui_host import Host, running


def test_all_formats_are_listed_and_others_not(comfyui: Host) -> None:
    (comfyui.folder / "ink.png").touch()
    (comfyui.folder / "model.ckpt").touch()
    names = comfyui.part("hypernetwork_files").names()
    assert {"relu_121.pt", "hns_nested.hns", str(Path("styles", "ink.pt"))} <= set(names)
    assert not {name for name in names if name.endswith((".png", ".ckpt"))}


def test_an_empty_folder_offers_a_line_that_says_where_files_go(tmp_path: Path) -> None:
    with running(tmp_path) as host:
        required = host.node("LoadHypernetwork").INPUT_TYPES()["required"]
        (line,) = required["hypernetwork"][0]
        assert "models/hypernetworks" in line
        assert "models/hypernetworks" in host.node("LoadHypernetwork").VALIDATE_INPUTS(line)


def test_names_of_other_systems(comfyui: Host) -> None:
    files = comfyui.part("hypernetwork_files")
    assert files.path_of("styles\\ink.pt") == files.path_of("styles/ink.pt") == comfyui.folder / "styles" / "ink.pt"


@pytest.mark.parametrize("name", ["../secret.pt", "/etc/passwd", "gone.pt", ""])
def test_only_listed_files_are_found(name: str, comfyui: Host) -> None:
    shutil.copy(GOLDENS / "relu_121.pt", comfyui.folder.parent / "secret.pt")
    with pytest.raises(HypernetworkNotFoundError):
        comfyui.part("hypernetwork_files").path_of(name)


def test_a_missing_file_of_a_workflow_is_reported_before_it_runs(comfyui: Host) -> None:
    for node in ("LoadHypernetwork", "CreateHookHypernetwork", "HypernetworkStrengths", "HypernetworkInfo"):
        assert "gone.pt" in comfyui.node(node).VALIDATE_INPUTS(hypernetwork="gone.pt")
        assert comfyui.node(node).VALIDATE_INPUTS(hypernetwork="relu_121.pt") is True
        assert comfyui.node(node).VALIDATE_INPUTS() is True  # connected to another node


def test_a_changed_file_is_loaded_again(comfyui: Host) -> None:
    files, node = comfyui.part("hypernetwork_files"), comfyui.node("LoadHypernetwork")
    path = files.path_of("relu_121.pt")
    first, stamp = files.load(path), node.IS_CHANGED(hypernetwork="relu_121.pt", strength=1.0)
    assert files.load(path) is first
    assert node.IS_CHANGED(hypernetwork="relu_121.pt", strength=0.5) == stamp
    shutil.copy(GOLDENS / "swish_121.pt", path)
    os.utime(path, ns=(1, 1))
    assert files.load(path) is not first
    assert node.IS_CHANGED(hypernetwork="relu_121.pt", strength=1.0) != stamp


def test_files_that_no_node_uses_leave_the_memory(comfyui: Host) -> None:
    files = comfyui.part("hypernetwork_files")
    reference = weakref.ref(files.load(files.path_of("relu_121.pt")))
    gc.collect()
    assert reference() is None


def test_a_changed_member_of_a_composition_is_seen(comfyui: Host) -> None:
    files = comfyui.part("hypernetwork_files")
    composition = files.path_of("hns_nested.hns")
    node = comfyui.node("LoadHypernetwork")
    before = node.IS_CHANGED(hypernetwork="hns_nested.hns")
    os.utime(comfyui.folder / "relu_121.pt", ns=(1, 1))
    members = {path.name for path in files.hnloader.inspect(composition, files.folders()).members}
    assert (node.IS_CHANGED(hypernetwork="hns_nested.hns") != before) == ("relu_121.pt" in members)
    assert files.load(composition) is not files.load(composition)


def test_messages_name_no_folder_of_the_computer(comfyui: Host) -> None:
    (comfyui.folder / "styles" / "torn.pt").write_bytes((GOLDENS / "relu_121.pt").read_bytes()[:2000])
    for name, run in (
        ("LoadHypernetwork", lambda node: node.load(None, "styles/torn.pt", 1.0)),
        ("HypernetworkInfo", lambda node: node.inspect("styles/torn.pt")),
    ):
        with pytest.raises(CorruptFileError) as raised:
            run(comfyui.node(name))
        assert str(raised.value).startswith(str(Path("styles", "torn.pt")))


def test_a_tag_finds_names_as_in_webuis(comfyui: Host) -> None:
    files = comfyui.part("hypernetwork_files")
    for name in ("ink", "ink.pt", "styles/ink", "INK"):
        assert files.tagged_path(name) == comfyui.folder / "styles" / "ink.pt"
    with pytest.raises(HypernetworkNotFoundError) as raised:
        files.tagged_path("inc")
    assert "'ink'" in str(raised.value) and str(comfyui.folder) not in str(raised.value)
