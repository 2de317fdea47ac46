"""Run work in a child process and kill it, or make it fail, at a chosen moment.

Forked children need no imports, so a trial takes milliseconds instead of seconds. This requires a POSIX system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hnloader.errors import HypernetworkError

CLEAN_ERROR = 3
BUG = 70

# Audit events of file operations, with the number of leading arguments that are paths.
_FILE_EVENTS = {
    "open": 1,
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.scandir": 1,
    "os.listdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.utime": 1,
    "shutil.copyfile": 2,
    "fcntl.flock": 0,
    # Python does not audit it; see `_audit_sync`.
    "os.fsync": 0,
}


@dataclass(frozen=True)
class Ending:
    """The end of a child process.

    Attributes:
        how: "done", "killed", "error" (a HypernetworkError, as expected) or "bug" (any other exception).
        message: Text of the error, or traceback of the bug.
    """

    how: str
    message: str = ""


@dataclass
class Child:
    """A running child process; `output` is the file for its error."""

    pid: int
    output: Path

    def wait(self) -> Ending:
        """Wait until it ends."""
        _, status = os.waitpid(self.pid, 0)
        message = self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""
        self.output.unlink(missing_ok=True)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return Ending("killed" if number == signal.SIGKILL else "bug", f"signal {number} {message}".strip())
        return Ending({0: "done", CLEAN_ERROR: "error"}.get(os.WEXITSTATUS(status), "bug"), message)

    def kill_after(self, seconds: float) -> None:
        """Kill it with SIGKILL after `seconds`."""
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)


def start(work: Callable[[], object], fault: Callable[[], object] = lambda: None) -> Child:
    """Start a child that calls `fault` and then `work`."""
    handle, name = tempfile.mkstemp(prefix="hnloader-faults-")
    os.close(handle)
    output = Path(name)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, output)
    code = BUG
    # Opened before the fault, which must not prevent the report.
    with output.open("w", encoding="utf-8", errors="replace") as report:
        try:
            os.setpgid(0, 0)
            _quiet()
            fault()
            work()
            code = 0
        except HypernetworkError as error:
            code = CLEAN_ERROR
            _write(report, str(error))
        except BaseException:
            _write(report, traceback.format_exc()[-3000:])
    os._exit(code)


def run(work: Callable[[], object], fault: Callable[[], object] = lambda: None) -> Ending:
    """Run `fault` and `work` in a child and wait for its end."""
    return start(work, fault).wait()


def _write(report: object, text: str) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        report.write(text)  # type: ignore[attr-defined]
        report.flush()  # type: ignore[attr-defined]
    except OSError:
        pass


def _quiet() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (1, 2):
        os.dup2(nothing, handle)


# -- faults: each is called in the child before the work


def at_event(number: int, folder: Path, act: Callable[[], None]) -> None:
    """Call `act` right before the `number`-th file operation below `folder`, counted from 0."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if _concerns(event, arguments, folder):
            seen += 1
            if seen - 1 == number:
                act()

    _audit_sync()
    sys.addaudithook(hook)


def _concerns(event: str, arguments: tuple[object, ...], folder: Path) -> bool:
    count = _FILE_EVENTS.get(event)
    if not count:
        return count == 0
    named = [os.fsdecode(each) + os.sep for each in arguments[:count] if isinstance(each, (str, bytes, os.PathLike))]
    return any(f"{folder}{os.sep}" in name for name in named)


def _audit_sync() -> None:
    original = os.fsync

    def fsync(handle: int) -> None:
        sys.audit("os.fsync", handle)
        original(handle)

    os.fsync = fsync  # type: ignore[assignment]


def kill_at(number: int, folder: Path) -> None:
    """Kill the process before a file operation."""
    at_event(number, folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fail_at(number: int, folder: Path, code: int) -> None:
    """Make a file operation fail."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    at_event(number, folder, fail)


def count_events(work: Callable[[], object], folder: Path) -> int:
    """Run the work in a child and return the number of its file operations below `folder`."""
    handle, name = tempfile.mkstemp(prefix="hnloader-faults-")
    log = os.open(name, os.O_WRONLY | os.O_APPEND)

    def fault() -> None:
        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if _concerns(event, arguments, folder):
                os.write(log, b".")

        _audit_sync()
        sys.addaudithook(hook)

    ending = run(work, fault)
    count = Path(name).stat().st_size
    os.close(handle)
    os.close(log)
    Path(name).unlink()
    if ending.how != "done":
        raise AssertionError(f"The undisturbed work ended with {ending}.")
    return count


def small_disk(size: int) -> None:
    """Limit files to `size` bytes; the kernel then fails writes as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def small_memory(extra: int) -> None:
    """Limit the address space to `extra` bytes more than its current size."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def all_memory() -> None:
    """Undo `small_memory`."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)


def obey_permissions() -> None:
    """Drop the capabilities with which root ignores file permissions."""
    if os.geteuid() != 0:
        return

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    if libc.capget(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for each in data:
        each.effective &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    if libc.capset(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)


def some(items: int, at_most: int, seed: int) -> list[int]:
    """Return all numbers below `items`, or `at_most` random ones."""
    if items <= at_most:
        return list(range(items))
    return sorted(random.Random(seed).sample(range(items), at_most))
