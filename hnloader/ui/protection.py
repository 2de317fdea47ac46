"""What stands before the standalone page: requests of other sites and bodies without end do not reach it.

A page of another site can have the user's browser send requests here. It cannot read the answers, and does harm all the
same where a request alone does something. Browsers say where a request comes from in `Sec-Fetch-Site` (to this computer
and over TLS) or in `Origin`; programs that are no browsers send neither, and are no way in for another site.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

# An image for a preview is the largest thing that the page takes.
LARGEST_BODY = 64 << 20

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class _TooLargeError(Exception):
    pass


class Protection:
    """ASGI middleware: refuses what another site's page sends (403) and what is larger than `largest` bytes (413)."""

    def __init__(self, app: _App, largest: int = LARGEST_BODY) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or have the app do it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if not reads and is_of_another_site(headers):
            await _refuse(scope, send, 403, "a page of another site may not use this one")
            return
        if "host" in headers and host_in(f"//{headers['host']}") is None:
            await _refuse(scope, send, 400, "the request names no host that can be")
            return
        if not length_within(headers.get("content-length", "0"), self._largest):
            await _refuse(scope, send, 413, f"a request has at most {self._largest >> 20} MiB")
            return
        await self._bounded(scope, receive, send)

    async def _bounded(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Count what comes: a body need not say how long it is."""
        came, answered = 0, False

        async def counted() -> _Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._largest:
                raise _TooLargeError
            return message

        async def noted(message: _Message) -> None:
            nonlocal answered
            if came <= self._largest:  # otherwise it is what the app makes of our error
                answered = True
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, counted, noted)
        if came > self._largest and not answered:
            await _refuse(scope, send, 413, f"a request has at most {self._largest >> 20} MiB")


def is_of_another_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site sent this; names of headers are in lower case.

    Where `Sec-Fetch-Site` is missing, `Origin` has to name the host that was asked.
    """
    fetch = headers.get("sec-fetch-site")
    if fetch is not None:
        return fetch not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and host_in(origin) != headers.get("host", "")


def host_in(address: str) -> str | None:
    """Return host and port of an address; None where it is malformed, such as `http://[::1`."""
    try:
        parts = urlsplit(address)
        _ = parts.hostname, parts.port  # each has rules of its own
    except ValueError:
        return None
    return parts.netloc


def length_within(given: str, largest: int) -> bool:
    """Tell whether a Content-Length is a number of at most `largest`."""
    return given.isdecimal() and len(given) <= len(str(largest)) and int(given) <= largest


async def _refuse(scope: _Message, send: _Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
