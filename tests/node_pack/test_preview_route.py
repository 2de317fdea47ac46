"""The previews of the page."""

from __future__ import annotations

import asyncio

from PIL import Image

from tests.support.standins.comfyui_host import Host


def test_only_previews_of_listed_files_are_served(comfyui: Host) -> None:
    from aiohttp import web

    Image.new("RGB", (900, 600), "purple").save(comfyui.folder / "styles" / "ink.png")
    handler = comfyui.server.routes.handlers["/hnloader/preview"]

    def answer(name: str) -> web.Response:
        return asyncio.run(handler(web.Request({"file": name})))

    found = answer("styles/ink.pt")
    assert found.status == 200 and found.content_type == "image/jpeg" and found.body[:2] == b"\xff\xd8"
    for name in ("relu_121.pt", "styles/ink.png", "../ink.pt", "/etc/passwd", "", "gone.pt"):
        assert (answer(name).status, answer(name).body) == (204, None)
