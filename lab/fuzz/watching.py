"""Notice what readers must never do: run code, start programs, write files, use much memory or time."""

from __future__ import annotations

import codecs
import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.fuzz import canary

# Readers import these codecs at their first use.
for _codec in ("raw_unicode_escape", "utf_8_sig"):
    codecs.lookup(_codec)

MAX_SECONDS = 10.0  # CPU time of one input; wall time would depend on what else the machine does
MAX_MEMORY = 256 << 20  # bytes that one input may add to the peak of the process
ADDRESS_SPACE = 3 << 30  # bytes after which allocations fail, so that one input cannot use up the machine

_FORBIDDEN = (
    "exec", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "marshal.loads", "ctypes.dlopen", "socket.connect", "os.remove", "os.rename", "os.mkdir", "shutil.rmtree",
)  # fmt: skip


class ForbiddenError(BaseException):
    """A reader broke a rule. A BaseException, so that `except Exception` cannot hide it."""


_watching = False
_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) <= set("rbtU")):
        # os.open passes flags instead of a mode.
        flags = arguments[2] if len(arguments) > 2 else 0
        if isinstance(flags, int) and flags & 0o3:
            raise ForbiddenError(f"{arguments[0]!r}: Opened for writing.")
    if event in _FORBIDDEN and not (event == "import" and str(arguments[0]) in sys.modules):
        raise ForbiddenError(f"{event} {arguments!r}"[:300])


@contextmanager
def watched() -> Iterator[None]:
    """Raise ForbiddenError for forbidden events in the block, and after it for time, memory and canary calls."""
    global _watching, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    before, called, began = peak(), canary.calls, time.process_time()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    if canary.calls != called:
        raise ForbiddenError("The canary was called.")
    if (seconds := time.process_time() - began) > MAX_SECONDS:
        raise ForbiddenError(f"The input took {seconds:.1f} s of CPU time; the limit is {MAX_SECONDS} s.")
    if peak() - before > MAX_MEMORY:
        raise ForbiddenError(f"The input took {(peak() - before) >> 20} MiB; the limit is {MAX_MEMORY >> 20} MiB.")


def peak() -> int:
    """Return the peak resident memory of the process in bytes."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    # Not on Linux, where this includes the peak of the parent process.
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size << 10


def limit_memory() -> None:
    """Make very large allocations fail in this process."""
    resource.setrlimit(
        resource.RLIMIT_AS, (ADDRESS_SPACE + _address_space(), resource.getrlimit(resource.RLIMIT_AS)[1])
    )


def _address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 1 << 40
