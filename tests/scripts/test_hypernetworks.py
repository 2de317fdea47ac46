"""scripts/hypernetworks.py beside other extensions: a second copy, packages with the same names, and failures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hnloader
from tests.support.paths import ROOT
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Restore `sys.modules` after each test. A webui has not imported `extension` yet."""
    before = dict(sys.modules)
    ours = {name: module for name, module in before.items() if name.partition(".")[0] == "extension"}
    for name in ours:
        del sys.modules[name]
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("extension", "hnloader_webui"):
            del sys.modules[name]
    sys.modules.update(ours)
    sys.modules["hnloader"] = before["hnloader"]


def callbacks(webui: Webui) -> dict[str, int]:
    return {kind: len(found) for kind, found in webui.part("script_callbacks").callbacks.items()}


def notice_in(webui: Webui) -> str:
    """Return what the scripts show in the page."""
    import gradio

    with gradio.Blocks() as page:
        for script in webui.part("scripts").ScriptRunner(False).alwayson_scripts:
            script.ui(False)
    return " ".join(str(block.value) for block in page.blocks.values() if isinstance(block, gradio.HTML))


def applies(webui: Webui) -> bool:
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    plain, tagged = (webui.generate(prompt).images[0] for prompt in ("a", "a<hypernet:ink>"))
    hooks = sum(len(module._forward_pre_hooks) for module in webui.unet.modules())
    return not torch.equal(plain, tagged) and hooks == 0


@pytest.fixture
def alone(webui: Webui) -> dict[str, int]:
    """Return the number of callbacks that one copy registers."""
    webui.install("a-copy")
    webui.start()
    return callbacks(webui)


@pytest.mark.parametrize("how", ["a second clone", "a link to the same folder"])
def test_second_copy_is_reported_and_ignored(
    how: str, webui: Webui, alone: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    extensions = webui.folder / "extensions"
    if how == "a second clone":
        webui.install("b-copy")
    else:
        (extensions / "b-copy").symlink_to(extensions / "a-copy", target_is_directory=True)
    for _ in range(2):
        capsys.readouterr()
        webui.reload()
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "copies" in line)
        assert f"{extensions / 'a-copy'} is used, {extensions / 'b-copy'} is not" in line
        assert callbacks(webui) == alone
        assert applies(webui)
    assert webui.reports == []


def test_other_copy_runs_after_the_first_is_removed(
    webui: Webui, alone: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    webui.install("b-copy")
    webui.reload()
    (webui.folder / "extensions" / "a-copy").rename(webui.folder / "gone")
    capsys.readouterr()
    webui.reload()
    assert "copies" not in capsys.readouterr().out
    assert callbacks(webui) == alone
    assert applies(webui)


@pytest.mark.parametrize("name", ["an-earlier-one", "z-later-one"])
def test_package_extension_of_another_repository(name: str, webui: Webui) -> None:
    script = "import extension\nfrom modules import shared\nshared.value_of_theirs = extension.WHOSE\n"
    webui.add_script(name, script, extension="WHOSE = 'theirs'")
    webui.install()
    webui.start()
    assert webui.reports == []
    assert webui.shared.value_of_theirs == "theirs"
    assert applies(webui)
    sys.modules.pop("extension", None)
    webui.reload()
    assert webui.reports == []
    assert webui.shared.value_of_theirs == "theirs"
    assert applies(webui)


@pytest.mark.slow
def test_own_hnloader_wins_over_an_installed_one(webui: Webui, tmp_path: Path) -> None:
    """The webuis put the extension's folder first on `sys.path`."""
    (tmp_path / "site" / "hnloader").mkdir(parents=True)
    (tmp_path / "site" / "hnloader" / "__init__.py").write_text("raise ImportError('the installed one')")
    sys.path.append(str(tmp_path / "site"))
    webui.install()
    webui.start()
    assert applies(webui)


def test_imported_hnloader_is_used_and_reported(webui: Webui, capsys: pytest.CaptureFixture[str]) -> None:
    other = ModuleType("hnloader")
    vars(other).update(vars(hnloader), __file__="/site-packages/hnloader/__init__.py", __version__="9.9")
    sys.modules["hnloader"] = other
    webui.install()
    webui.start()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "hnloader" in line)
    assert "hnloader 9.9 from /site-packages/hnloader" in line
    assert applies(webui)


def test_old_imported_hnloader_turns_hypernetworks_off(
    webui: Webui, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("hnloader.")]:
        monkeypatch.delitem(sys.modules, name)
    old = ModuleType("hnloader")
    vars(old).update(__file__="/site-packages/hnloader/__init__.py", __version__="0.0.1", __path__=[])
    sys.modules["hnloader"] = old
    webui.install()
    webui.start()
    using, off = (line for line in capsys.readouterr().out.splitlines() if line.startswith("[hnloader]"))
    assert "Using hnloader 0.0.1" in using
    assert "Hypernetworks are off: ModuleNotFoundError: No module named 'hnloader." in off
    assert webui.generate("a").images
    assert webui.reports == []


@pytest.mark.parametrize("error", ["ImportError('no such thing')", "RuntimeError('CUDA')", "SyntaxError('bad')"])
def test_failing_import_leaves_the_webui(error: str, webui: Webui, capsys: pytest.CaptureFixture[str]) -> None:
    copy = webui.install()
    (copy / "scripts").unlink()
    (copy / "extension").unlink()
    (copy / "scripts").mkdir()
    (copy / "extension").mkdir()
    entry = ROOT / "scripts" / "hypernetworks.py"
    (copy / "scripts" / "hypernetworks.py").write_text(entry.read_text())
    (copy / "extension" / "__init__.py").write_text(f"raise {error}")
    webui.add_script("z-other", "from modules import shared\nshared.others_run = True\n")
    webui.start()
    lines = [line for line in capsys.readouterr().out.splitlines() if "Hypernetworks are off" in line]
    assert len(lines) == 1
    assert error.partition("'")[2].partition("'")[0] in lines[0]
    assert webui.reports == []
    assert webui.shared.others_run
    assert webui.generate("a<hypernet:ink>").images
    assert "has no effect" in notice_in(webui)


def test_old_python_is_reported(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    webui.install()
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    webui.start()
    output = capsys.readouterr().out
    assert "Hypernetworks are off: RuntimeError" in output
    assert "3.9.18" in output and "3.10" in output
    assert webui.reports == []
