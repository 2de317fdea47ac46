"""Compare Python's unpicklers with `hnloader.formats.tracing`: the trace must name everything that they import.

Nothing is really imported: both unpicklers (in C and in Python) get stand-in classes that record imports and calls.
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
    """An unpickler imports or calls something that the trace does not name."""


def check(data: bytes) -> None:
    """Raise MissedError where an unpickler imports something unknown that `trace_at` does not name."""
    for kind in (pickle.Unpickler, pickle._Unpickler):
        for file in (io.BytesIO(data), io.BufferedReader(io.BytesIO(data), 16), _Plain(data)):
            for persistent in (False, True):
                _check(data, kind, file, persistent)


class _Plain:
    """A file without `peek` and `readinto`, which the C unpickler reads differently."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        self.read, self.readline, self.seek, self.tell = file.read, file.readline, file.seek, file.tell


def _check(data: bytes, kind: Any, file: Any, persistent: bool) -> None:
    file.seek(0)
    calls: dict[Global, bool] = {}
    unpickler = _recording_unpickler(kind, file, calls, persistent)
    found: dict[Global, None] = {}
    at = 0
    for trace in _traces(data):
        try:
            # A new unpickler for each pickle, as `pickle.load` makes.
            unpickler = _recording_unpickler(kind, file, calls, persistent)
            file.seek(at)
            unpickler.load()
            at = file.tell()
        except Exception:  # after any error, it reads no further
            at = -1
        found.update(trace.names)
        certain = trace.is_certain
        if any(one.name is None for one in trace.found):
            return  # frames that the unpicklers read differently, or an odd persistent id: a finding
        for name, is_called in calls.items():
            if not "".join(name).isascii():
                continue  # other encodings make other names, all unknown
            if name not in KNOWN and name not in found and (is_called or certain):
                raise MissedError(f"{kind.__module__} imports {name!r} (called: {is_called}); the trace does not.")
            if name not in KNOWN and name in found and not trace.found and not _before(trace, name):
                raise MissedError(f"The trace names {name!r} without a finding.")
        if at < 0:
            return
        if at != trace.end or trace.ending != "stop":
            raise MissedError(f"{kind.__module__} ends at {at}, but the trace at {trace.end} ({trace.ending}).")


def _before(trace: object, name: Global) -> bool:
    """Return True for a name of an earlier pickle."""
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


def _recording_unpickler(kind: Any, file: Any, calls: dict[Global, bool], persistent: bool) -> Any:
    class RecordingUnpickler(kind):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> object:
            calls.setdefault((module, name), False)
            return _stand_in((module, name), calls)

    if persistent:

        def persistent_load(self: object, given: object) -> object:
            return _stand_in(("persistent", "id"), {})

        RecordingUnpickler.persistent_load = persistent_load
    return RecordingUnpickler(file, encoding="latin-1")


def _stand_in(named: Global, calls: dict[Global, bool]) -> type:
    """Return a class that records its calls and whose objects accept any operation."""

    class StandIn:
        def __new__(cls, *arguments: object, **named_arguments: object) -> StandIn:
            if named in calls:
                calls[named] = True
            return super().__new__(cls)

        def __init__(self, *arguments: object, **named_arguments: object) -> None:
            pass

        def _take(self, *arguments: object) -> None:
            pass

        __setstate__ = __setitem__ = append = extend = add = _take

    return StandIn
