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
from tests.support.browsers import open_tab, start_chromium, turn_to
from tests.support.builders import Recipe, make_sides, metadata, simple_tree, tree, write


# Not for the whole session: while the driver runs, no other test can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = start_chromium(playwright)
        yield browser
        browser.close()


@pytest.fixture
def server_for() -> Iterator[Callable[..., Server]]:
    """Start servers on free ports and close them after the test.

    An open server wakes ten times a second. Dozens of them would slow down the tests that follow.
    """
    with contextlib.ExitStack() as stack:

        def serve(host: Host, **options: object) -> Server:
            server = start(host, port=0, **options)
            stack.callback(server.close)
            return server

        yield serve


@pytest.fixture
def open_page(browser: Browser, server_for: object) -> Iterator[Callable[..., Page]]:
    """Open pages; fail if one logs an error to the console or sends a request to another server.

    Pages close before their servers, which wait for their visitors.
    """
    problems: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_one(url: str, width: int = 1360, height: int = 950, **options: object) -> Page:
            page = open_tab(browser, viewport={"width": width, "height": height}, **options)
            stack.callback(page.context.close)
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
    """A user's hypernetworks: the bundled ones, an SD 1 file, a copy, and two files with errors."""
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
def page(host_of: object, server_for: object, open_page: object, folder: Path) -> Page:
    """The page with `folder`, turned to Library."""
    page = open_page(server_for(host_of(folder)).url)
    turn_to(page, "Library")
    expect(page.locator(".hnl-card")).to_have_count(6)
    return page


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
    """Make a host as `hnloader ui` does."""

    def make(*folders: Path, models: tuple[str, ...] = (), output: Path = tmp_path / "images") -> Host:
        generator = DiffusersGenerator(models, lambda: Library(folders), device="cpu")
        return Host(
            folders=lambda: folders,
            output=lambda: output,
            generator=generator,
            models=generator,
            lora_base=generator.lora_base,
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
    """The names of the files that are inspected."""
    read: list[str] = []
    inspect = catalog.inspect

    def counted(path: Path, folders: object) -> object:
        read.append(path.name)
        return inspect(path, folders)

    monkeypatch.setattr(catalog, "inspect", counted)
    return read
