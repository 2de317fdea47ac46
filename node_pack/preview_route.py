"""A route that serves the preview images beside hypernetwork files to ComfyUI's page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.ui.sidecars import thumbnail

from . import hypernetwork_files as files

if TYPE_CHECKING:
    from aiohttp import web

_ADDED = "hnloader_preview"


def add_route(server: Any) -> None:
    """Add `GET /hnloader/preview?file=NAME` to ComfyUI's server, once for several clones."""
    if getattr(server, _ADDED, False):
        return
    setattr(server, _ADDED, True)
    from aiohttp import web

    async def preview(request: web.Request) -> web.Response:
        """Answer with a JPEG, or with 204 for a file without a preview. Only listed files are found."""
        found = await asyncio.get_running_loop().run_in_executor(None, _preview, request.query.get("file", ""))
        if found is None:
            return web.Response(status=204)
        return web.Response(body=found, content_type="image/jpeg", headers={"Cache-Control": "no-cache"})

    server.routes.get("/hnloader/preview")(preview)


def _preview(name: str) -> bytes | None:
    try:
        return thumbnail(files.path_of(name))
    except HypernetworkError:
        return None
