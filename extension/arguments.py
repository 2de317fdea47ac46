"""Refuse unreadable rows in requests to the webui's own txt2img and img2img routes, with status 422.

The page shows a problem with a row under the image. A client of the API sees no such message.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import JSONResponse

from .panel import NAME
from .rows import read_rows

PATHS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")
# Most requests do not name the script, and those of img2img are large.
_NAMED = re.compile(re.escape(NAME.encode()), re.IGNORECASE)


def check_jobs(app: Any) -> None:
    """Check requests to these routes of an app, if it has them."""
    for route in app.routes:
        if getattr(route, "path", None) in PATHS and callable(getattr(route, "app", None)):
            route.app = _Checked(route.app)


def problems_in(body: bytes) -> list[str]:
    """Return the problems with the script's arguments; an invalid request is left for the webui to refuse."""
    if not _NAMED.search(body):
        return []
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return []
    scripts = request.get("alwayson_scripts") if isinstance(request, dict) else None
    found: list[str] = []
    for name, given in scripts.items() if isinstance(scripts, dict) else ():
        if name.casefold() == NAME.casefold():  # the webuis ignore case, too
            found += _problems(given)
    return found


def _problems(given: Any) -> list[str]:
    args = given.get("args", []) if isinstance(given, dict) else None
    if not isinstance(args, list) or len(args) > 1:
        found = f"{len(args)} values" if isinstance(args, list) else type(args).__name__
        example = '{"args": [[{"name": "ink"}]]}'
        return [f"`args` is {found}. Write one value in a list, rows or a text of tags: {example}."]
    return [row.problem for row in read_rows(*args) if row.problem] if args else []


class _Checked:
    """An ASGI application that reads the body, then passes it on."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        problems = problems_in(b"".join(message.get("body", b"") for message in messages))
        if problems:
            response = JSONResponse({"detail": f"{NAME}: {' '.join(problems)}"}, 422)
            await response(scope, receive, send)
            return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)
