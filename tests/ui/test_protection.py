"""What stands before the page: other sites, bodies without end, too many jobs, a disk that is nearly full."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from hnloader import files
from hnloader.errors import HypernetworkError
from hnloader.files import check_room
from hnloader.ui import jobs
from hnloader.ui.catalog import Catalog
from hnloader.ui.page_host import Host
from hnloader.ui.pages import fields
from hnloader.ui.pages.convert_page import _ALL, _BESIDE, _Convert
from hnloader.ui.protection import Protection
from tests.support.builders import simple_tree, write

HERE = "http://127.0.0.1:7870"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def client() -> TestClient:
    routes = [Route("/", echo, methods=["GET", "POST", "DELETE"])]
    return TestClient(Protection(Starlette(routes=routes), largest=1000), base_url=HERE)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": HERE},
        {"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_what_a_page_of_another_site_sends_is_refused(client: TestClient, method: str, headers: dict[str, str]) -> None:
    assert client.request(method, "/", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": HERE},
        {"Sec-Fetch-Site": "same-origin", "Origin": HERE},
        # Behind a proxy that asks for this address under a name of its own: the browser knows better.
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://studio.example"},
    ],
)
def test_what_the_page_itself_and_programs_send_is_taken(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/", headers=headers, content=b"abc").text == "3"


def test_a_link_on_another_site_may_lead_here(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


def pieces(count: int) -> Iterator[bytes]:
    return (b"x" * 100 for _ in range(count))


def test_a_body_is_bounded_whether_it_says_its_length_or_not(client: TestClient) -> None:
    assert client.post("/", content=b"x" * 1000).text == "1000"
    assert client.post("/", content=pieces(10)).text == "1000"
    assert client.post("/", content=b"x" * 1001).status_code == 413
    assert client.post("/", content=pieces(11)).status_code == 413
    assert client.post("/", headers={"Content-Length": "-1"}).status_code == 413


def test_only_so_many_jobs_run_and_the_next_one_is_told_so() -> None:
    go_on = threading.Event()
    running = [jobs.Job(lambda job: go_on.wait(60)) for _ in range(jobs.MOST_JOBS)]
    refused = jobs.Job(lambda job: pytest.fail("it runs"))
    assert list(refused.updates()) == []
    with pytest.raises(HypernetworkError, match=r"8 jobs are running already. Wait"):
        refused.result()
    go_on.set()
    for job in running:
        list(job.updates())
    after = jobs.Job(lambda job: 7)
    list(after.updates())
    assert after.result() == 7


def test_room_is_asked_for_before_a_folder_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=files.RESERVE + 1000))
    check_room(tmp_path / "not" / "there yet", 1000)
    with pytest.raises(HypernetworkError, match="512 MiB are to stay free"):
        check_room(tmp_path / "not" / "there yet", 1001)


def test_the_page_converts_nothing_where_the_disk_would_be_full(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "ink.pt", simple_tree())
    page = _Convert(Host(lambda: [tmp_path], lambda: tmp_path), Catalog(lambda: [tmp_path]))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=files.RESERVE))
    shown = list(page.run(_ALL, None, "safetensors", _BESIDE, "leave it", False))
    assert len(shown) == 1 and "are to stay free" in shown[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["ink.pt"]


@pytest.mark.parametrize("size", [(4097, 8), (8, 10**9), (-8, 8)])
def test_images_have_an_end(size: tuple[int, int]) -> None:
    with pytest.raises(HypernetworkError, match="at most 4,096 pixels"):
        fields.asked(None, *size)


@pytest.mark.parametrize(
    ("address", "host"), [("::1", "[::1]:7870"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1:7870")]
)
def test_the_address_that_is_served_is_a_host(address: str, host: str) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from hnloader.ui.standalone import _middleware

    page = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("page"))], middleware=_middleware(address, None)
    )
    client = TestClient(page)
    assert client.get("/", headers={"host": host}).status_code == 200
    for other in ("[::1", "elsewhere", "[::2]:7870"):
        assert client.get("/", headers={"host": other}).status_code == 400
