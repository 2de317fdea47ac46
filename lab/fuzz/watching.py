"""Notices what no reader may do: run something, start a program, write a file, take much memory."""

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

# The files of the corpus name the canary by a short name of its own.
sys.modules["fuzz.canary"] = canary

# Readers import these at their first use.
for _codec in ("raw_unicode_escape", "utf_8_sig"):
    codecs.lookup(_codec)

# Seconds of CPU time that one input may take. Not of the clock: the machine may have more to do.
MAX_SECONDS = 10.0
# What one input may add to the process's peak. Inputs have a few kilobytes.
MAX_MEMORY = 256 << 20
# Beyond this, asking for memory fails in the fuzzer's process, so that one input cannot take the machine's.
ADDRESS_SPACE = 3 << 30

_FORBIDDEN = (
    "exec", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "marshal.loads", "ctypes.dlopen", "socket.connect", "os.remove", "os.rename", "os.mkdir", "shutil.rmtree",
)  # fmt: skip


class ForbiddenError(BaseException):
    """A reader did what it may not; a BaseException, so that no `except Exception` hides it."""


_watching = False
_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) <= set("rbtU")):
        # Opened by os.open, which gives no mode: what counts are the flags.
        flags = arguments[2] if len(arguments) > 2 else 0
        if isinstance(flags, int) and flags & 0o3:
            raise ForbiddenError(f"a file was opened for writing: {arguments[0]!r}")
    if event in _FORBIDDEN and not (event == "import" and str(arguments[0]) in sys.modules):
        raise ForbiddenError(f"{event} {arguments!r}"[:300])


@contextmanager
def watched() -> Iterator[None]:
    """While the block runs, raise ForbiddenError for what no reader may do; after it, for time, memory, canary."""
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
        raise ForbiddenError("the canary was called")
    if (seconds := time.process_time() - began) > MAX_SECONDS:
        raise ForbiddenError(f"{seconds:.1f} s of CPU time were taken")
    if peak() - before > MAX_MEMORY:
        raise ForbiddenError(f"{(peak() - before) >> 20} MiB were taken")


def peak() -> int:
    """The process's largest resident memory so far, in bytes."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open(encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    # Not Linux, where this would begin with what the process had that started this one.
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size << 10


def limit_memory() -> None:
    """Have requests for very much memory fail in this process."""
    resource.setrlimit(
        resource.RLIMIT_AS, (ADDRESS_SPACE + _address_space(), resource.getrlimit(resource.RLIMIT_AS)[1])
    )


def _address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 1 << 40
