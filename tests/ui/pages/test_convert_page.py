"""Convert in a browser, and its handler without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, expect

from hnloader import files
from hnloader.ui.catalog import Catalog
from hnloader.ui.page_host import Host
from hnloader.ui.pages.convert_page import _ALL, _BESIDE, _Convert
from tests.support.browsers import select, turn_to
from tests.support.builders import simple_tree, write


@pytest.mark.slow
def test_converts_selected_files_and_the_library(page: Page, folder: Path) -> None:
    turn_to(page, "Convert")
    status, table = page.locator("#hnl-convert-status"), page.locator("#hnl-convert-table")
    expect(status.get_by_role("heading")).to_have_text("Nothing converted yet")
    page.locator("#hnl-convert").click()
    expect(status.get_by_role("alert")).to_contain_text("Files")
    select(page, "hnl-convert-files", "sketches/ink.pt")
    page.locator("#hnl-convert").click()
    expect(status).to_contain_text("1 converted")
    assert (folder / "sketches" / "ink.safetensors").is_file()
    page.get_by_label("all files in the library").check()
    page.locator("#hnl-convert").click()
    expect(status).to_contain_text("3 converted")
    expect(table.locator("tbody tr").filter(has_text="download.pt")).to_contain_text("web page")
    turn_to(page, "Library")
    expect(page.locator(".hnl-card")).to_have_count(6)
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator(".hnl-card")).to_have_count(10)


def test_converts_nothing_when_the_disk_would_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ink.pt", simple_tree())
    page = _Convert(Host(lambda: [tmp_path], lambda: tmp_path), Catalog(lambda: [tmp_path]))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=files.RESERVE))
    shown = list(page.run(_ALL, None, "safetensors", _BESIDE, "skip", False))
    assert len(shown) == 1
    assert 'role="alert"' in shown[0][1]
    assert "512 MiB" in shown[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["ink.pt"]
