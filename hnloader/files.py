"""Open regular files only, and write files that appear under their name when they are complete."""

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

# Suffix of temporary files, which no program reads.
TEMPORARY_SUFFIX = ".hnloader-part"
# Bytes that the page and the API keep free on a disk.
RESERVE = 512 << 20
# Start of the bytes in the webuis' first short hash.
LEGACY_OFFSET = 1 << 20
# Largest text beside files, in bytes.
LARGEST_TEXT = 16 << 20
NOT_REGULAR = "it is a pipe, a socket or a device"
# Without locks, a temporary file without changes for this long belongs to a program that was killed.
_ABANDONED_AFTER = 600.0  # seconds


def check_room(folder: Path, needed: int) -> None:
    """Raise HypernetworkError unless a folder's disk has room for `needed` bytes and `RESERVE` more.

    It limits work that others may request again and again. The folder may be missing. If the system does not report the
    free space, it is enough.
    """
    place = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), folder)
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return
    if free < needed + RESERVE:
        raise HypernetworkError(
            f"{folder}: the disk has {free >> 20:,} MiB free, but the job needs about {needed >> 20:,} MiB and keeps "
            f"{RESERVE >> 20} MiB free. Free some space, or use the command line, which has no such reserve."
        )


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path that a user gives, with `~` as the home folder; raise HypernetworkError if that is impossible."""
    if "\0" in os.fspath(path):
        raise HypernetworkError(f"{shown(os.fspath(path))}: found a NUL character. Remove it from the path.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HypernetworkError(f"{path}: this user has no home folder. Write the full path.") from error


def open_regular(path: str | os.PathLike[str], *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading. A pipe would wait for its writer, and a device may be endless.

    Raises:
        OSError: The path cannot be opened, holds a NUL, or leads to a folder, a pipe, a socket or a device.
    """
    return _open(path, "rb", buffering)


def read_regular(path: str | os.PathLike[str], largest: int = LARGEST_TEXT) -> bytes:
    """Return the content of a regular file of at most `largest` bytes; raise OSError for another."""
    with open_regular(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", os.fspath(path))
    return data


def open_to_append(path: Path) -> BinaryIO:
    """Open or make a regular file for appending; raise OSError as `open_regular` does."""
    return _open(path, "ab", -1)


def _open(path: str | os.PathLike[str], mode: str, buffering: int) -> BinaryIO:
    try:
        # Check first: a device and the writer of a pipe notice the opening. `lexists` keeps a missing file fast.
        if mode == "rb" or os.path.lexists(path):
            _check_regular(Path(path).stat(), os.fspath(path))
        return cast(BinaryIO, open(path, mode, buffering, opener=_opened_regular))
    except ValueError as error:  # a NUL in it
        raise OSError(errno.EINVAL, str(error), os.fspath(path).replace("\0", "\\0")) from error


def _opened_regular(path: str, flags: int) -> int:
    """Open for `open`, and check the open file, because the path may lead elsewhere by then."""
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
    """Return the sha256 of a file in hex, or raise OSError."""
    digest = hashlib.sha256()
    # One buffer for all pieces: new memory takes longer than reading into it.
    buffer = memoryview(bytearray(1 << 20))
    with open_regular(path, buffering=0) as file:
        while read := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:read])
    return digest.hexdigest()


def legacy_hash_of(file: BinaryIO) -> str:
    """Return the short hash of the webuis of 2022: 8 hex digits of the sha256 of 64 KiB at 1 MiB, or of nothing."""
    file.seek(LEGACY_OFFSET)
    return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def make_folder(folder: Path) -> None:
    """Make a folder and its parents if they are missing, or raise HypernetworkError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise HypernetworkError(f"{folder}: cannot write to the folder ({_reason(error)}). Choose another.") from error


def open_new(path: Path) -> BinaryIO:
    """Open a new file, or an empty temporary file of `replacing`, for writing; raises OSError.

    Unlike "wb" it does not truncate. On ext4 that looks like replacing an old file, and `close` waits for the disk.
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
    """Yield a temporary path beside `path`, and rename the file to `path` after the block.

    If the block fails, is interrupted, or the disk is full, the temporary file is removed and the old file stays.
    `remove_leftovers` removes the temporary files of killed programs.

    A file that replaces another keeps its permissions, and a new one follows the umask. Users who cannot read one of
    the `sources` can read neither the file nor the temporary file.

    Args:
        path: Path of the file.
        flush: Wait for the disk before the rename, so that a loss of power leaves no truncated file. Default: True.
        overwrite: Replace an existing file. Default: True. False raises an error, even if the file appears later.
        sources: The files whose content goes into this one. Default: none.

    Raises:
        ExistingFileError: `path` exists and `overwrite` is False.
        HypernetworkError: The folder is missing or not writable, the disk is full, or `path` is a pipe, a socket or a
            device.
    """
    with replacing_together({Path(path): sources}, flush=flush, overwrite=overwrite) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_together(
    sources: Mapping[Path, Iterable[str | os.PathLike[str]]], *, flush: bool = True, overwrite: bool = True
) -> Iterator[tuple[Path, ...]]:
    """Replace several files as `replacing` does: all of them, or none.

    The renames follow each other in the given order. If one fails, the earlier files are restored.

    Args:
        sources: Paths of the files, with the sources of each.
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
            raise _not_written(parts[0].target, error) from error


@dataclass(frozen=True)
class _Part:
    """A file of `replacing_together`: its path, its temporary file, and the status of the old file."""

    target: Path
    temporary: Path
    old: os.stat_result | None
    mode: int

    def finish(self, flush: bool) -> None:
        """Wait for the disk, and give the temporary file the owner and the permissions of the old file."""
        if flush:
            _flush(self.temporary)
        if self.old is not None:
            if hasattr(os, "chown"):
                with contextlib.suppress(OSError):  # only administrators can change the owner
                    os.chown(self.temporary, self.old.st_uid, self.old.st_gid)
            self.temporary.chmod(self.mode)


@contextlib.contextmanager
def _part(target: Path, withheld: int, overwrite: bool) -> Iterator[_Part]:
    try:
        if not overwrite:
            check_free(target)
        old = _old(target)
        mode = (0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777) & ~withheld
        # The owner can always write to the temporary file; the umask limits the others.
        temporary, handle = _create(target, (mode | 0o600) & 0o666)
    except (OSError, ValueError) as error:
        raise _not_written(target, error) from error
    try:
        with _kept_open(handle):
            yield _Part(target, temporary, old, mode)
    finally:
        # It was renamed; or removing it fails too, and the first error matters.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and rename it to `path` after the block.

    If the block fails or is interrupted, the temporary folder is removed.

    Raises:
        ExistingFileError: `path` exists.
        HypernetworkError: The folder cannot be made, or the disk is full.
    """
    check_free(path)
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        temporary.mkdir()
        try:
            yield temporary
            check_free(path)  # a rename would replace an empty folder
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, ValueError) as error:
        raise _not_written(path, error) from error


def copied(source: Path, target: Path) -> None:
    """Copy a file with its permissions and wait for the disk; raise OSError."""
    shutil.copy(source, target)
    _flush(target)


def check_free(path: Path) -> None:
    """Raise ExistingFileError if `path` exists, even as a broken link."""
    if os.path.lexists(path):
        raise _existing(path)


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return True if two paths lead to one file, by links or another spelling; False if one is missing."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False


def _not_written(target: Path, error: Exception) -> HypernetworkError:
    return HypernetworkError(f"{target}: cannot write the file ({_reason(error)}). Check the folder and the disk.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _existing(target: Path) -> ExistingFileError:
    return ExistingFileError(f"{target}: the file exists. Overwrite it or choose another name.")


def _old(target: Path) -> os.stat_result | None:
    """Return the status of the file at `target`, None if missing; raise OSError for a device such as `/dev/stdout`."""
    try:
        status = target.stat()
    except OSError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    _check_regular(status, os.fspath(target))
    return status


def _withheld(sources: Iterable[str | os.PathLike[str]]) -> int:
    """Return the permission bits of the group and of others, if they cannot read one of the sources."""
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
            # Unlike a rename, this fails if another file got the name.
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
    """Return a second, temporary name of the file at `target`, None if it is missing."""
    kept = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    if not os.path.lexists(target):
        return None
    try:
        os.link(target, kept)
    except (OSError, NotImplementedError):  # a file system without hard links
        shutil.copy2(target, kept)
    return kept


@contextlib.contextmanager
def file_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, so that one program at a time does the job.

    The file stays; the lock ends with the block or the program. Without file locks, nothing is held.

    Args:
        path: The lock file. Its folder is made if it is missing.
        refusal: Message if another program holds the lock.

    Raises:
        HypernetworkError: Another program holds the lock.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open_to_append(path))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HypernetworkError(refusal) from error
            except (OSError, ValueError):  # a read-only folder, a NUL, a file system without locks
                pass
        yield


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary files that killed programs left in these folders, and return their paths.

    Files of running programs stay. Missing and unreadable folders, and files that cannot be removed, are skipped.
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
    """Make a temporary file beside `target`, open and locked; the system drops the lock if the program is killed."""
    while True:
        temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
        # The system applies the umask; reading it means setting it, for all threads.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if fcntl is None:
            return temporary, handle
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Before the lock, another program may have removed the file as a leftover.
        if temporary.exists():
            return temporary, handle
        os.close(handle)


@contextlib.contextmanager
def _kept_open(handle: int) -> Iterator[None]:
    """Keep the file and its lock until the block ends."""
    if fcntl is None:
        os.close(handle)  # Windows does not rename open files
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
                path.unlink()  # with the lock held, so that no program can take it meanwhile
                return True
    if time.time() - path.stat().st_mtime < _ABANDONED_AFTER:
        return False
    path.unlink()
    return True


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())
