"""Writing files so that a half-written one is never seen under its final name, and what is asked of any file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from hnloader.errors import ExistingFileError, HypernetworkError
from hnloader.texts import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Files with this ending are ours, and no program reads them as anything.
TEMPORARY_SUFFIX = ".hnloader-part"
# Bytes that the page and the API leave free on a disk.
RESERVE = 512 << 20
# Where the bytes of the webuis' first short hash begin.
LEGACY_OFFSET = 1 << 20
# Bytes of a text that people or programs keep beside files; a larger one is something else.
LARGEST_TEXT = 16 << 20
# What `open_regular` says of anything but a file.
NOT_REGULAR = "it is a pipe, a socket or a device"
# Where locks do not work, a temporary file that was not written to for this long belongs to no running program.
_ABANDONED_AFTER = 600.0  # seconds


def check_room(folder: Path, needed: int) -> None:
    """Raise HypernetworkError unless `needed` bytes find room in a folder and `RESERVE` bytes stay free after them.

    For work that others may ask for again and again. The folder need not be there yet; where the system does not tell
    how much is free, nothing is refused.
    """
    place = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), folder)
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return
    if free < needed + RESERVE:
        raise HypernetworkError(
            f"the disk of {folder} has {free >> 20:,} MiB free; about {needed >> 20:,} MiB are needed, and "
            f"{RESERVE >> 20} MiB are to stay free. Make room, or use the command line, which takes all there is."
        )


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user names, with `~` as the home folder.

    Raises:
        HypernetworkError: It names a user without a home folder, or holds a NUL.
    """
    if "\0" in os.fspath(path):
        raise HypernetworkError(f"{shown(os.fspath(path))} cannot be opened: it holds a NUL character. Take it out.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HypernetworkError(f"{path} names a user who has no home folder here") from error


def open_regular(path: str | os.PathLike[str], *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading, and nothing else: a pipe waits for its writer, and a device may have no end.

    All that lies beside a user's file or in a folder is opened by this.

    Raises:
        OSError: The path cannot be opened, holds a NUL, or leads to a folder, a pipe, a socket or a device.
    """
    return _open(path, "rb", buffering)


def read_regular(path: str | os.PathLike[str], largest: int = LARGEST_TEXT) -> bytes:
    """Return all of a regular file that has at most `largest` bytes; raise OSError for any other."""
    with open_regular(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", os.fspath(path))
    return data


def lock_file(path: Path) -> BinaryIO:
    """Open a lock file for appending, which makes it where it is missing; raise OSError as `open_regular` does."""
    return _open(path, "ab", -1)


def _open(path: str | os.PathLike[str], mode: str, buffering: int) -> BinaryIO:
    try:
        # A device, and who writes into a pipe, would notice the opening; that of a missing file takes longer.
        if mode == "rb" or os.path.lexists(path):
            _check_regular(Path(path).stat(), os.fspath(path))
        return cast(BinaryIO, open(path, mode, buffering, opener=_opened_regular))
    except ValueError as error:  # a NUL in it
        raise OSError(errno.EINVAL, str(error), os.fspath(path).replace("\0", "\\0")) from error


def _opened_regular(path: str, flags: int) -> int:
    """An opener for `open`. What it opened is looked at, as the path may lead elsewhere by then."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0), 0o666)
    try:
        _check_regular(os.fstat(handle), path)
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """sha256 of a whole file in hex, read in pieces. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    # One buffer for all pieces: to get new memory from the system takes longer than to read into it.
    buffer = memoryview(bytearray(1 << 20))
    with open_regular(path, buffering=0) as file:
        while read := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:read])
    return digest.hexdigest()


def legacy_hash_of(file: BinaryIO) -> str:
    """The 8 hex digits that the webuis of 2022 showed: of the sha256 of 64 KiB at 1 MiB, or of nothing."""
    file.seek(LEGACY_OFFSET)
    return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is missing. Raises HypernetworkError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise HypernetworkError(f"cannot write into {folder}: {getattr(error, 'strerror', None) or error}") from error


def open_new(path: Path) -> BinaryIO:
    """Open for writing what is new or, as a temporary file of `replacing`, empty; raises OSError.

    It is not cut off to no length, as "wb" would do: ext4 takes that as a sign that an old file is being replaced, and
    lets `close` wait until all data are on their way to the disk.
    """
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o666))


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str],
    *,
    flush: bool = True,
    overwrite: bool = True,
    sources: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it takes the name `path`.

    The temporary file is in the same folder, so that the rename is atomic. When the block fails, is
    interrupted, or the disk is full, the temporary file is removed and whatever stood at `path` is untouched.
    What is left after a program was killed, `remove_leftovers` removes.

    A file that replaces another keeps its permissions; those of a new one follow the umask. Those who cannot read one
    of the `sources` cannot read the file either, nor the temporary one.

    Args:
        path: Where the file is to stand.
        flush: Wait until the disk has all of it before it takes its name, so that a loss of power leaves no file cut
            off under that name. Without, it is as safe as what `cp` writes.
        overwrite: Replace what stands at `path`; False raises an error instead, also where it appears meanwhile.
        sources: The files whose contents go into this one.

    Raises:
        ExistingFileError: `path` exists and is to stay.
        HypernetworkError: The folder is missing or not writable, the disk is full, or a pipe, a socket or a device
            stands at `path`.
    """
    with replacing_together({Path(path): sources}, flush=flush, overwrite=overwrite) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_together(
    sources: Mapping[Path, Iterable[str | os.PathLike[str]]], *, flush: bool = True, overwrite: bool = True
) -> Iterator[tuple[Path, ...]]:
    """Do what `replacing` does for files that belong together: all of them take their names, or none does.

    They take them one right after the other, in the order given. Where one cannot, those before get back what stood
    there.

    Args:
        sources: The files to write, with the sources of each.
        flush: See `replacing`.
        overwrite: See `replacing`.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_part(path, _withheld(given), overwrite)) for path, given in sources.items()]
        try:
            yield tuple(part.temporary for part in parts)
            for part in parts:
                part.finish(flush)
            _take_names(parts, overwrite)
        except OSError as error:
            raise HypernetworkError(f"cannot write {parts[0].target}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Part:
    """A file of `replacing_together`: the path of its temporary file, and what stood at its target before."""

    target: Path
    temporary: Path
    old: os.stat_result | None
    mode: int

    def finish(self, flush: bool) -> None:
        """Give the temporary file the owner and the permissions of the old one, and wait for the disk."""
        if flush:
            _flush(self.temporary)
        if self.old is not None:
            if hasattr(os, "chown"):
                with contextlib.suppress(OSError):  # only a system's administrator may give files away
                    os.chown(self.temporary, self.old.st_uid, self.old.st_gid)
            self.temporary.chmod(self.mode)


@contextlib.contextmanager
def _part(target: Path, withheld: int, overwrite: bool) -> Iterator[_Part]:
    try:
        if not overwrite:
            check_free(target)
        old = _old(target)
        mode = (0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777) & ~withheld
        # The owner can always write to the temporary file; the umask narrows it for the others.
        temporary, handle = _create(target, (mode | 0o600) & 0o666)
    except (OSError, ValueError) as error:
        raise HypernetworkError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error
    try:
        with _kept_open(handle):
            yield _Part(target, temporary, old, mode)
    finally:
        # Gone under its final name; or the disk refuses even this, and what went wrong before is to be told.
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_free(path: Path) -> None:
    """Raise ExistingFileError where something stands at `path`, a link that leads nowhere included."""
    if os.path.lexists(path):
        raise _existing(path)


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether two paths lead to one file, by links or by another spelling; False where one is missing."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _existing(target: Path) -> ExistingFileError:
    return ExistingFileError(f"{target} exists. Overwrite it or choose another name.")


def _old(target: Path) -> os.stat_result | None:
    """Return what the system says of the file at `target`; None where there is none.

    Raises:
        OSError: A pipe, a socket or a device stands there: `/dev/stdout` would become a file.
    """
    try:
        status = target.stat()
    except OSError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    _check_regular(status, os.fspath(target))
    return status


def _withheld(sources: Iterable[str | os.PathLike[str]]) -> int:
    """All permission bits of the group, and of the others, where they cannot read one of the sources."""
    bits = 0
    for source in sources:
        with contextlib.suppress(OSError):
            mode = Path(source).stat().st_mode
            bits |= sum(each for each in (0o070, 0o007) if not mode & each & 0o444)
    return bits


def _take_names(parts: Sequence[_Part], overwrite: bool) -> None:
    kept: list[Path | None] = []
    done: list[_Part] = []
    try:
        for part in parts:
            kept.append(_kept(part.target) if len(parts) > 1 and overwrite else None)
            _take_name(part, overwrite)
            done.append(part)
    except BaseException:
        for part, old in zip(done, kept, strict=False):
            with contextlib.suppress(OSError):
                part.target.unlink() if old is None else old.replace(part.target)
        raise
    finally:
        for old in filter(None, kept):
            with contextlib.suppress(OSError):
                old.unlink(missing_ok=True)


def _take_name(part: _Part, overwrite: bool) -> None:
    if not overwrite:
        try:
            # Unlike a rename, this fails where the name was given to another file meanwhile.
            os.link(part.temporary, part.target)
        except FileExistsError as error:
            raise _existing(part.target) from error
        except (OSError, NotImplementedError) as error:  # a file system without hard links
            if os.path.lexists(part.target):
                raise _existing(part.target) from error
        else:
            return
    part.temporary.replace(part.target)


def _kept(target: Path) -> Path | None:
    """The file at `target` under a second, temporary name; None where there is none or no name can be given."""
    kept = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    if not os.path.lexists(target):
        return None
    try:
        os.link(target, kept)
    except (OSError, NotImplementedError):  # a file system without hard links
        shutil.copy2(target, kept)
    return kept


@contextlib.contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, so that one program at a time does what it stands for.

    The file stays; the lock ends with the block or with the program, however that ends. Where the file cannot be
    made or the file system has no locks, nothing is held.

    Args:
        path: the lock file; its folder is made where it is missing.
        refusal: what the error says when another program holds it.

    Raises:
        HypernetworkError: another program holds it.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(lock_file(path))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HypernetworkError(refusal) from error
            except (OSError, ValueError):  # a folder that cannot be written, a NUL, a file system without locks
                pass
        yield


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary files of `replacing` that killed programs left in these folders (not below them).

    Files that a running program writes at this moment stay. Folders that are missing or not readable are
    passed over, as are files that cannot be removed.

    Returns:
        What was removed.
    """
    removed = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
            leftovers = [Path(entry.path) for entry in entries if entry.name.endswith(TEMPORARY_SUFFIX)]
            for path in leftovers:
                with contextlib.suppress(OSError):
                    if _removed_unless_in_use(path):
                        removed.append(path)
    return removed


def _create(target: Path, mode: int) -> tuple[Path, int]:
    """A new temporary file beside `target`, open and locked: the system drops the lock however the program ends."""
    while True:
        temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
        # The system applies the umask: asking for it means setting it, for all threads of the program.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if fcntl is None:
            return temporary, handle
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Before the lock was there, another program may have taken it for a leftover and removed it.
        if temporary.exists():
            return temporary, handle
        os.close(handle)


@contextlib.contextmanager
def _kept_open(handle: int) -> Iterator[None]:
    """Keep the file, and with it the lock, until the end."""
    if fcntl is None:
        os.close(handle)  # Windows renames no open file
        yield
        return
    try:
        yield
    finally:
        os.close(handle)


def _removed_unless_in_use(path: Path) -> bool:
    if fcntl is not None:
        with open_regular(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks
                pass
            else:
                path.unlink()  # with the lock held, so that nobody begins to write to it in between
                return True
    if time.time() - path.stat().st_mtime < _ABANDONED_AFTER:
        return False
    path.unlink()
    return True


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())
