"""The server: who may reach it, and which files it serves."""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from hnloader.errors import HypernetworkError
from hnloader.ui.standalone import LARGEST_UPLOAD, _middleware, check_address, is_local, start


def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_computer_needs_no_password(address: str) -> None:
    assert is_local(address)
    check_address(address, None)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_others_need_a_password(address: str) -> None:
    with pytest.raises(HypernetworkError, match="--auth"):
        check_address(address, None)
    check_address(address, ("me", "secret"))


def test_a_taken_port_is_an_error(host_of, server_for, folder: Path) -> None:
    port = urlsplit(server_for(host_of(folder)).url).port
    with pytest.raises(HypernetworkError, match=str(port)):
        start(host_of(folder), port=port)


@pytest.mark.slow
def test_serves_no_files_of_the_disk(host_of, server_for, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_text("SECRET")
    (folder / "notes.txt").write_text("SECRET")
    url = server_for(host_of(folder)).url
    assert get(url, "/")[0] == 200
    for path in (folder / "notes.txt", tmp_path / "images" / "mine.png", Path(__file__), Path("pyproject.toml")):
        for route in ("/gradio_api/file=", "/file="):
            status, text = get(url, route + quote(str(path)))
            assert status in (403, 404), (route, path)
            assert "SECRET" not in text


@pytest.mark.slow
def test_refuses_other_host_names(host_of, server_for, folder: Path) -> None:
    url = server_for(host_of(folder)).url
    assert get(url, "/", Host="localhost:7870")[0] == 200
    assert get(url, "/", Host="evil.example")[0] == 400


@pytest.mark.slow
def test_uploads_are_bounded_and_refused_from_other_sites(host_of, server_for, folder: Path) -> None:
    """Another site can send an upload without a preflight request."""
    url = urlsplit(server_for(host_of(folder)).url)

    def upload(size: int, **headers: str) -> int:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = head + bytes(size) + b"\r\n--b--\r\n"
        given = {"Content-Type": "multipart/form-data; boundary=b", **headers}
        with contextlib.closing(http.client.HTTPConnection(url.netloc, timeout=60)) as connection:
            connection.request("POST", "/gradio_api/upload", body, given)
            with connection.getresponse() as response:
                return response.status

    assert upload(100) == 200
    assert upload(100, Origin="https://evil.example") == 403
    assert upload(100, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert upload(LARGEST_UPLOAD + 1) == 413


@pytest.mark.slow
def test_shows_nothing_without_the_password(host_of, server_for, folder: Path) -> None:
    url = server_for(host_of(folder), auth=("me", "secret")).url
    status, text = get(url, "/config")
    assert status == 401
    assert "Hypernetwork" not in text


@pytest.mark.parametrize(
    ("address", "host"), [("::1", "[::1]:7870"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1:7870")]
)
def test_the_served_address_is_a_valid_host(address: str, host: str) -> None:
    page = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("page"))], middleware=_middleware(address, None)
    )
    client = TestClient(page)
    assert client.get("/", headers={"host": host}).status_code == 200
    for other in ("[::1", "elsewhere", "[::2]:7870"):
        assert client.get("/", headers={"host": other}).status_code == 400
