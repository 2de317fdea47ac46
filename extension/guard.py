"""Access to the routes: the webui's login, pages of other sites, and the size of requests."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic

from hnloader.ui.protection import is_of_another_site, length_within

from .hosts.protocol import Access

MAX_BODY = 64 << 10  # bytes

_basic = HTTPBasic(auto_error=False)


def guarded(access: Access) -> type[APIRoute]:
    """Return a route class that checks access before it reads the body; FastAPI's dependencies run afterwards."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                try:
                    _check_origin(request, access.local)
                    await _check_login(request, access)
                    _check_length(request.headers.get("content-length", "0"))
                except HTTPException as refused:
                    # The unread body makes the connection useless.
                    refused.headers = {**(refused.headers or {}), "Connection": "close"}
                    raise
                try:
                    return await handle(Request(request.scope, _bounded(request)))
                except RequestValidationError as error:
                    # FastAPI's own response repeats the input, and fails if that cannot be encoded.
                    details = [{key: one[key] for key in ("loc", "msg", "type")} for one in error.errors()]
                    raise HTTPException(422, details) from error

            return guard

    return Guarded


def _bounded(request: Request) -> Callable[[], Awaitable[Any]]:
    """Return a function that receives the body; status 413 as soon as it exceeds `MAX_BODY`."""
    received = 0

    async def receive() -> Any:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        _check_length(str(received))
        return message

    return receive


def _check_length(length: str) -> None:
    if not length_within(length, MAX_BODY):
        raise HTTPException(413, f"The request is too large. Send at most {MAX_BODY >> 10} kB.")


def _check_origin(request: Request, local: bool) -> None:
    """Refuse a page of another site, also under a domain that its owner points to this computer."""
    if local and not _is_local(request.headers.get("host", "")):
        raise HTTPException(403, "Only this computer can reach this webui. Use the address localhost.")
    if is_of_another_site(request.headers):
        raise HTTPException(403, "Pages of other sites must not use this API.")


def _is_local(host: str) -> bool:
    """Return whether a Host header is `localhost` or an address, which no name server can redirect."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:  # also for a malformed one, such as `[::1`
        return False


async def _check_login(request: Request, access: Access) -> None:
    """Require one of the accounts by HTTP Basic; every comparison takes the same time."""
    if not access.accounts:
        return
    given = await _basic(request)
    user, password = (given.username, given.password) if given is not None else ("", "")
    matches = [
        secrets.compare_digest(user.encode(), known.encode()) & secrets.compare_digest(password.encode(), word.encode())
        for known, word in access.accounts.items()
    ]
    if not any(matches):
        raise HTTPException(401, "Log in with the webui's user and password.", {"WWW-Authenticate": "Basic"})
