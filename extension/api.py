"""Routes below `/hnloader/v1/`, where the webui serves its API: list, inspect and convert the library's files.

Clients name files as prompts do, never by a path, and no answer says where the computer keeps them. Whoever has set a
login for the API or for the page needs it here too. A page of another site cannot call them through the user's browser.
"""

from __future__ import annotations

import ipaddress
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic
from pydantic import BaseModel, Field

import hnloader
from hnloader.errors import HypernetworkError, HypernetworkNotFoundError
from hnloader.files import check_room
from hnloader.formats.registry import format_named
from hnloader.library import Library, LibraryFile
from hnloader.texts import well_formed
from hnloader.ui.protection import is_of_another_site, length_within

from .arguments import check_jobs
from .host import Access, WebuiHost
from .runtime import Extension
from .telling import looked_into, said, values_of, without_folders

T = TypeVar("T")

PREFIX = "/hnloader/v1"
MAX_LISTED = 1000
MAX_NAME = 300
MAX_CONVERTED = 4 << 30  # bytes
MAX_BODY = 64 << 10  # bytes
# Requests that are worked on at once, and that may wait for it; the webui's own threads are not taken for them.
MOST_AT_ONCE, MOST_WAITING = 4, 200

_basic = HTTPBasic(auto_error=False)


class Listed(BaseModel):
    """One file of the library; nothing in it was read."""

    name: str = Field(description="what a prompt calls it")
    file: str = Field(description="its path below the library's folder")
    size: int = Field(description="bytes")


class Listing(BaseModel):
    """A part of the library."""

    total: int = Field(description="files that fit the search")
    files: list[Listed]


class Inspected(BaseModel):
    """What a file's header says, or why it cannot be used."""

    name: str
    file: str
    problem: str | None = Field(default=None, description="why it cannot be used; the rest is empty then")
    info: dict[str, Any] = Field(default_factory=dict, description="as 'hnloader inspect --json' gives it")


class ConvertRequest(BaseModel):
    """Which file, and into what. The result lies beside it."""

    name: str = Field(max_length=MAX_NAME)
    to: str = Field(default="safetensors", max_length=MAX_NAME, description="name of a format that hnloader writes")
    on_existing: Literal["skip", "rename"] = Field(default="skip", description="what happens where the result exists")


class ConvertResponse(BaseModel):
    """What became of it."""

    file: str = Field(description="the result's path below the library's folder")
    action: Literal["converted", "skipped"]
    lossless: bool
    verified: list[str] = Field(description="what was compared with the source")
    notes: list[str]


def register(extension: Extension) -> None:
    """Have the host serve the routes; it does not where its own API is off."""
    extension.host.on_app(lambda app: serve(extension, app))


def serve(extension: Extension, app: FastAPI) -> None:
    """Add the routes to an app. Does nothing where the host's API is off."""
    access = extension.host.access()
    if access.enabled:
        app.include_router(router(extension, access))
        check_jobs(app)


def router(extension: Extension, access: Access) -> APIRouter:
    """The routes, guarded as `access` says."""
    files = _Files(extension)
    converting = threading.Lock()
    few = _Few()
    routes = APIRouter(prefix=PREFIX, tags=["hnloader"], route_class=_guarded(access))

    @routes.get("/hypernetworks", response_model=Listing)
    async def hypernetworks(
        search: str = Query("", max_length=MAX_NAME),
        offset: int = Query(0, ge=0),
        limit: int = Query(100, ge=1, le=MAX_LISTED),
    ) -> Listing:
        """The library's files whose path holds `search`, in the order of the library."""

        def listing() -> Listing:
            library = extension.list_anew()
            found = [file for file in library.files() if search.casefold() in files.named(file).casefold()]
            part = [files.listed(file, library) for file in found[offset : offset + limit]]
            return Listing(total=len(found), files=part)

        return await few.run(listing)

    @routes.get("/inspect", response_model=Inspected)
    async def inspect(name: str = Query(..., min_length=1, max_length=MAX_NAME)) -> Inspected:
        """What one file holds, by its name; only its header is read."""
        return await few.run(lambda: inspected(name))

    def inspected(name: str) -> Inspected:
        file = files.find(name)
        answer = Inspected(name=well_formed(file.name), file=files.named(file))
        found = looked_into(extension.host, file.path)
        if isinstance(found, str):
            answer.problem = found
        else:
            answer.info = values_of(extension.host, found)
        return answer

    @routes.post("/convert", response_model=ConvertResponse)
    async def convert(wanted: ConvertRequest) -> ConvertResponse:
        """Convert one file, verified; the source stays. One conversion at a time."""
        return await few.run(lambda: converted(wanted))

    def converted(wanted: ConvertRequest) -> ConvertResponse:
        file = files.find(wanted.name)
        size = files.size(file)
        if size > MAX_CONVERTED:
            raise HTTPException(
                413, f"{files.named(file)} is larger than {MAX_CONVERTED >> 30} GB; use 'hnloader convert'"
            )
        if not converting.acquire(blocking=False):
            raise HTTPException(409, "another file is being converted; try again when it is done")
        try:
            _check_room(extension.host, file, size)
            target = file.path.with_suffix(format_named(wanted.to).suffix)
            done = hnloader.convert(file.path, target, on_existing=wanted.on_existing)
        except (HypernetworkError, OSError) as error:
            raise HTTPException(422, said(extension.host, error)) from error
        finally:
            converting.release()
        extension.host.refresh()
        return ConvertResponse(
            file=well_formed(done.target.relative_to(file.folder).as_posix()),
            action=done.action,
            lossless=done.lossless,
            verified=list(done.verified),
            notes=[without_folders(extension.host, note) for note in done.notes],
        )

    return routes


class _Files:
    """The library as clients see it: names and paths below its folders."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def size(self, file: LibraryFile) -> int:
        """In bytes; an answer with status 404 where the file vanished since it was found."""
        try:
            return file.path.stat().st_size
        except OSError as error:
            raise HTTPException(404, f"{self.named(file)} is gone: {said(self._extension.host, error)}") from error

    def named(self, file: LibraryFile) -> str:
        """Its path below the library's folder, in UTF-8."""
        return well_formed(file.relative.as_posix())

    def listed(self, file: LibraryFile, library: Library) -> Listed:
        """A file that vanished since has the size 0."""
        try:
            size = self.size(file)
        except HTTPException:
            size = 0
        return Listed(name=well_formed(library.shortest_name(file)), file=self.named(file), size=size)

    def find(self, name: str) -> LibraryFile:
        """The file of this name; an answer with status 404 where there is none."""
        try:
            return self._extension.file(name)
        except HypernetworkNotFoundError as error:
            raise HTTPException(404, said(self._extension.host, error)) from error


class _Few:
    """Runs work in threads, few at once."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """What the work gives; an answer with status 503 where too many wait already."""
        if self._limiter is None:  # anyio makes one where an event loop runs
            self._limiter = anyio.CapacityLimiter(MOST_AT_ONCE)
        if self._waiting >= MOST_WAITING:
            raise HTTPException(503, "too many requests are waiting; try again later", {"Retry-After": "5"})
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._waiting -= 1


def _check_room(host: WebuiHost, file: LibraryFile, size: int) -> None:
    """An answer with status 507 where another file of this size beside it would fill the disk."""
    try:
        check_room(file.path.parent, size)
    except HypernetworkError as error:
        raise HTTPException(507, said(host, error)) from error


# -- who may


def _guarded(access: Access) -> type[APIRoute]:
    """Routes that ask who may before the body is read: FastAPI asks its dependencies afterwards."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                try:
                    _check_origin(request, access.local)
                    await _check_login(request, access)
                    _check_length(request.headers.get("content-length", "0"))
                except HTTPException as refused:
                    # The body was not read, so that nothing else can be sent on this connection.
                    refused.headers = {**(refused.headers or {}), "Connection": "close"}
                    raise
                try:
                    return await handle(Request(request.scope, _bounded(request)))
                except RequestValidationError as error:
                    # FastAPI's own answer repeats what was sent, and fails where that is no text that can be sent.
                    told = [{key: one[key] for key in ("loc", "msg", "type")} for one in error.errors()]
                    raise HTTPException(422, told) from error

            return guard

    return Guarded


def _bounded(request: Request) -> Callable[[], Awaitable[Any]]:
    """What gives the body, and an answer with status 413 as soon as it is longer than `MAX_BODY`."""
    came = 0

    async def receive() -> Any:
        nonlocal came
        message = await request.receive()
        came += len(message.get("body", b""))
        _check_length(str(came))
        return message

    return receive


def _check_length(given: str) -> None:
    if not length_within(given, MAX_BODY):
        raise HTTPException(413, f"a request has at most {MAX_BODY >> 10} kB")


def _check_origin(request: Request, local: bool) -> None:
    """Refuse what a page of another site sends through the user's browser, also by a name that it points to here."""
    if local and not _is_local(request.headers.get("host", "")):
        raise HTTPException(403, "this webui serves this computer alone, and is reached as localhost")
    if is_of_another_site(request.headers):
        raise HTTPException(403, "a page of another site may not use this API")


def _is_local(host: str) -> bool:
    """Whether a Host header names this computer: `localhost` or an address, which no name server can redirect."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:  # also for a malformed one, such as `[::1`
        return False


async def _check_login(request: Request, access: Access) -> None:
    """HTTP Basic with one of the accounts; every comparison takes the same time."""
    if not access.accounts:
        return
    given = await _basic(request)
    user, password = (given.username, given.password) if given is not None else ("", "")
    matches = [
        secrets.compare_digest(user.encode(), known.encode()) & secrets.compare_digest(password.encode(), word.encode())
        for known, word in access.accounts.items()
    ]
    if not any(matches):
        raise HTTPException(401, "the webui's user and password are needed", {"WWW-Authenticate": "Basic"})
