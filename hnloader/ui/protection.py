"""ASGI middleware of the standalone page: it stops requests from other sites and endless bodies.

A page of another site can make the user's browser send requests here. It cannot read the answers, but a request alone
can do harm. Browsers name a request's origin in `Sec-Fetch-Site` (to this computer and over TLS) or in `Origin`. Other
programs send neither, and other sites cannot use them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["LARGEST_BODY", "Protection", "host_in", "is_of_another_site", "length_within"]

# The largest upload is an image for a preview.
LARGEST_BODY = 64 << 20

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class _TooLargeError(Exception):
    pass


class Protection:
    """Refuses requests from other sites' pages (403) and bodies larger than `largest` bytes (413)."""

    def __init__(self, app: _App, largest: int = LARGEST_BODY) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Refuse one request or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if not reads and is_of_another_site(headers):
            await _refuse(scope, send, 403, "Pages of other sites must not use this page.")
        elif "host" in headers and host_in(f"//{headers['host']}") is None:
            await _refuse(scope, send, 400, "The Host header is malformed.")
        elif not length_within(headers.get("content-length", "0"), self._largest):
            await self._refuse_size(scope, send)
        else:
            await self._bounded(scope, receive, send)

    async def _bounded(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Count the bytes received: a body need not state its length."""
        received, answered = 0, False

        async def counted() -> _Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._largest:
                raise _TooLargeError
            return message

        async def noted(message: _Message) -> None:
            nonlocal answered
            if received <= self._largest:  # otherwise the app is answering our own error
                answered = True
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, counted, noted)
        if received > self._largest and not answered:
            await self._refuse_size(scope, send)

    async def _refuse_size(self, scope: _Message, send: _Send) -> None:
        await _refuse(scope, send, 413, f"The request is too large. Send at most {self._largest >> 20} MiB.")


def is_of_another_site(headers: Mapping[str, str]) -> bool:
    """Return whether a browser names another site as the origin of a request; header names are in lower case.

    Without `Sec-Fetch-Site`, `Origin` must equal the requested host.
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
        _ = parts.hostname, parts.port  # both are checked only when read
    except ValueError:
        return None
    return parts.netloc


def length_within(given: str, largest: int) -> bool:
    """Return whether a Content-Length is a number of at most `largest`."""
    return given.isdecimal() and len(given) <= len(str(largest)) and int(given) <= largest


async def _refuse(scope: _Message, send: _Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
