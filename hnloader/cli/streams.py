"""Handle failures of stdout and stderr: closed streams, closed pipes and full disks.

typer, click and rich each treat a failing stream differently: with another exit code, a traceback, or silence. So the
streams raise `OutputLostError`, which none of them catches.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import IO, Any

__all__ = ["READER_LEFT", "OutputLostError", "flush", "watch"]

READER_LEFT = 141  # 128 + SIGPIPE, as shells report it
_FAILED = 1
# Windows reports a pipe without a reader as an invalid argument.
_LEFT = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)
_NAMES = {"stdin": 0, "stdout": 1, "stderr": 2}
_IN_WORDS = {"stdout": "standard output", "stderr": "standard error"}


class OutputLostError(BaseException):
    """A stream failed. A BaseException, so that nothing between the stream and `run` handles it.

    Attributes:
        stream: "stdout" or "stderr".
        error: The error of the system.
    """

    def __init__(self, stream: str, error: OSError) -> None:
        super().__init__(stream, error)
        self.stream = stream
        self.error = error

    def end(self) -> int:
        """Return the exit code; print a message unless the reader closed the pipe, as `head` does."""
        if self.error.errno in _LEFT:
            return READER_LEFT
        if self.stream != "stderr":
            reason = "the disk is full" if self.error.errno == errno.ENOSPC else self.error.strerror or "it failed"
            with contextlib.suppress(OutputLostError, OSError):
                print(f"Error: Cannot write to {_IN_WORDS[self.stream]}: {reason}.", file=sys.stderr, flush=True)
        return _FAILED


def watch() -> None:
    """Make stdout and stderr raise `OutputLostError` at the first failure and drop later output.

    A stream that was closed at the start becomes the null device. Otherwise a file that the command opens could get its
    file descriptor and receive the output.
    """
    for name, number in _NAMES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, _null(number, "r" if name == "stdin" else "w"))
    for name in _IN_WORDS:
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _watched(stream, name))


def flush() -> None:
    """Write the buffered output; errors at interpreter exit would have no message and another exit code."""
    for name in _IN_WORDS:
        getattr(sys, name).flush()


def _null(number: int, mode: str) -> IO[str]:
    handle = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(handle, number)
        os.close(handle)
        handle = number
    return open(handle, mode, encoding="utf-8", closefd=False)


def _watched(stream: io.TextIOWrapper, name: str) -> io.TextIOWrapper:
    raw = _Watched(stream, name)
    # Characters that the terminal cannot encode become question marks instead of errors.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "replace", line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )  # fmt: skip


class _Watched(io.RawIOBase):
    """The raw stream below the text layer."""

    def __init__(self, stream: io.TextIOWrapper, name: str) -> None:
        self._kept = stream  # closes the file when it is garbage collected
        self._raw: Any = getattr(stream.buffer, "raw", stream.buffer)
        self._stream = name
        self._lost = False

    @property
    def name(self) -> str:
        """Return the name that Python uses."""
        return f"<{self._stream}>"

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return bool(self._raw.isatty())

    def write(self, data: object) -> int | None:
        """Write, as `io.RawIOBase.write` does; raise OutputLostError at the first failure."""
        if self._lost:
            return memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written: int | None = self._raw.write(data)
            return written
        except OSError as error:
            self._lost = True
            raise OutputLostError(self._stream, error) from error
