"""The API's routes in the stand-ins, asked over HTTP as clients do."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import hnloader
from extension import api
from extension.runtime import Extension
from hnloader import files
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork

HERE = "http://127.0.0.1:7860"
V1 = "/hnloader/v1"


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A host with the extension, two sound files and a broken one, started."""
    webui.install()
    (webui.hypernetworks / "sketches").mkdir(parents=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "sketches" / "wash.pt", ALL_WIDTHS, seed=2)
    (webui.hypernetworks / "page.pt").write_text("<!DOCTYPE html><html></html>")
    webui.start()
    return webui


def client(webui: Webui, base: str = HERE, **flags: object) -> TestClient:
    """Of an app that the host has begun to serve, started with these flags."""
    vars(webui.shared.cmd_opts).update(flags)
    app = FastAPI()
    webui.part("script_callbacks").run("app_started", None, app)
    return TestClient(app, base_url=base)


def test_files_are_listed_in_parts_and_searched(running: Webui) -> None:
    asked = client(running)
    everything = asked.get(f"{V1}/hypernetworks").json()
    assert everything["total"] == 3
    assert {file["file"] for file in everything["files"]} == {"ink.pt", "page.pt", "sketches/wash.pt"}
    part = asked.get(f"{V1}/hypernetworks", params={"limit": 1, "offset": 1}).json()
    assert part == {"total": 3, "files": everything["files"][1:2]}
    (found,) = asked.get(f"{V1}/hypernetworks", params={"search": "SKETCH"}).json()["files"]
    size = (running.hypernetworks / "sketches" / "wash.pt").stat().st_size
    assert found == {"name": "wash", "file": "sketches/wash.pt", "size": size}


def test_a_file_that_was_added_is_listed_at_once(running: Webui) -> None:
    asked = client(running)
    save_hypernetwork(running.hypernetworks / "new.pt", ALL_WIDTHS)
    assert asked.get(f"{V1}/hypernetworks").json()["total"] == 4


def test_of_threads_that_wait_one_lists_for_all_and_none_gets_what_is_older_than_its_question(tmp_path: Path) -> None:
    begun, go_on, waiting = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    calls = 0

    class Lock:
        """Tells that somebody has asked for it."""

        lock = threading.Lock()

        def __enter__(self) -> None:
            waiting.release()
            self.lock.acquire()

        def __exit__(self, *raised: object) -> None:
            self.lock.release()

    def folders() -> list[Path]:
        nonlocal calls
        calls += 1
        begun.release()
        go_on.wait(60)
        return [tmp_path]

    go_on.set()
    extension = Extension(SimpleNamespace(folders=folders))
    extension._listing = Lock()
    assert begun.acquire(timeout=60)
    go_on.clear()
    found: list[int] = []
    first = threading.Thread(target=extension.list_anew)
    first.start()
    assert begun.acquire(timeout=60)
    (tmp_path / "new.pt").touch()  # while the first one is at it
    others = [threading.Thread(target=lambda: found.append(len(extension.list_anew().files()))) for _ in range(5)]
    for thread in others:
        thread.start()
    for _ in (first, *others):
        assert waiting.acquire(timeout=60)
    go_on.set()
    for thread in (first, *others):
        thread.join()
    assert found == [1] * 5
    assert calls == 3  # at the start, by the first, and once for the others


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "all"])
def test_no_more_than_a_thousand_at_once(limit: str, running: Webui) -> None:
    assert client(running).get(f"{V1}/hypernetworks", params={"limit": limit}).status_code == 422


def test_inspecting_says_what_the_command_line_says_without_folders(running: Webui) -> None:
    answer = client(running).get(f"{V1}/inspect", params={"name": "wash"})
    told = answer.json()
    expected = hnloader.inspect(running.hypernetworks / "sketches" / "wash.pt").to_dict(hashes=False)
    assert (told["name"], told["file"], told["problem"]) == ("wash", "sketches/wash.pt", None)
    assert told["info"]["widths"] == expected["widths"] == list(ALL_WIDTHS)
    assert told["info"].keys() == expected.keys()
    assert str(running.folder) not in answer.text


def test_what_is_wrong_with_a_file_is_said(running: Webui) -> None:
    answer = client(running).get(f"{V1}/inspect", params={"name": "page"})
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
def test_only_the_library_is_reached_by_name(name: str, running: Webui) -> None:
    """Dots, drives, shares, devices, and letters that look like them: whatever is no name of a file is not found."""
    (running.folder / "ink.pt").write_bytes(b"not for clients")
    before = sorted(running.folder.rglob("*"))
    asked = client(running)
    body = json.dumps({"name": name})
    answers = [asked.post(f"{V1}/convert", content=body, headers={"Content-Type": "application/json"})]
    if name.isprintable():
        answers.append(asked.get(f"{V1}/inspect", params={"name": name}))
    for answer in answers:
        assert answer.status_code in (404, 422), answer.text  # 422: a text that cannot be one
        assert str(running.folder) not in answer.text
        assert name != "inc" or "ink" in answer.json()["detail"]  # did you mean
    assert sorted(running.folder.rglob("*")) == before


def test_links_lead_only_where_the_user_put_them(running: Webui) -> None:
    """A link in the library is the user's own; what is converted lies beside the link, and its target is untouched."""
    elsewhere = running.folder / "elsewhere"
    elsewhere.mkdir()
    save_hypernetwork(elsewhere / "far.pt", ALL_WIDTHS, seed=3)
    (running.hypernetworks / "near.pt").symlink_to(elsewhere / "far.pt")
    (running.hypernetworks / "broken.pt").symlink_to(running.folder / "nothing")
    asked = client(running)
    assert asked.post(f"{V1}/convert", json={"name": "near"}).json()["file"] == "near.safetensors"
    assert [path.name for path in elsewhere.iterdir()] == ["far.pt"]
    answer = asked.get(f"{V1}/inspect", params={"name": "near.pt"})
    assert "elsewhere" not in answer.text and answer.json()["file"] == "near.pt"
    assert asked.get(f"{V1}/inspect", params={"name": "far"}).status_code == 404
    assert "nothing" not in asked.get(f"{V1}/inspect", params={"name": "broken"}).text


def test_a_body_is_bounded_and_nobody_without_the_login_sends_one(running: Webui) -> None:
    large = json.dumps({"name": "ink", "more": "x" * api.MAX_BODY})
    asked = client(running, api_auth="ann:first")
    refused = asked.post(f"{V1}/convert", content=large)
    assert (refused.status_code, refused.headers["Connection"]) == (401, "close")
    pieces = (large[start : start + 1000].encode() for start in range(0, len(large), 1000))
    for content in (large, pieces):  # with a length that is told, and without
        assert asked.post(f"{V1}/convert", content=content, auth=("ann", "first")).status_code in (400, 413)
    assert not (running.hypernetworks / "ink.safetensors").exists()


def test_a_disk_that_is_nearly_full_is_left_alone(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=files.RESERVE + 100))
    answer = client(running).post(f"{V1}/convert", json={"name": "ink"})
    assert answer.status_code == 507
    assert str(running.folder) not in answer.text
    assert not (running.hypernetworks / "ink.safetensors").exists()
    assert client(running).get(f"{V1}/hypernetworks").status_code == 200


def test_few_are_worked_on_at_once_and_not_too_many_wait() -> None:
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
        few = api._Few()
        tasks = [asyncio.ensure_future(few.run(work)) for _ in range(api.MOST_WAITING + 3)]
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(all_of_them())
    refused = [result for result in results if result != 1]
    assert [(error.status_code, error.headers["Retry-After"]) for error in refused] == [(503, "5")] * 3
    assert most <= api.MOST_AT_ONCE


def test_a_file_is_converted_beside_its_source_and_listed(running: Webui) -> None:
    asked = client(running)
    before = (running.hypernetworks / "sketches" / "wash.pt").read_bytes()
    answer = asked.post(f"{V1}/convert", json={"name": "wash"})
    assert answer.json() == {
        "file": "sketches/wash.safetensors",
        "action": "converted",
        "lossless": True,
        "verified": ["tensors", "metadata", "outputs"],
        "notes": [],
    }
    assert (running.hypernetworks / "sketches" / "wash.pt").read_bytes() == before
    hnloader.load(running.hypernetworks / "sketches" / "wash.safetensors")
    assert asked.get(f"{V1}/hypernetworks").json()["total"] == 4
    again = asked.post(f"{V1}/convert", json={"name": "sketches/wash.pt"}).json()
    assert again["action"] == "skipped"


def test_a_file_that_vanishes_between_being_found_and_being_measured_is_not_there(
    running: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = client(running)
    library = sys.modules["hnloader_webui.runtime"].Library
    matches = library.matches

    def vanish(self: object, name: str) -> object:
        found = matches(self, name)
        (running.hypernetworks / "ink.pt").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(library, "matches", vanish)
    answer = asked.post(f"{V1}/convert", json={"name": "ink"})
    assert answer.status_code == 404
    assert "ink.pt is gone" in answer.json()["detail"]
    assert str(running.folder) not in answer.text


def test_a_broken_file_is_not_converted_and_leaves_nothing(running: Webui) -> None:
    files = sorted(running.hypernetworks.rglob("*"))
    answer = client(running).post(f"{V1}/convert", json={"name": "page"})
    assert answer.status_code == 422
    assert "web page" in answer.json()["detail"]
    assert str(running.folder) not in answer.text
    assert sorted(running.hypernetworks.rglob("*")) == files


@pytest.mark.parametrize(
    "wanted", [{"name": "ink", "to": "exe"}, {"name": "i" * 301}, {}, {"name": "ink", "on_existing": "overwrite"}]
)
def test_requests_that_make_no_sense_are_refused(wanted: dict[str, str], running: Webui) -> None:
    assert client(running).post(f"{V1}/convert", json=wanted).status_code == 422


def test_without_the_hosts_api_there_is_none_of_ours(running: Webui) -> None:
    assert client(running, api=False).get(f"{V1}/hypernetworks").status_code == 404


@pytest.mark.parametrize("flag", ["api_auth", "gradio_auth"])
def test_the_hosts_login_is_asked_for_on_every_route(flag: str, running: Webui) -> None:
    asked = client(running, **{flag: "ann:first, bob:se:cond"})
    for method, path in (("GET", "/hypernetworks"), ("GET", "/inspect?name=ink"), ("POST", "/convert")):
        assert asked.request(method, V1 + path, json={"name": "ink"}).status_code == 401
        assert asked.request(method, V1 + path, json={"name": "ink"}, auth=("bob", "first")).status_code == 401
    assert asked.get(f"{V1}/hypernetworks", auth=("ann", "first")).status_code == 200
    assert asked.get(f"{V1}/hypernetworks", auth=("bob", "se:cond")).status_code == 200


def test_logins_of_a_file_count_too(running: Webui) -> None:
    path = running.folder / "logins.txt"
    path.write_text("ann:first\nbob:second\n")
    asked = client(running, gradio_auth_path=str(path))
    assert asked.get(f"{V1}/hypernetworks").status_code == 401
    assert asked.get(f"{V1}/hypernetworks", auth=("bob", "second")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:7860"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
def test_pages_of_other_sites_are_refused(headers: dict[str, str], running: Webui) -> None:
    asked = client(running)
    assert asked.post(f"{V1}/convert", json={"name": "ink"}, headers=headers).status_code == 403
    assert asked.get(f"{V1}/hypernetworks", headers=headers).status_code == 403
    assert not (running.hypernetworks / "ink.safetensors").exists()


@pytest.mark.parametrize("base", ["http://localhost:7860", "http://127.0.0.1:7860", "http://[::1]:7860"])
def test_the_webuis_own_page_may(base: str, running: Webui) -> None:
    headers = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
    assert client(running, base).get(f"{V1}/hypernetworks", headers=headers).status_code == 200


def test_a_webui_that_listens_to_others_is_reached_by_any_name(running: Webui) -> None:
    assert client(running, "http://studio.lan:7860", listen=True).get(f"{V1}/hypernetworks").status_code == 200


def test_the_hosts_own_list_has_ours(running: Webui) -> None:
    client(running).post(f"{V1}/convert", json={"name": "ink"})
    assert {"wash", "ink"} <= set(running.shared.hypernetworks)


def test_after_reload_ui_the_routes_are_there_again(running: Webui) -> None:
    running.reload()
    assert client(running).get(f"{V1}/hypernetworks").json()["total"] == 3


def test_a_name_that_is_not_utf8_is_listed_found_and_converted_by_its_escapes(running: Webui) -> None:
    odd = running.hypernetworks / "sketches" / "odd\udcff.pt"
    try:
        (running.hypernetworks / "ink.pt").rename(odd)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 alone")
    asked = client(running)
    listed = asked.get(f"{V1}/hypernetworks").json()["files"]
    (found,) = (file for file in listed if "odd" in file["file"])
    assert (found["name"], found["file"]) == ("odd\\udcff", "sketches/odd\\udcff.pt")
    assert asked.get(f"{V1}/hypernetworks", params={"search": "d\\udcff"}).json()["total"] == 1
    told = asked.get(f"{V1}/inspect", params={"name": found["name"]}).json()
    assert told["problem"] is None and told["info"]["path"] == "sketches/odd\\udcff.pt"
    done = asked.post(f"{V1}/convert", json={"name": found["name"]}).json()
    assert (done["file"], done["action"]) == ("sketches/odd\\udcff.safetensors", "converted")
    odd.write_bytes(b"damaged")
    assert "odd\\udcff.pt" in asked.get(f"{V1}/inspect", params={"name": found["file"]}).json()["problem"]
    assert asked.get(f"{V1}/inspect", params={"name": "od\\udcff"}).status_code == 404
