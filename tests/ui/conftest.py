from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from hnloader.demo import hypernetwork_paths
from hnloader.library import Library
from hnloader.ui import Host, TrainingPlace, catalog
from hnloader.ui.diffusers_generator import DiffusersGenerator
from hnloader.ui.standalone import Server, start
from tests.support.browsers import FLAGS, find_chromium
from tests.support.builders import Recipe, make_sides, metadata, simple_tree, tree, write

# A slow machine may take this long for one step of a test; nothing is measured by it.
PATIENCE = 60_000


# Not for the whole session: as long as the driver is there, no test that comes after can run an event loop of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = find_chromium(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def server_for() -> Iterator[Callable[..., Server]]:
    """Starts servers on free ports and closes them after the test.

    Each that is left wakes ten times a second and takes the interpreter from the tests that come after it: where there
    are dozens, those take many times as long.
    """
    with contextlib.ExitStack() as stack:

        def serve(host: Host, **options: object) -> Server:
            server = start(host, port=0, **options)
            stack.callback(server.close)
            return server

        yield serve


@pytest.fixture
def open_page(browser: Browser, server_for: object) -> Iterator[Callable[..., Page]]:
    """Opens pages; afterwards none of them may have shown an error in the console or asked another server.

    They are closed before their servers, which wait for those that they serve.
    """
    problems: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_one(url: str, **options: object) -> Page:
            context = browser.new_context(viewport={"width": 1360, "height": 950}, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.on("pageerror", lambda error: problems.append(f"error: {error}"))
            page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))

            def watch(request: object) -> None:
                if not request.url.startswith((url, "data:", "blob:", url.replace("http", "ws"))):
                    problems.append(f"request to {request.url}")

            page.on("request", watch)
            page.goto(url)
            page.locator("#hnl-tabs").wait_for()
            return page

        yield open_one
    assert problems == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hypernetworks as people have them: the bundled ones, an SD 1 file, a copy, and two that cannot be used."""
    folder = tmp_path / "styles"
    (folder / "sketches").mkdir(parents=True)
    for path in hypernetwork_paths().values():
        shutil.copy(path, folder)
    narrow = Recipe(structure=(1, 0.05, 1), activation="relu")  # a file of 0.4 MB
    keys = metadata(narrow, "2022-11", name="ink")
    write(folder / "sketches" / "ink.pt", tree(make_sides(narrow, (768,)), keys))
    shutil.copy(folder / "outline.pt", folder / "sketches" / "outline copy.pt")
    (folder / "download.pt").write_text("<!DOCTYPE html><html><title>404</title></html>")
    (folder / "cut.safetensors").write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{")
    return folder


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A file whose name and metadata would run as HTML, script or template."""
    name = "x<img src=q onerror=window.pwned=1>{{value}}${1+1}"
    write(
        folder / f"{name}.pt", simple_tree(768, name=f"<script>window.pwned=1</script>{name}", sd_checkpoint_name=name)
    )
    return folder


@pytest.fixture
def host_of(tmp_path: Path, tiny_model: Path) -> Callable[..., Host]:
    """A host as `hnloader ui` makes it."""

    def make(*folders: Path, models: tuple[str, ...] = (), output: Path = tmp_path / "images") -> Host:
        generator = DiffusersGenerator(models, lambda: Library(folders), device="cpu")
        return Host(
            folders=lambda: folders,
            output=lambda: output,
            generator=generator,
            models=generator,
            lora_base=lambda: {"source": generator.source(), "device": "cpu"},
            training=TrainingPlace(
                folder=lambda: output / "trainings",
                library=lambda: folders[0],
                models=lambda: [str(tiny_model)],
                may_name_python=True,
            ),
            pages=("generate", "library", "compare", "convert", "train"),
        )

    return make


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are looked into."""
    read: list[str] = []
    inspect = catalog.inspect

    def counted(path: Path, folders: object) -> object:
        read.append(path.name)
        return inspect(path, folders)

    monkeypatch.setattr(catalog, "inspect", counted)
    return read
