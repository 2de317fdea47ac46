"""A host for another webui: one folder from outside this repository, with only the required part, then with more."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from extension import hosts
from extension.hosts import protocol
from extension.startup import start
from hnloader.ui import Host
from tests.support.paths import ROOT
from tests.support.standins.reference import wrap
from tests.support.standins.unets import ALL_WIDTHS, TEXT_WIDTH, make_unet
from tests.support.tiny_model import save_hypernetwork

INIT = """
from ..protocol import WebuiHost

MARKERS = ("dummy_webui",)


def make() -> WebuiHost:
    from .dummy_host import Dummy

    return Dummy()
"""
HOST = """
import dummy_webui


class Dummy:
    name = "Dummy"

    def folders(self):
        return [dummy_webui.folder]

    def unet(self, job=None):
        return dummy_webui.unet

    def connect(self, events):
        dummy_webui.events = events
"""
MESSAGES = """
def show_message(self, text, job=None):
    job.comments.append(text)

Dummy.show_message = show_message
"""
AXES = """
def add_axes(self, axes):
    dummy_webui.axes = {axis.label: axis for axis in axes}

Dummy.add_axes = add_axes
"""


TAB = """
def add_tab(self, title, elem_id, build):
    dummy_webui.build = build

def output(self):
    return dummy_webui.folder

Dummy.tag_button, Dummy.add_tab, Dummy.output = None, add_tab, output
"""


class DummyWebui(ModuleType):
    """A webui that knows nothing of AUTOMATIC1111: a UNet, and jobs of two steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__("dummy_webui")
        self.folder, self.unet = folder, make_unet(0)

    def generate(self, prompt: str, prepare: Callable[[object], None] = lambda job: None) -> tuple[Tensor, list[str]]:
        """Return an image, and the messages under it."""
        job = SimpleNamespace(comments=[])
        prepare(job)
        tags = [tag.split(":") for tag in re.findall("<hypernet:(.*?)>", prompt)]
        self.events.activate(job, tags, True)
        x, context = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in SHAPES)
        for step in range(2):
            self.events.step(step, 2)
            x = x - self.unet(x, torch.tensor([500.0]), context=context) / 2
        self.events.deactivate()
        return x, job.comments


SHAPES = (1, 4, 8, 8), (1, 5, TEXT_WIDTH)


@pytest.fixture
def dummy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DummyWebui]:
    """Starts the extension in a dummy webui, whose host has this source."""

    def started(source: str) -> DummyWebui:
        webui = DummyWebui(tmp_path / "files")
        monkeypatch.setitem(sys.modules, "dummy_webui", webui)
        webui.folder.mkdir()
        folder = tmp_path / "hosts" / "dummy"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(INIT)
        (folder / "dummy_host.py").write_text(source)
        monkeypatch.setattr(hosts, "__path__", [*hosts.__path__, str(folder.parent)])
        for name in ("extension.hosts.dummy", "extension.hosts.dummy.dummy_host"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for seed, name in enumerate(("ink", "wash")):
            save_hypernetwork(webui.folder / f"{name}.pt", ALL_WIDTHS, seed)
        webui.extension = start()
        return webui

    return started


def test_required_part_applies_tags(dummy: Callable[[str], DummyWebui], capsys: pytest.CaptureFixture[str]) -> None:
    webui = dummy(HOST)
    assert webui.extension.host.name == "Dummy"
    assert capsys.readouterr().out == ""  # every other part stays off without a word
    plain, _ = webui.generate("a cat")
    tagged, _ = webui.generate("a cat <hypernet:ink:0.7><hypernet:wash:0.4:start=0.5>")
    assert not any(module._forward_pre_hooks for module in webui.unet.modules())
    assert torch.equal(webui.generate("a cat")[0], plain)
    assert webui.extension.exports == {}

    webui.generate("a cat <hypernet:inkk>")
    assert "'inkk'" in capsys.readouterr().out

    late, _ = webui.generate("a cat <hypernet:ink:0.7>")
    assert not torch.equal(late, tagged)
    wrap(webui.unet, [(webui.folder / "ink.pt", 0.7)])
    expected, _ = webui.generate("a cat")
    assert (late - expected).abs().max() < 1e-4 * (expected - plain).abs().max()


def test_messages_are_a_capability(dummy: Callable[[str], DummyWebui], capsys: pytest.CaptureFixture[str]) -> None:
    webui = dummy(HOST + MESSAGES)
    plain, _ = webui.generate("a cat")
    image, comments = webui.generate("a cat <hypernet:inkk><hypernet:ink:0>")
    assert torch.equal(image, plain)
    (comment,) = comments
    assert "'inkk'" in comment and "'ink'" in comment
    assert str(webui.folder) not in comment
    assert capsys.readouterr().out == ""


def test_axes_are_a_capability(dummy: Callable[[str], DummyWebui]) -> None:
    webui = dummy(HOST + AXES)
    half, _ = webui.generate("a cat <hypernet:ink:0.5>")
    strength = webui.axes["Hypernetwork strength"]
    overridden, _ = webui.generate("a cat <hypernet:ink>", lambda job: strength.apply(job, 0.5))
    assert torch.equal(overridden, half)


def test_tab_without_more_capabilities_has_library_and_convert(
    dummy: Callable[[str], DummyWebui], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Host] = []
    monkeypatch.setattr("extension.tab.build", given.append)
    webui = dummy(HOST + TAB)
    webui.build()
    (pages,) = given
    assert list(pages.folders()) == [webui.folder]
    assert (pages.generator, pages.lora_base, pages.training) == (None, None, None)


def test_unknown_program_is_refused() -> None:
    with pytest.raises(RuntimeError) as raised:
        hosts.detect()
    assert all(name in str(raised.value) for name in ("a1111", "forge"))


def test_each_capability_stands_alone() -> None:
    """An object with only the required part has none of them."""

    class Required:
        name = "required"

        def folders(self) -> list[Path]:
            return []

        def unet(self, job: object = None) -> None: ...

        def connect(self, events: protocol.Events) -> None: ...

    capabilities = [each for each in vars(protocol).values() if getattr(each, "_is_runtime_protocol", False)]
    assert len(capabilities) > 10
    assert not any(isinstance(Required(), each) for each in capabilities)


def test_only_hosts_import_a_webui() -> None:
    found = []
    for path in (ROOT / "extension").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] in ("modules", "modules_forge", "backend") for name in names):
                found.append(path.relative_to(ROOT / "extension").parts[0])
    assert set(found) == {"hosts"}
