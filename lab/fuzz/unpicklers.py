"""Python's own unpicklers against `hnloader.formats.tracing` on the same bytes: whatever they import must be found.

Nothing is imported: both unpicklers (C's and Python's) get classes that note what is asked for and what is called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import Any

from hnloader.formats.known_globals import KNOWN, Global
from hnloader.formats.source import open_source
from hnloader.formats.tracing import Budget, trace_at

MAX_PICKLES = 8


class MissedError(AssertionError):
    """An unpickler imports or calls what was not found."""


def check(data: bytes) -> None:
    """Raise MissedError where an unpickler imports something unknown that `trace_at` does not name."""
    for kind in (pickle.Unpickler, pickle._Unpickler):
        for file in (io.BytesIO(data), io.BufferedReader(io.BytesIO(data), 16), _Plain(data)):
            for persistent in (False, True):
                _check(data, kind, file, persistent)


class _Plain:
    """A file without `peek` and `readinto`, which C's unpickler reads in another way."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        self.read, self.readline, self.seek, self.tell = file.read, file.readline, file.seek, file.tell


def _check(data: bytes, kind: Any, file: Any, persistent: bool) -> None:
    file.seek(0)
    asked: dict[Global, bool] = {}
    unpickler = _noting(kind, file, asked, persistent)
    found: dict[Global, None] = {}
    at = 0
    for trace in _traces(data):
        try:
            # A new one for each: programs call `load` of a module.
            unpickler = _noting(kind, file, asked, persistent)
            file.seek(at)
            unpickler.load()
            at = file.tell()
        except Exception:  # whatever it raises, it does not go on
            at = -1
        found.update(trace.names)
        certain = trace.is_certain
        if any(one.name is None for one in trace.found):
            return  # frames by which the unpicklers read different bytes, or an odd persistent id: a finding
        for name, is_called in asked.items():
            if not "".join(name).isascii():
                continue  # other encodings give other names, none of which is known
            if name not in KNOWN and name not in found and (is_called or certain):
                raise MissedError(f"{kind.__module__} imports {name!r} (called: {is_called}), which was not found")
            if name not in KNOWN and name in found and not trace.found and not _before(trace, name):
                raise MissedError(f"{name!r} is not a finding")
        if at < 0:
            return
        if at != trace.end or trace.ending != "stop":
            raise MissedError(f"{kind.__module__} ends at {at}, and the trace at {trace.end} ({trace.ending})")


def _before(trace: object, name: Global) -> bool:
    """A name of an earlier pickle."""
    return name not in getattr(trace, "names", {})


def _traces(data: bytes) -> Iterator[Any]:
    with open_source(io.BytesIO(data)) as source:
        at = 0
        for _ in range(MAX_PICKLES):
            if at >= len(data):
                return
            trace = trace_at(source, at, Budget())
            yield trace
            if trace.ending != "stop":
                return
            at = trace.end


def _noting(kind: Any, file: Any, asked: dict[Global, bool], persistent: bool) -> Any:
    class Noting(kind):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> object:
            asked.setdefault((module, name), False)
            return _stand_in((module, name), asked)

    if persistent:

        def persistent_load(self: object, given: object) -> object:
            return _stand_in(("persistent", "id"), {})

        Noting.persistent_load = persistent_load
    return Noting(file, encoding="latin-1")


def _stand_in(named: Global, asked: dict[Global, bool]) -> type:
    """A class that notes that it was called, and whose objects take whatever is done to them."""

    class StandIn:
        def __new__(cls, *arguments: object, **named_arguments: object) -> StandIn:
            if named in asked:
                asked[named] = True
            return super().__new__(cls)

        def __init__(self, *arguments: object, **named_arguments: object) -> None:
            pass

        def _take(self, *arguments: object) -> None:
            pass

        __setstate__ = __setitem__ = append = extend = add = _take

    return StandIn
