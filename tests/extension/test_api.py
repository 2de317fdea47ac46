"""The routes, called over HTTP in a stand-in webui."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from types import SimpleNamespace

import pytest

import hnloader
from extension import api
from hnloader import files
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork

V1 = "/hnloader/v1"


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A webui with the extension, two files and a broken one, started."""
    webui.install()
    (webui.hypernetworks / "sketches").mkdir(parents=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "sketches" / "wash.pt", ALL_WIDTHS, seed=2)
    (webui.hypernetworks / "page.pt").write_text("<!DOCTYPE html><html></html>")
    webui.start()
    return webui


def test_list_pages_and_search(running: Webui) -> None:
    client = running.client()
    everything = client.get(f"{V1}/hypernetworks").json()
    assert everything["total"] == 3
    assert {file["file"] for file in everything["files"]} == {"ink.pt", "page.pt", "sketches/wash.pt"}
    part = client.get(f"{V1}/hypernetworks", params={"limit": 1, "offset": 1}).json()
    assert part == {"total": 3, "files": everything["files"][1:2]}
    (found,) = client.get(f"{V1}/hypernetworks", params={"search": "SKETCH"}).json()["files"]
    size = (running.hypernetworks / "sketches" / "wash.pt").stat().st_size
    assert found == {"name": "wash", "file": "sketches/wash.pt", "size": size}


def test_list_includes_new_files(running: Webui) -> None:
    client = running.client()
    save_hypernetwork(running.hypernetworks / "new.pt", ALL_WIDTHS)
    assert client.get(f"{V1}/hypernetworks").json()["total"] == 4


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "all"])
def test_list_limit_is_bounded(limit: str, running: Webui) -> None:
    assert running.client().get(f"{V1}/hypernetworks", params={"limit": limit}).status_code == 422


def test_inspect_equals_the_command_line_without_folders(running: Webui) -> None:
    answer = running.client().get(f"{V1}/inspect", params={"name": "wash"})
    body = answer.json()
    expected = hnloader.inspect(running.hypernetworks / "sketches" / "wash.pt").to_dict(hashes=False)
    assert (body["name"], body["file"], body["problem"]) == ("wash", "sketches/wash.pt", None)
    assert body["info"]["widths"] == expected["widths"] == list(ALL_WIDTHS)
    assert body["info"].keys() == expected.keys()
    assert str(running.folder) not in answer.text


def test_inspect_reports_the_problem_of_a_file(running: Webui) -> None:
    answer = running.client().get(f"{V1}/inspect", params={"name": "page"})
    assert answer.status_code == 200
    assert "web page" in answer.json()["problem"]
    assert str(running.folder) not in answer.text


NO_NAMES = (
    *("inc", "../ink", "/etc/passwd", "..\\..\\ink", "sketches/../ink.pt", "sketches/../../ink", "./ink", "//ink"),
    *("C:\\ink", "C:ink", "c:/ink", "\\\\server\\share\\ink", "\\\\?\\C:\\ink", "file:///ink", "~/ink", "$HOME/ink"),
    *("%2e%2e%2fink", "..%c0%afink", "ink::$DATA", "ink.pt/", "ink.pt.", "CON", "i\u200dnk", "ink\0", "\ud800"),
    *("\N{FULLWIDTH FULL STOP}/ink", "\N{TWO DOT LEADER}/ink", "\N{ONE DOT LEADER}\N{ONE DOT LEADER}/ink"),
    *("..\N{FRACTION SLASH}ink", "..\N{FULLWIDTH SOLIDUS}ink", "..\N{FULLWIDTH REVERSE SOLIDUS}ink"),
    "\N{RIGHT-TO-LEFT OVERRIDE}ink",
    "\N{CYRILLIC SMALL LETTER BYELORUSSIAN-UKRAINIAN I}nk",
    "\N{FULLWIDTH LATIN SMALL LETTER I}nk",
)


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_names_reach_only_the_library(name: str, running: Webui) -> None:
    """Dots, drives, shares, devices, and letters that look like them find nothing."""
    (running.folder / "ink.pt").write_bytes(b"not for clients")
    before = sorted(running.folder.rglob("*"))
    client = running.client()
    body = json.dumps({"name": name})
    answers = [client.post(f"{V1}/convert", content=body, headers={"Content-Type": "application/json"})]
    if name.isprintable():
        answers.append(client.get(f"{V1}/inspect", params={"name": name}))
    for answer in answers:
        assert answer.status_code in (404, 422), answer.text  # 422: text that cannot be a name
        assert str(running.folder) not in answer.text
        assert name != "inc" or "ink" in answer.json()["detail"]  # the nearest name
    assert sorted(running.folder.rglob("*")) == before


def test_links_of_the_user_are_followed(running: Webui) -> None:
    """A conversion is written beside a link, and the link's target stays untouched."""
    elsewhere = running.folder / "elsewhere"
    elsewhere.mkdir()
    save_hypernetwork(elsewhere / "far.pt", ALL_WIDTHS, seed=3)
    (running.hypernetworks / "near.pt").symlink_to(elsewhere / "far.pt")
    (running.hypernetworks / "broken.pt").symlink_to(running.folder / "nothing")
    client = running.client()
    assert client.post(f"{V1}/convert", json={"name": "near"}).json()["file"] == "near.safetensors"
    assert [path.name for path in elsewhere.iterdir()] == ["far.pt"]
    answer = client.get(f"{V1}/inspect", params={"name": "near.pt"})
    assert "elsewhere" not in answer.text and answer.json()["file"] == "near.pt"
    assert client.get(f"{V1}/inspect", params={"name": "far"}).status_code == 404
    assert "nothing" not in client.get(f"{V1}/inspect", params={"name": "broken"}).text


def test_convert_refuses_to_fill_the_disk(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=files.RESERVE + 100))
    answer = running.client().post(f"{V1}/convert", json={"name": "ink"})
    assert answer.status_code == 507
    assert str(running.folder) not in answer.text
    assert not (running.hypernetworks / "ink.safetensors").exists()
    assert running.client().get(f"{V1}/hypernetworks").status_code == 200


def test_running_and_waiting_requests_are_bounded() -> None:
    most = 0
    running = 0
    go_on = threading.Event()

    def work() -> int:
        nonlocal most, running
        running += 1
        most = max(most, running)
        go_on.wait(60)
        running -= 1
        return 1

    async def all_of_them() -> list[object]:
        pool = api._Pool()
        tasks = [asyncio.ensure_future(pool.run(work)) for _ in range(api.MAX_WAITING + 3)]
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(all_of_them())
    refused = [result for result in results if result != 1]
    assert [(error.status_code, error.headers["Retry-After"]) for error in refused] == [(503, "5")] * 3
    assert most <= api.MAX_RUNNING


def test_convert_writes_beside_the_source(running: Webui) -> None:
    client = running.client()
    before = (running.hypernetworks / "sketches" / "wash.pt").read_bytes()
    answer = client.post(f"{V1}/convert", json={"name": "wash"})
    assert answer.json() == {
        "file": "sketches/wash.safetensors",
        "action": "converted",
        "lossless": True,
        "verified": ["tensors", "metadata", "outputs"],
        "notes": [],
    }
    assert (running.hypernetworks / "sketches" / "wash.pt").read_bytes() == before
    hnloader.load(running.hypernetworks / "sketches" / "wash.safetensors")
    assert client.get(f"{V1}/hypernetworks").json()["total"] == 4
    again = client.post(f"{V1}/convert", json={"name": "sketches/wash.pt"}).json()
    assert again["action"] == "skipped"


def test_file_deleted_during_a_request_is_not_found(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    client = running.client()
    library = sys.modules["hnloader_webui.host_library"].Library
    first = library.first

    def vanish(self: object, name: str) -> object:
        found = first(self, name)
        (running.hypernetworks / "ink.pt").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(library, "first", vanish)
    answer = client.post(f"{V1}/convert", json={"name": "ink"})
    assert answer.status_code == 404
    assert "ink.pt was deleted" in answer.json()["detail"]
    assert str(running.folder) not in answer.text


def test_convert_of_a_broken_file_leaves_nothing(running: Webui) -> None:
    files = sorted(running.hypernetworks.rglob("*"))
    answer = running.client().post(f"{V1}/convert", json={"name": "page"})
    assert answer.status_code == 422
    assert "web page" in answer.json()["detail"]
    assert str(running.folder) not in answer.text
    assert sorted(running.hypernetworks.rglob("*")) == files


@pytest.mark.parametrize(
    "wanted", [{"name": "ink", "to": "exe"}, {"name": "i" * 301}, {}, {"name": "ink", "on_existing": "overwrite"}]
)
def test_convert_refuses_invalid_requests(wanted: dict[str, str], running: Webui) -> None:
    assert running.client().post(f"{V1}/convert", json=wanted).status_code == 422


def test_no_routes_without_the_webui_s_api(running: Webui) -> None:
    assert running.client(api=False).get(f"{V1}/hypernetworks").status_code == 404


def test_the_webui_s_own_list_includes_the_library(running: Webui) -> None:
    running.client().post(f"{V1}/convert", json={"name": "ink"})
    assert {"wash", "ink"} <= set(running.shared.hypernetworks)


def test_routes_survive_reload_ui(running: Webui) -> None:
    running.reload()
    assert running.client().get(f"{V1}/hypernetworks").json()["total"] == 3


def test_names_outside_utf8_work_by_their_escapes(running: Webui) -> None:
    odd = running.hypernetworks / "sketches" / "odd\udcff.pt"
    try:
        (running.hypernetworks / "ink.pt").rename(odd)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 alone")
    client = running.client()
    listed = client.get(f"{V1}/hypernetworks").json()["files"]
    (found,) = (file for file in listed if "odd" in file["file"])
    assert (found["name"], found["file"]) == ("odd\\udcff", "sketches/odd\\udcff.pt")
    assert client.get(f"{V1}/hypernetworks", params={"search": "d\\udcff"}).json()["total"] == 1
    body = client.get(f"{V1}/inspect", params={"name": found["name"]}).json()
    assert body["problem"] is None and body["info"]["path"] == "sketches/odd\\udcff.pt"
    done = client.post(f"{V1}/convert", json={"name": found["name"]}).json()
    assert (done["file"], done["action"]) == ("sketches/odd\\udcff.safetensors", "converted")
    odd.write_bytes(b"damaged")
    assert "odd\\udcff.pt" in client.get(f"{V1}/inspect", params={"name": found["file"]}).json()["problem"]
    assert client.get(f"{V1}/inspect", params={"name": "od\\udcff"}).status_code == 404
