"""Rows in requests to the webui's own txt2img and img2img routes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from extension.arguments import problems_in
from tests.support.standins.webui import Webui

GOOD = [
    [],
    [None],
    [[]],
    [[{"name": "ink", "strength": 0.5, "block": "up", "start": 0.2, "end": 0.8, "k": 1, "v": 0.5, "enabled": True}]],
    ["<hypernet:ink:0.8:block=up,start=0.2>"],
    ['[{"name": "ink"}]'],
]
BAD = [
    ([[{"name": "ink", "strength": "much"}]], "Row 1: `strength` is 'much'"),
    ([[{"name": "ink"}, {"name": "wash", "strengh": 1}]], "'strengh'"),
    ([[{"name": "ink", "start": 0.9, "end": 0.1}]], "0 <= start < end <= 1"),
    ([{"name": "ink"}], "one object"),
    ([[], []], "2 values"),
    ({"name": "ink"}, "dict"),
    ("<hypernet:ink>", "str"),
    (["ink"], "'ink' is not a tag"),
    ([[{"name": "ink"}] * 101], "101 rows"),
]


def body(args: Any, script: str = "Hypernetworks") -> dict[str, Any]:
    return {"prompt": "a", "alwayson_scripts": {script: {"args": args}}}


async def echo(request: Request) -> dict[str, Any]:
    return {"sent": await request.json()}


@pytest.fixture(params=["txt2img", "img2img"])
def post(request: pytest.FixtureRequest, webui: Webui) -> Any:
    """Posts to one of the webui's routes, which return what they received."""
    webui.install()
    webui.start()
    app = FastAPI()
    for name in ("txt2img", "img2img"):
        app.add_api_route(f"/sdapi/v1/{name}", echo, methods=["POST"])
    webui.part("script_callbacks").run("app_started", None, app)
    assert webui.reports == []
    return lambda sent: TestClient(app, "http://127.0.0.1:7860").post(f"/sdapi/v1/{request.param}", **sent)


def test_readable_rows_reach_the_webui_unchanged(post: Any) -> None:
    for args in GOOD:
        answer = post({"json": body(args)})
        assert (answer.status_code, answer.json()) == (200, {"sent": body(args)})
    for other in ({"prompt": "hypernetworks"}, {"alwayson_scripts": {"Hypernetworks": {}}}, body([3, 4], "ControlNet")):
        assert post({"json": other}).json() == {"sent": other}
    large = {"init_images": ["a" * 3_000_000], **body([[{"name": "ink"}]])}
    assert post({"json": large}).json() == {"sent": large}


@pytest.mark.parametrize("script", ["Hypernetworks", "hypernetworks"])
def test_unreadable_rows_are_refused_with_the_reason(script: str, post: Any) -> None:
    for args, fact in BAD:
        answer = post({"json": body(args, script)})
        assert answer.status_code == 422
        assert fact in answer.json()["detail"]
        assert answer.json()["detail"].startswith("Hypernetworks: ")


@pytest.mark.parametrize(
    "sent", [b"", b"hypernetworks", b'{"hypernetworks"', b'["hypernetworks"]', b"\xff hypernetworks"]
)
def test_invalid_request_is_left_to_the_webui(sent: bytes) -> None:
    assert problems_in(sent) == []


def test_any_json_is_accepted() -> None:
    for scripts in (3, [], {"Hypernetworks": 3}, {"Hypernetworks": None}, {"Hypernetworks": []}):
        problems_in(json.dumps({"alwayson_scripts": scripts}).encode())
    assert problems_in(b'{"alwayson_scripts": "hypernetworks"' + b"[" * 100_000) == []
