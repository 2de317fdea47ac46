"""A host for another webui: one folder from outside this repository, with only the required part, then with more."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

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

# The example of the documentation: the modules `__init__` and `example_host`.
INIT, HOST = re.findall(r"```python\n(.*?)```", (ROOT / "docs/dev/new-host.md").read_text(encoding="utf-8"), re.DOTALL)[
    :2
]
MESSAGES = """
def show_message(self, text, job=None):
    job.comments.append(text)

Example.show_message = show_message
"""
AXES = """
def add_axes(self, axes):
    example_webui.axes = {axis.label: axis for axis in axes}

Example.add_axes = add_axes
"""
TAB = """
def add_tab(self, title, elem_id, build):
    example_webui.build = build

def output(self):
    return Path(example_webui.models)

Example.tag_button, Example.add_tab, Example.output = None, add_tab, output
"""


class ExampleWebui(ModuleType):
    """A webui that knows nothing of AUTOMATIC1111: a UNet, and jobs of two steps."""

    def __init__(self, models: Path) -> None:
        super().__init__("example_webui")
        self.models = models
        self.folder = models / "hypernetworks"
        self.model = SimpleNamespace(unet=make_unet(0))
        self.calls: dict[str, Callable[..., None]] = {}
        for name in ("on_job_start", "on_job_end", "on_step"):
            setattr(self, name, partial(self.calls.__setitem__, name))

    def tags(self, job: Any, kind: str) -> list[list[str]]:
        return [tag.split(":") for tag in re.findall(f"<{kind}:(.*?)>", job.prompt)]

    def generate(self, prompt: str, prepare: Callable[[object], None] = lambda job: None) -> tuple[Tensor, list[str]]:
        """Return an image, and the messages under it."""
        job = SimpleNamespace(prompt=prompt, comments=[])
        prepare(job)
        self.calls["on_job_start"](job)
        x, context = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in SHAPES)
        for step in range(2):
            self.calls["on_step"](step, 2)
            x = x - self.model.unet(x, torch.tensor([500.0]), context=context) / 2
        self.calls["on_job_end"](job)
        return x, job.comments


SHAPES = (1, 4, 8, 8), (1, 5, TEXT_WIDTH)


@pytest.fixture
def webui_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ExampleWebui]:
    """Starts the extension in the example webui, whose host has this source."""

    def started(source: str) -> ExampleWebui:
        webui = ExampleWebui(tmp_path / "models")
        monkeypatch.setitem(sys.modules, "example_webui", webui)
        webui.folder.mkdir(parents=True)
        folder = tmp_path / "hosts" / "_outside"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(INIT)
        (folder / "example_host.py").write_text(source)
        monkeypatch.setattr(hosts, "__path__", [*hosts.__path__, str(folder.parent)])
        for name in ("extension.hosts._outside", "extension.hosts._outside.example_host"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for seed, name in enumerate(("ink", "wash")):
            save_hypernetwork(webui.folder / f"{name}.pt", ALL_WIDTHS, seed)
        webui.extension = start()
        return webui

    return started


def test_required_part_applies_tags(
    webui_with: Callable[[str], ExampleWebui], capsys: pytest.CaptureFixture[str]
) -> None:
    webui = webui_with(HOST)
    assert webui.extension.host.name == "Example"
    assert capsys.readouterr().out == ""  # every other part stays off without a word
    plain, _ = webui.generate("a cat")
    tagged, _ = webui.generate("a cat <hypernet:ink:0.7><hypernet:wash:0.4:start=0.5>")
    assert not any(module._forward_pre_hooks for module in webui.model.unet.modules())
    assert torch.equal(webui.generate("a cat")[0], plain)
    assert webui.extension.exports == {}

    webui.generate("a cat <hypernet:inkk>")
    assert "'inkk'" in capsys.readouterr().out

    late, _ = webui.generate("a cat <hypernet:ink:0.7>")
    assert not torch.equal(late, tagged)
    wrap(webui.model.unet, [(webui.folder / "ink.pt", 0.7)])
    expected, _ = webui.generate("a cat")
    assert (late - expected).abs().max() < 1e-4 * (expected - plain).abs().max()


def test_messages_are_a_capability(
    webui_with: Callable[[str], ExampleWebui], capsys: pytest.CaptureFixture[str]
) -> None:
    webui = webui_with(HOST + MESSAGES)
    plain, _ = webui.generate("a cat")
    image, comments = webui.generate("a cat <hypernet:inkk><hypernet:ink:0>")
    assert torch.equal(image, plain)
    (comment,) = comments
    assert "'inkk'" in comment and "'ink'" in comment
    assert str(webui.folder) not in comment
    assert capsys.readouterr().out == ""


def test_axes_are_a_capability(webui_with: Callable[[str], ExampleWebui]) -> None:
    webui = webui_with(HOST + AXES)
    half, _ = webui.generate("a cat <hypernet:ink:0.5>")
    strength = webui.axes["Hypernetwork strength"]
    overridden, _ = webui.generate("a cat <hypernet:ink>", lambda job: strength.apply(job, 0.5))
    assert torch.equal(overridden, half)


def test_tab_without_more_capabilities_has_library_and_convert(
    webui_with: Callable[[str], ExampleWebui], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Host] = []
    monkeypatch.setattr("extension.tab.build", given.append)
    webui = webui_with(HOST + TAB)
    webui.build()
    (pages,) = given
    assert list(pages.folders()) == [webui.folder]
    assert (pages.generator, pages.lora_base, pages.training) == (None, None, None)


@pytest.mark.parametrize(
    ("capability", "method", "lacking"),
    [
        ("ShowsMessages", "show_mesage", "show_message"),
        ("RunsModel", "load", "encode"),
        ("ShowsTab", "output", "add_tab"),
    ],
)
def test_host_without_a_member_of_its_protocol_is_refused(
    webui_with: Callable[[str], ExampleWebui], capability: str, method: str, lacking: str
) -> None:
    method_source = f"\n    def {method}(self, *given: object) -> None: ...\n"
    source = HOST.replace("(protocol.WebuiHost)", f"(protocol.{capability}, protocol.WebuiHost)") + method_source
    with pytest.raises(TypeError) as raised:
        webui_with(source)
    assert all(name in str(raised.value) for name in ("Example", capability, lacking))


@pytest.mark.parametrize(("name", "source"), [("__init__", INIT), ("example_host", HOST)])
def test_documented_example_passes_ruff(name: str, source: str) -> None:
    file = f"extension/hosts/example/{name}.py"
    for command in (["check"], ["format", "--check"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--no-cache", "--stdin-filename", file, "-"]
        done = subprocess.run(arguments, input=source, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


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
    folders = [each.name for each in pkgutil.iter_modules(hosts.__path__) if each.ispkg]
    markers = {marker for name in folders for marker in importlib.import_module(f"extension.hosts.{name}").MARKERS}
    assert "modules_forge" in markers
    found = []
    for path in (ROOT / "extension").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] in {*markers, "backend"} for name in names):
                found.append(path.relative_to(ROOT / "extension").parts[0])
    assert set(found) == {"hosts"}
