"""Running work in a child of this process, and having it killed or failed at a chosen moment.

A child is forked, so that everything is imported already and a trial takes milliseconds instead of seconds. Only POSIX
systems fork and kill like this.
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

# What of Python's audit events touches the file system, and which of their arguments are paths.
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
    # Not audited by Python; see `_audit_sync`.
    "os.fsync": 0,
}


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        how: "done", "killed", "error" (one of hnloader's, as it should be) or "bug" (any other exception).
        message: the error's text, or the traceback of a bug.
    """

    how: str
    message: str = ""


@dataclass
class Child:
    """A child under way."""

    pid: int
    said: Path

    def wait(self) -> Ending:
        """Wait until it ends."""
        _, status = os.waitpid(self.pid, 0)
        message = self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""
        self.said.unlink(missing_ok=True)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return Ending("killed" if number == signal.SIGKILL else "bug", f"signal {number} {message}".strip())
        return Ending({0: "done", CLEAN_ERROR: "error"}.get(os.WEXITSTATUS(status), "bug"), message)

    def kill_after(self, seconds: float) -> None:
        """Kill it as `kill -9` does, after so long."""
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)


def start(work: Callable[[], object], fault: Callable[[], object] = lambda: None) -> Child:
    """Start `work` in a child, in which `fault` was called before."""
    handle, name = tempfile.mkstemp(prefix="hnloader-faults-")
    os.close(handle)
    said = Path(name)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, said)
    code = BUG
    # Opened before the fault: it must not keep the child from saying what happened.
    with said.open("w", encoding="utf-8", errors="replace") as answer:
        try:
            os.setpgid(0, 0)
            _quiet()
            fault()
            work()
            code = 0
        except HypernetworkError as error:
            code = CLEAN_ERROR
            _say(answer, str(error))
        except BaseException:
            _say(answer, traceback.format_exc()[-3000:])
    os._exit(code)


def run(work: Callable[[], object], fault: Callable[[], object] = lambda: None) -> Ending:
    """Run `work` in a child to its end."""
    return start(work, fault).wait()


def _say(answer: object, text: str) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        answer.write(text)  # type: ignore[attr-defined]
        answer.flush()  # type: ignore[attr-defined]
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
    """Be killed before that file operation."""
    at_event(number, folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fail_at(number: int, folder: Path, code: int) -> None:
    """Have that file operation fail."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    at_event(number, folder, fail)


def count_events(work: Callable[[], object], folder: Path) -> int:
    """How many file operations below `folder` the work has; it is done, in a child."""
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
        raise AssertionError(f"the undisturbed work ended with {ending}")
    return count


def small_disk(size: int) -> None:
    """No file may grow beyond `size` bytes: what the kernel answers is as final as a full disk's answer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def small_memory(extra: int) -> None:
    """No more than `extra` bytes of address space beyond what is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def all_memory() -> None:
    """As much as there was before `small_memory`."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)


def obey_permissions() -> None:
    """Make file permissions count for root as well: give up the capability to pass over them."""
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
    """Numbers below `items`: all of them, or `at_most` drawn at random."""
    if items <= at_most:
        return list(range(items))
    return sorted(random.Random(seed).sample(range(items), at_most))
