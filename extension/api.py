"""Routes below `/hnloader/v1/`, where the webui serves its API: list, inspect and convert the library's files.

Clients name files as prompts do, never by a path, and no answer says where the computer keeps them. Whoever has set a
login for the API or for the page needs it here too. A page of another site cannot call them through the user's browser.
"""

from __future__ import annotations

import ipaddress
import secrets
import threading
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.security import HTTPBasic
from pydantic import BaseModel, Field

import hnloader
from hnloader.errors import HypernetworkError
from hnloader.library import HypernetworkNotFoundError, LibraryFile

from .host import Access
from .runtime import Extension
from .telling import looked_into, said, values_of, without_folders

PREFIX = "/hnloader/v1"
MAX_LISTED = 1000
MAX_NAME = 300
MAX_CONVERTED = 4 << 30  # bytes

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
    to: Literal["safetensors", "pt"] = "safetensors"
    on_existing: Literal["skip", "rename"] = Field(default="skip", description="what happens where the result exists")


class ConvertResponse(BaseModel):
    """What became of it."""

    file: str = Field(description="the result's path below the library's folder")
    action: Literal["converted", "skipped"]
    lossless: bool
    proved: list[str] = Field(description="what was compared with the source")
    notes: list[str]


def register(extension: Extension) -> None:
    """Have the host serve the routes; it does not where its own API is off."""
    extension.host.on_app(lambda app: serve(extension, app))


def serve(extension: Extension, app: FastAPI) -> None:
    """Add the routes to an app. Does nothing where the host's API is off."""
    access = extension.host.access()
    if access.enabled:
        app.include_router(router(extension, access))


def router(extension: Extension, access: Access) -> APIRouter:
    """The routes, guarded as `access` says."""
    files = _Files(extension)
    converting = threading.Lock()

    async def guard(request: Request) -> None:
        _check_origin(request, access.local)
        await _check_login(request, access)

    routes = APIRouter(prefix=PREFIX, tags=["hnloader"], dependencies=[Depends(guard)])

    @routes.get("/hypernetworks", response_model=Listing)
    def hypernetworks(
        search: str = Query("", max_length=MAX_NAME),
        offset: int = Query(0, ge=0),
        limit: int = Query(100, ge=1, le=MAX_LISTED),
    ) -> Listing:
        """The library's files whose path holds `search`, in the order of the library."""
        found = [file for file in files.all() if search.casefold() in file.relative.as_posix().casefold()]
        return Listing(total=len(found), files=[files.listed(file) for file in found[offset : offset + limit]])

    @routes.get("/inspect", response_model=Inspected)
    def inspect(name: str = Query(..., min_length=1, max_length=MAX_NAME)) -> Inspected:
        """What one file holds, by its name; only its header is read."""
        file = files.find(name)
        answer = Inspected(name=file.name, file=file.relative.as_posix())
        found = looked_into(extension.host, file.path)
        if isinstance(found, str):
            answer.problem = found
        else:
            answer.info = values_of(extension.host, found)
        return answer

    @routes.post("/convert", response_model=ConvertResponse)
    def convert(wanted: ConvertRequest) -> ConvertResponse:
        """Convert one file, proved; the source stays. One conversion at a time."""
        file = files.find(wanted.name)
        if files.size(file) > MAX_CONVERTED:
            raise HTTPException(413, f"{file.relative} is larger than {MAX_CONVERTED >> 30} GB; use 'hnloader convert'")
        if not converting.acquire(blocking=False):
            raise HTTPException(409, "another file is being converted; try again when it is done")
        try:
            target = file.path.with_suffix(f".{wanted.to}")
            done = hnloader.convert(file.path, target, on_existing=wanted.on_existing)
        except (HypernetworkError, OSError) as error:
            raise HTTPException(422, said(extension.host, error)) from error
        finally:
            converting.release()
        extension.host.refresh()
        return ConvertResponse(
            file=done.target.relative_to(file.folder).as_posix(),
            action=done.action,
            lossless=done.lossless,
            proved=list(done.proved),
            notes=[without_folders(extension.host, note) for note in done.notes],
        )

    return routes


class _Files:
    """The library as clients see it: names and paths below its folders."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def all(self) -> list[LibraryFile]:
        """Every file, listed anew."""
        self._extension.list_anew()
        return self._extension.library.files()

    def size(self, file: LibraryFile) -> int:
        """In bytes; an answer with status 404 where the file vanished since it was found."""
        try:
            return file.path.stat().st_size
        except OSError as error:
            raise HTTPException(
                404, f"{file.relative.as_posix()} is gone: {said(self._extension.host, error)}"
            ) from error

    def listed(self, file: LibraryFile) -> Listed:
        """A file that vanished since has the size 0."""
        try:
            size = self.size(file)
        except HTTPException:
            size = 0
        return Listed(name=self._extension.library.shortest_name(file), file=file.relative.as_posix(), size=size)

    def find(self, name: str) -> LibraryFile:
        """The file of this name; an answer with status 404 where there is none."""
        try:
            self._extension.find(name)
        except HypernetworkNotFoundError as error:
            raise HTTPException(404, said(self._extension.host, error)) from error
        return self._extension.library.matches(name)[0]


# -- who may


def _check_origin(request: Request, local: bool) -> None:
    """Refuse what a page of another site sends through the user's browser, also by a name that it points to here."""
    host = request.headers.get("host", "")
    if local and not _is_local(host):
        raise HTTPException(403, "this webui serves this computer alone, and is reached as localhost")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise HTTPException(403, "a page of another site may not use this API")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "a page of another site may not use this API")


def _is_local(host: str) -> bool:
    """Whether a Host header names this computer: `localhost` or an address, which no name server can redirect."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
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
