"""Access to the routes: login, pages of other sites, and the size of requests."""

from __future__ import annotations

import json

import pytest

from extension import guard
from tests.support.standins.webui import Webui

V1 = "/hnloader/v1"


def test_body_is_bounded_and_needs_the_login(running: Webui) -> None:
    large = json.dumps({"name": "ink", "more": "x" * guard.MAX_BODY})
    client = running.client(api_auth="ann:first")
    refused = client.post(f"{V1}/convert", content=large)
    assert (refused.status_code, refused.headers["Connection"]) == (401, "close")
    pieces = (large[start : start + 1000].encode() for start in range(0, len(large), 1000))
    for content in (large, pieces):  # with and without a Content-Length
        assert client.post(f"{V1}/convert", content=content, auth=("ann", "first")).status_code in (400, 413)
    assert not (running.hypernetworks / "ink.safetensors").exists()


@pytest.mark.parametrize("flag", ["api_auth", "gradio_auth"])
def test_every_route_needs_the_login(flag: str, running: Webui) -> None:
    client = running.client(**{flag: "ann:first, bob:se:cond"})
    for method, path in (("GET", "/hypernetworks"), ("GET", "/inspect?name=ink"), ("POST", "/convert")):
        assert client.request(method, V1 + path, json={"name": "ink"}).status_code == 401
        assert client.request(method, V1 + path, json={"name": "ink"}, auth=("bob", "first")).status_code == 401
    assert client.get(f"{V1}/hypernetworks", auth=("ann", "first")).status_code == 200
    assert client.get(f"{V1}/hypernetworks", auth=("bob", "se:cond")).status_code == 200


def test_logins_in_a_file_count(running: Webui) -> None:
    path = running.folder / "logins.txt"
    path.write_text("ann:first\nbob:second\n")
    client = running.client(gradio_auth_path=str(path))
    assert client.get(f"{V1}/hypernetworks").status_code == 401
    assert client.get(f"{V1}/hypernetworks", auth=("bob", "second")).status_code == 200


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
    client = running.client()
    assert client.post(f"{V1}/convert", json={"name": "ink"}, headers=headers).status_code == 403
    assert client.get(f"{V1}/hypernetworks", headers=headers).status_code == 403
    assert not (running.hypernetworks / "ink.safetensors").exists()


@pytest.mark.parametrize("base", ["http://localhost:7860", "http://127.0.0.1:7860", "http://[::1]:7860"])
def test_own_page_is_allowed(base: str, running: Webui) -> None:
    headers = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
    assert running.client(base).get(f"{V1}/hypernetworks", headers=headers).status_code == 200


def test_listening_webui_allows_any_host_name(running: Webui) -> None:
    assert running.client("http://studio.lan:7860", listen=True).get(f"{V1}/hypernetworks").status_code == 200
