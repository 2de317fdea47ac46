"""The root of the repository as a package: in `custom_nodes`, and in the folder where Python starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.paths import ROOT
from tests.support.standins.comfyui_host import running

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_python_finds_the_library_beside_a_clone(tmp_path: Path) -> None:
    """The folder of a clone is often named hnloader, and Python imports it first if it starts beside it."""
    (tmp_path / "hnloader").symlink_to(ROOT, target_is_directory=True)
    program = "import hnloader, hnloader.prompt; print(hnloader.load.__module__, hnloader.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hnloader.loading", str(ROOT / "hnloader" / "__init__.py")]
    ran = subprocess.run(
        [sys.executable, "-m", "hnloader", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip()


def test_without_comfyui_the_clone_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "some_clone").symlink_to(ROOT, target_is_directory=True)
    program = "import some_clone, sys; print('torch' in sys.modules, hasattr(some_clone, 'NODE_CLASS_MAPPINGS'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_nodes_use_the_library_of_their_clone(tmp_path: Path) -> None:
    """Also if another version is installed; the clone itself is not on `sys.path`."""
    other = tmp_path / "installed" / "hnloader"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '0.0'")
    (tmp_path / "models").mkdir()
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from tests.support.standins.comfyui_host import running\n"
        "sys.path.remove(sys.argv[1]); sys.path.insert(0, sys.argv[2])\n"
        "with running(Path(sys.argv[3])) as host:\n"
        "    import hnloader; print(hnloader.__file__)\n"
    )
    given = [ROOT, other.parent, tmp_path / "models"]
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", program, *map(str, given)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / "hnloader" / "__init__.py")]


def test_another_library_in_use_is_reported(tmp_path: Path, capsys) -> None:
    import hnloader

    assert Path(hnloader.__file__).parent == ROOT / "hnloader"
    with running(tmp_path):
        assert capsys.readouterr().out == ""


def test_the_metadata_of_the_registry_names_files_that_exist() -> None:
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    assert comfy["requires-comfyui"] == ">=0.3.60"
    for name in comfy["includes"]:
        assert (ROOT / name).exists(), name


def test_each_node_has_a_page_of_help(tmp_path: Path) -> None:
    with running(tmp_path) as host:
        pages = {path.stem for path in (ROOT / host.pack.WEB_DIRECTORY / "docs").glob("*.md")}
        assert pages == set(host.pack.NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_examples_fit_the_nodes_and_their_images_contain_them(path: Path, tmp_path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    with Image.open(ROOT / "docs" / "images" / f"comfyui-{path.stem.replace('_', '-')}.png") as image:
        assert json.loads(image.text["workflow"]) == workflow
    assert path.with_suffix(".jpg").is_file()
    with running(tmp_path) as host:
        ours = [node for node in workflow["nodes"] if node["type"].startswith("Hnloader")]
        assert ours
        for node in ours:
            inputs = host.pack.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
            given = {**inputs["required"], **inputs.get("optional", {})}
            widgets = [
                name
                for name, (kind, more) in given.items()
                if (isinstance(kind, list) or kind in ("STRING", "FLOAT")) and not more.get("forceInput")
            ]
            assert len(node["widgets_values"]) == len(widgets), node["type"]


def test_the_example_of_strengths_has_a_title() -> None:
    workflow = json.loads((ROOT / "example_workflows" / "compare_strengths.json").read_text(encoding="utf-8"))
    (grid,) = [node for node in workflow["nodes"] if node["type"] == "HnloaderHypernetworkGrid"]
    assert grid["widgets_values"] == ["style"]
