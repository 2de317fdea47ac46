"""Rows in requests for the webui's own txt2img and img2img: those that can't be read are an answer, not an image."""

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
    ([[{"name": "ink", "strength": "much"}]], "Row 1: strength is 'much', not a number"),
    ([[{"name": "ink"}, {"name": "wash", "strengh": 1}]], "Row 2: there is no 'strengh'. A row has enabled, name"),
    ([[{"name": "ink", "start": 0.9, "end": 0.1}]], "0 <= start < end <= 1"),
    ([{"name": "ink"}], "one object"),
    ([[], []], "args is 2 values"),
    ({"name": "ink"}, "args is dict"),
    ("<hypernet:ink>", "args is str"),
    (["ink"], "'ink' is not a tag"),
    ([[{"name": "ink"}] * 101], "101 rows; 100 are possible"),
]


def body(args: Any, script: str = "Hypernetworks") -> dict[str, Any]:
    return {"prompt": "a", "alwayson_scripts": {script: {"args": args}}}


async def echo(request: Request) -> dict[str, Any]:
    return {"sent": await request.json()}


@pytest.fixture(params=["txt2img", "img2img"])
def asked(request: pytest.FixtureRequest, webui: Webui) -> Any:
    """Posts to one of the host's routes; they answer what they were sent."""
    webui.install()
    webui.start()
    app = FastAPI()
    for name in ("txt2img", "img2img"):
        app.add_api_route(f"/sdapi/v1/{name}", echo, methods=["POST"])
    webui.part("script_callbacks").run("app_started", None, app)
    assert webui.reports == []
    return lambda sent: TestClient(app, "http://127.0.0.1:7860").post(f"/sdapi/v1/{request.param}", **sent)


def test_what_can_be_read_reaches_the_webui_as_it_was_sent(asked: Any) -> None:
    for args in GOOD:
        answer = asked({"json": body(args)})
        assert (answer.status_code, answer.json()) == (200, {"sent": body(args)})
    for other in ({"prompt": "hypernetworks"}, {"alwayson_scripts": {"Hypernetworks": {}}}, body([3, 4], "ControlNet")):
        assert asked({"json": other}).json() == {"sent": other}
    large = {"init_images": ["a" * 3_000_000], **body([[{"name": "ink"}]])}
    assert asked({"json": large}).json() == {"sent": large}


@pytest.mark.parametrize("script", ["Hypernetworks", "hypernetworks"])
def test_what_cannot_be_read_is_refused_with_the_reason(script: str, asked: Any) -> None:
    for args, said in BAD:
        answer = asked({"json": body(args, script)})
        assert answer.status_code == 422
        assert said in answer.json()["detail"]
        assert answer.json()["detail"].startswith("Hypernetworks: ")


@pytest.mark.parametrize(
    "sent", [b"", b"hypernetworks", b'{"hypernetworks"', b'["hypernetworks"]', b"\xff hypernetworks"]
)
def test_what_is_no_request_is_the_webui_s_to_refuse(sent: bytes) -> None:
    assert problems_in(sent) == []


def test_rows_that_make_no_sense_at_all_are_no_error_of_ours() -> None:
    for scripts in (3, [], {"Hypernetworks": 3}, {"Hypernetworks": None}, {"Hypernetworks": []}):
        problems_in(json.dumps({"alwayson_scripts": scripts}).encode())
    assert problems_in(b'{"alwayson_scripts": "hypernetworks"' + b"[" * 100_000) == []
