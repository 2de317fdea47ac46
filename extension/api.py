"""Routes below `/hnloader/v1/` in the webui's API: list, inspect and convert the library's files.

Clients name files as prompts do. No route accepts a path, and no response contains a folder of this computer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Query
from pydantic import BaseModel, Field

import hnloader
from hnloader.errors import HypernetworkError, HypernetworkNotFoundError
from hnloader.files import check_room
from hnloader.formats.registry import format_named
from hnloader.library import Library, LibraryFile
from hnloader.texts import well_formed

from .arguments import check_jobs
from .core import Extension
from .guard import guarded
from .hosts.protocol import Access, ListsFiles, ServesApi
from .redaction import inspect_redacted, redact, redacted_message, redacted_values

T = TypeVar("T")

PREFIX = "/hnloader/v1"
LIST = "/sdapi/v1/hypernetworks"
MAX_LISTED = 1000
MAX_NAME = 300
MAX_CONVERTED = 4 << 30  # bytes
# Requests that run at once, in separate threads, and requests that may wait.
MAX_RUNNING, MAX_WAITING = 4, 200


class Listed(BaseModel):
    """One file of the library, not read."""

    name: str = Field(description="name in a prompt")
    file: str = Field(description="path below the library's folder")
    size: int = Field(description="bytes")


class Listing(BaseModel):
    """A part of the library."""

    total: int = Field(description="number of files that match the search")
    files: list[Listed]


class Inspected(BaseModel):
    """The contents of a file's header, or a problem."""

    name: str
    file: str
    problem: str | None = Field(default=None, description="reason why the file cannot be used; `info` is then empty")
    info: dict[str, Any] = Field(default_factory=dict, description="output of 'hnloader inspect --json'")


class ConvertRequest(BaseModel):
    """A file to convert. The output is written beside it."""

    name: str = Field(max_length=MAX_NAME)
    to: str = Field(default="safetensors", max_length=MAX_NAME, description="name of a format that hnloader writes")
    on_existing: Literal["skip", "rename"] = Field(default="skip", description="if the output exists")


class ConvertResponse(BaseModel):
    """The result of a conversion."""

    file: str = Field(description="path of the output below the library's folder")
    action: Literal["converted", "skipped"]
    lossless: bool
    verified: list[str] = Field(description="parts that were compared with the source")
    notes: list[str]


def register(extension: Extension, host: ServesApi) -> None:
    """Add the routes when the webui's app starts."""
    host.on_app(lambda app: serve(extension, app, host.access()))


def serve(extension: Extension, app: FastAPI, access: Access) -> None:
    """Add the routes to an app, if the webui serves its own API."""
    if access.enabled:
        app.include_router(router(extension, access))
        if all(getattr(route, "path", None) != LIST for route in app.routes):
            app.include_router(own_list(extension, access))
        check_jobs(app)


def router(extension: Extension, access: Access) -> APIRouter:
    """Return the routes, with the login and the limits of `guard`."""
    service = _Service(extension)
    pool = _Pool()
    routes = APIRouter(prefix=PREFIX, tags=["hnloader"], route_class=guarded(access))

    @routes.get("/hypernetworks", response_model=Listing)
    async def hypernetworks(
        search: str = Query("", max_length=MAX_NAME),
        offset: int = Query(0, ge=0),
        limit: int = Query(100, ge=1, le=MAX_LISTED),
    ) -> Listing:
        """List the files whose path contains `search`."""
        return await pool.run(lambda: service.list_files(search, offset, limit))

    @routes.get("/inspect", response_model=Inspected)
    async def inspect(name: str = Query(..., min_length=1, max_length=MAX_NAME)) -> Inspected:
        """Read the header of a file."""
        return await pool.run(lambda: service.inspect(name))

    @routes.post("/convert", response_model=ConvertResponse)
    async def convert(wanted: ConvertRequest) -> ConvertResponse:
        """Convert and verify a file, keeping the source. One conversion runs at a time."""
        return await pool.run(lambda: service.convert(wanted))

    return routes


def own_list(extension: Extension, access: Access) -> APIRouter:
    """Return the route by which AUTOMATIC1111's webui lists hypernetworks, for webuis without it."""
    routes = APIRouter(route_class=guarded(access))

    @routes.get(LIST)
    def hypernetworks() -> list[dict[str, str]]:
        """List the names and the paths below their folders."""
        library = extension.library.refresh()
        files = [(name, library.first(name)) for name in library.names()]
        return [{"name": well_formed(name), "path": _relative(file)} for name, file in files]

    return routes


class _Service:
    """The work of the routes; errors are HTTPException."""

    def __init__(self, extension: Extension) -> None:
        self._host, self._library = extension.host, extension.library
        self._converting = threading.Lock()

    def list_files(self, search: str, offset: int, limit: int) -> Listing:
        library = self._library.refresh()
        found = [file for file in library.files() if search.casefold() in _relative(file).casefold()]
        files = [self._listed(file, library) for file in found[offset : offset + limit]]
        return Listing(total=len(found), files=files)

    def inspect(self, name: str) -> Inspected:
        file = self._find(name)
        found = inspect_redacted(self._host.folders(), file.path)
        response = Inspected(name=well_formed(file.name), file=_relative(file))
        if isinstance(found, str):
            response.problem = found
        else:
            response.info = redacted_values(self._host.folders(), found)
        return response

    def convert(self, wanted: ConvertRequest) -> ConvertResponse:
        file = self._find(wanted.name)
        size = self._size(file)
        if size > MAX_CONVERTED:
            limit = f"{MAX_CONVERTED >> 30} GB"
            raise HTTPException(413, f"{_relative(file)} is larger than {limit}. Use 'hnloader convert'.")
        if not self._converting.acquire(blocking=False):
            raise HTTPException(409, "Another conversion is running. Try again later.")
        try:
            self._check_room(file, size)
            target = file.path.with_suffix(format_named(wanted.to).suffix)
            done = hnloader.convert(file.path, target, on_existing=wanted.on_existing)
        except (HypernetworkError, OSError) as error:
            raise HTTPException(422, self._message(error)) from error
        finally:
            self._converting.release()
        if isinstance(self._host, ListsFiles):
            self._host.refresh_files()
        return ConvertResponse(
            file=well_formed(done.target.relative_to(file.folder).as_posix()),
            action=done.action,
            lossless=done.lossless,
            verified=list(done.verified),
            notes=[redact(self._host.folders(), note) for note in done.notes],
        )

    def _find(self, name: str) -> LibraryFile:
        try:
            return self._library.find(name)
        except HypernetworkNotFoundError as error:
            raise HTTPException(404, self._message(error)) from error

    def _size(self, file: LibraryFile) -> int:
        try:
            return file.path.stat().st_size
        except OSError as error:
            raise HTTPException(404, f"{_relative(file)} was deleted: {self._message(error)}") from error

    def _listed(self, file: LibraryFile, library: Library) -> Listed:
        try:
            size = self._size(file)
        except HTTPException:
            size = 0
        return Listed(name=well_formed(library.shortest_name(file)), file=_relative(file), size=size)

    def _check_room(self, file: LibraryFile, size: int) -> None:
        """Refuse to fill the disk with another file of this size."""
        try:
            check_room(file.path.parent, size)
        except HypernetworkError as error:
            raise HTTPException(507, self._message(error)) from error

    def _message(self, error: Exception) -> str:
        return redacted_message(self._host.folders(), error)


def _relative(file: LibraryFile) -> str:
    return well_formed(file.relative.as_posix())


class _Pool:
    """Runs work in a few threads, apart from the webui's own."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of the work; status 503 if too many requests wait."""
        if self._limiter is None:  # anyio needs a running event loop to make one
            self._limiter = anyio.CapacityLimiter(MAX_RUNNING)
        if self._waiting >= MAX_WAITING:
            raise HTTPException(503, "Too many requests are waiting. Try again later.", {"Retry-After": "5"})
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._waiting -= 1
