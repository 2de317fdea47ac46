"""Standard output and standard error of the command: closed ones, readers that have left, and full disks.

Between a write and the command lie typer, click and rich, each of which makes something else of a stream that fails: an
exit code of its own, a traceback, silence. So the streams raise `OutputLostError`, which none of them catches.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import IO, Any

# What a shell reports of a program that SIGPIPE ended: 128 + 13.
READER_LEFT = 141
_FAILED = 1
# Windows says of a pipe without a reader that the argument is wrong.
_LEFT = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)
_NAMES = {"stdin": 0, "stdout": 1, "stderr": 2}
_IN_WORDS = {"stdout": "standard output", "stderr": "standard error"}


class OutputLostError(BaseException):
    """A stream takes nothing more. No `Exception`, so that nothing between the stream and `run` handles it.

    Attributes:
        stream: "stdout" or "stderr".
        error: What the system says.
    """

    def __init__(self, stream: str, error: OSError) -> None:
        super().__init__(stream, error)
        self.stream = stream
        self.error = error

    def end(self) -> int:
        """Return the exit code; say what happened unless the reader has left, as `head` does."""
        if self.error.errno in _LEFT:
            return READER_LEFT
        if self.stream != "stderr":
            reason = "the disk is full" if self.error.errno == errno.ENOSPC else self.error.strerror or "it failed"
            with contextlib.suppress(OutputLostError, OSError):
                print(f"Error: {_IN_WORDS[self.stream]} cannot be written: {reason}.", file=sys.stderr, flush=True)
        return _FAILED


def watch() -> None:
    """Have stdout and stderr raise `OutputLostError`, once; what comes after is dropped.

    A stream that was closed from the start becomes the null device, so that no file that the command opens takes its
    number and receives what is written to it.
    """
    for name, number in _NAMES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, _null(number, "r" if name == "stdin" else "w"))
    for name in _IN_WORDS:
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _watched(stream, name))


def flush() -> None:
    """Write what waits, now: at the exit of Python an error has neither a message nor a code of ours."""
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
    # A terminal that cannot show a letter shows a question mark instead of stopping the command.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "replace", line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )  # fmt: skip


class _Watched(io.RawIOBase):
    """The bytes on their way to the system."""

    def __init__(self, stream: io.TextIOWrapper, name: str) -> None:
        self._kept = stream  # which would close the file when nobody has it
        self._raw: Any = getattr(stream.buffer, "raw", stream.buffer)
        self._stream = name
        self._lost = False

    @property
    def name(self) -> str:
        """As Python calls it."""
        return f"<{self._stream}>"

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the number of the stream."""
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
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
