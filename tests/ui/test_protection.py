"""Requests from other sites and endless bodies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from hnloader.ui.protection import Protection

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
def test_refuses_requests_from_other_sites(client: TestClient, method: str, headers: dict[str, str]) -> None:
    assert client.request(method, "/", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": HERE},
        {"Sec-Fetch-Site": "same-origin", "Origin": HERE},
        # Behind a proxy with its own name for this address; the browser decides.
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://studio.example"},
    ],
)
def test_takes_requests_from_the_page_and_programs(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/", headers=headers, content=b"abc").text == "3"


def test_follows_links_from_other_sites(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


def pieces(count: int) -> Iterator[bytes]:
    return (b"x" * 100 for _ in range(count))


def test_bodies_are_bounded_with_and_without_a_length(client: TestClient) -> None:
    assert client.post("/", content=b"x" * 1000).text == "1000"
    assert client.post("/", content=pieces(10)).text == "1000"
    assert client.post("/", content=b"x" * 1001).status_code == 413
    assert client.post("/", content=pieces(11)).status_code == 413
    assert client.post("/", headers={"Content-Length": "-1"}).status_code == 413
