"""Plan a conversion of many files: find the sources, and give each a target. Only `accepts` opens files."""

from __future__ import annotations

import fnmatch
import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from hnloader.conversion.results import Result
from hnloader.errors import HypernetworkError
from hnloader.files import expanded
from hnloader.folders import Entry, walk
from hnloader.formats.registry import suffixes

__all__ = ["Job", "Plan", "folded", "numbered", "plan"]


@dataclass(frozen=True)
class Job:
    """One file to convert."""

    source: Path
    target: Path
    label: str  # name of the source in output
    size: int
    note: str = ""  # the reason for a target with another name than its source
    sibling: Path | None = None  # a source of the same stem, which may hold the same


@dataclass(frozen=True)
class Plan:
    """The files to convert, in order, and results of files that need no work."""

    jobs: tuple[Job, ...]
    settled: tuple[Result, ...]

    @property
    def size(self) -> int:
        """Size of all sources in bytes."""
        return sum(job.size for job in self.jobs)


def plan(
    paths: Iterable[str | os.PathLike[str]],
    *,
    suffix: str,
    sources: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    flat: bool = False,
    exclude: Iterable[str] = (),
    rewrites: bool = False,
    accepts: Callable[[Path], bool] = lambda path: True,
) -> Plan:
    """Find the files to convert and give each a target.

    Args:
        paths: Files, folders and patterns such as `old/*.pt` or `old/**/*.pt`. Folders include their subfolders and
            links; each folder is entered once.
        suffix: End of the targets: ".safetensors", ".pt", "-lora.safetensors".
        sources: Suffixes of files to take from folders, in lower case. Files that `paths` names are taken anyway.
            Default: formats with weights.
        out: Folder for the targets, or the target of a single source if it ends in `suffix`. It mirrors the tree of a
            single folder in `paths`; with several paths, folders keep their names. Default: beside each source.
        flat: Write all targets into `out` itself. Files of one name get the names of their folders. Default: False.
        exclude: Patterns of names, or of paths below a folder, of files and folders to skip. Default: none.
        rewrites: Without `out`, convert sources that already end in `suffix` too. Default: False.
        accepts: Returns whether to take a file with one of the suffixes from a folder. Default: every file.

    Returns:
        The plan. It does not depend on the order of `paths`. No two targets are equal, even on a file system that
        ignores case.

    Raises:
        HypernetworkError: `out` is a file, or one file for several sources.
    """
    folder, single = _output(out, suffix)
    endings = tuple(sources) or suffixes(weights_only=True)

    def wanted(path: Path) -> bool:
        return path.suffix.lower() in endings and accepts(path)

    found, settled = _find(list(map(Path, paths)), wanted, folder, tuple(exclude))
    found.sort(key=lambda one: (one.relative.as_posix(), str(one.path)))
    if single is not None and len(found) > 1:
        raise HypernetworkError(f"{single}: this is one file, for {len(found):,} sources. Name a folder.")
    targets = _targets(found, suffix, folder, single, flat)
    if folder is None and single is None and not rewrites:
        found, targets, finished = _without_finished(found, targets, suffix)
        settled += finished
    stems = {(one.path.parent, one.path.stem): one.path for one in reversed(found)}  # the first one stays
    jobs = []
    for one, (target, note) in zip(found, targets, strict=True):
        sibling = stems[one.path.parent, one.path.stem]
        jobs.append(Job(one.path, target, one.label, one.size, note, sibling if note and sibling != one.path else None))
    return Plan(tuple(jobs), tuple(settled))


def numbered(path: Path) -> Iterator[Path]:
    """Yield `ink-2.safetensors`, `ink-3.safetensors`, ... for `ink.safetensors`."""
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def folded(name: str) -> str:
    """Return one spelling of names that some file systems take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _output(out: str | os.PathLike[str] | None, suffix: str) -> tuple[Path | None, Path | None]:
    """Return `out` as a folder or as a single file."""
    if out is None:
        return None, None
    path = expanded(out)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for names that are too long)
        return path, None
    ending = PurePath("x" + suffix).suffix
    if path.suffix.lower() == ending:
        return None, path
    if os.path.lexists(path):
        raise HypernetworkError(f"{path}: this is a file. Name a folder, or a file that ends in {ending}.")
    for parent in path.parents:
        if os.path.lexists(parent) and not os.path.isdir(parent):  # noqa: PTH112
            raise HypernetworkError(f"{path}: cannot be a folder, because {parent} is a file. Name another folder.")
    return path, None


# -- finding


@dataclass(frozen=True)
class _Source:
    path: Path
    relative: PurePath
    label: str
    size: int


def _find(
    paths: Sequence[Path], wanted: Callable[[Path], bool], out: Path | None, exclude: tuple[str, ...]
) -> tuple[list[_Source], list[Result]]:
    """Return every file once, and results of paths that are something else."""
    found: dict[str, _Source] = {}
    settled: dict[str, Result] = {}
    every = [part for path in paths for part in _expand(path)]
    for path in every:
        if os.path.isdir(path):  # noqa: PTH112 (see _output)
            below = PurePath() if len(every) == 1 else PurePath(path.resolve().name)
            taken = _in_folder(path, below, wanted, out, exclude)
        else:
            taken = iter([_file(path)])
        for one in taken:
            if isinstance(one, Result):
                settled.setdefault(os.path.abspath(one.source), one)  # noqa: PTH100 (resolve would follow links)
            else:
                name = os.path.abspath(one.path)  # noqa: PTH100
                # A named file below a named folder keeps its place in the tree.
                found[name] = max(found.get(name, one), one, key=lambda found: len(found.relative.parts))
    return list(found.values()), [result for name, result in settled.items() if name not in found]


def _expand(path: Path) -> list[Path]:
    """Return the files of a pattern. A path that exists is itself, even with brackets."""
    try:
        path = path.expanduser()
    except RuntimeError:  # a user without a home folder; the file will be missing
        return [path]
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    if "**" not in path.parts:
        return sorted(map(Path, glob.glob(str(path)))) or [path]  # noqa: PTH207 (Path.glob lacks ~ and \)
    first = path.parts.index("**")
    start, rest = Path(*path.parts[:first]), path.parts[first:]
    folders = [folder for folder in _expand(start) if os.path.isdir(folder)]  # noqa: PTH112 (see _output)
    # glob would follow loops of links forever.
    return sorted(e.path for folder in folders for e in walk(folder) if _matches(e.relative.parts, rest)) or [path]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Match a path below a folder as `glob` does: `**` is any folders, and hidden names need a dot."""
    if not pattern:
        return not parts
    if pattern[0] == "**" and _matches(parts, pattern[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _file(path: Path) -> _Source | Result:
    if problem := _problem(path):
        return _failed(path, f"{path}: {problem}")
    return _Source(path, PurePath(path.name), str(path), path.stat().st_size)


def _problem(path: Path) -> str:
    """Return the reason why a named path cannot be used, or ""."""
    try:
        if path.is_file():
            return ""
        if path.is_symlink():
            return "the link is broken or circular. Check the path."
        if path.exists():
            return "found a pipe, socket or device. Name a file."
        if glob.has_magic(str(path)):
            return "no file matches this pattern. Check the pattern."
        return "the file does not exist. Check the path."
    except (OSError, ValueError) as error:
        return f"cannot open the file ({getattr(error, 'strerror', None) or error})."


def _in_folder(
    folder: Path, below: PurePath, wanted: Callable[[Path], bool], out: Path | None, exclude: tuple[str, ...]
) -> Iterator[_Source | Result]:
    """Yield the wanted files below `folder`, and results of similar entries."""
    for entry in walk(folder, _exclusion(folder, out, exclude)):
        if entry.kind == "unreadable folder":
            yield _failed(entry.path, f"{entry.path}: cannot read the folder ({entry.reason}).")
        elif not wanted(entry.path):
            continue
        elif entry.kind == "file" and not entry.relative.name.startswith("._"):
            yield _Source(entry.path, below / entry.relative, str(entry.path), _size(entry))
        elif entry.kind == "broken link":
            yield _failed(entry.path, f"{entry.path}: the link is broken ({entry.reason}).")
        else:
            reason = {
                "folder": "a folder; the files in it are converted",
                "special": "a pipe, socket or device",
                "file": "notes of macOS about another file",
            }[entry.kind]
            yield Result(entry.path, str(entry.path), "skipped", reason=f"{entry.path}: {reason}")


def _failed(path: Path, reason: str) -> Result:
    return Result(path, str(path), "failed", reason=reason, error=HypernetworkError.__name__)


def _size(entry: Entry) -> int:
    try:
        return entry.path.stat().st_size
    except OSError:  # deleted meanwhile; opening it will fail
        return 0


def _exclusion(folder: Path, out: Path | None, exclude: tuple[str, ...]) -> Callable[[PurePath], bool]:
    """Return a filter for the patterns and for the folder of the results."""
    own: PurePath | None = None
    if out is not None:
        resolved, target = folder.resolve(), out.resolve()
        own = target.relative_to(resolved) if target.is_relative_to(resolved) else None
    patterns = [folded(pattern.rstrip("/\\")) for pattern in exclude]

    def matches(relative: PurePath) -> bool:
        names = (folded(relative.name), folded(relative.as_posix()))
        return relative == own or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return matches


# -- targets


def _targets(
    found: Sequence[_Source], suffix: str, out: Path | None, single: Path | None, flat: bool
) -> list[tuple[Path, str]]:
    """Return the target of each file, and the reason for another name than that of the source."""
    if single is not None:
        return [(single, "") for _ in found]
    if out is None:
        return _unique([(one.path.with_name(one.path.stem + suffix), "") for one in found], str)
    if flat:
        wanted = _flat(found, suffix, out)
    else:
        wanted = [(out / one.relative.with_name(one.relative.stem + suffix), "") for one in found]
    return _unique(wanted, lambda target: folded(str(target)))


def _flat(found: Sequence[_Source], suffix: str, out: Path) -> list[tuple[Path, str]]:
    """Return targets in one folder. All files of one name get the names of their folders.

    Even the first one does, so names stay when files are added.
    """
    count = Counter(folded(one.relative.stem) for one in found)
    targets = []
    for one in found:
        name, note = one.relative.stem, ""
        if len(one.relative.parts) > 1 and count[folded(name)] > 1:
            name = "-".join((*one.relative.parts[:-1], name))
            note = "named with its folder, because others have the same name"
        targets.append((out / f"{name}{suffix}", note))
    return targets


def _unique(wanted: Sequence[tuple[Path, str]], key: Callable[[Path], str]) -> list[tuple[Path, str]]:
    """Add a number to the second and later targets of one name (`ink-2`). Targets with one `key` share a name."""
    taken: dict[str, Path] = {}
    reserved = {key(target) for target, _ in wanted}
    result = []
    for target, note in wanted:
        first = taken.get(key(target))
        if first is not None:
            same = first.name == target.name
            note = f"numbered, because {first.name} {'is taken' if same else 'differs only in upper and lower case'}"
            target = next(one for one in numbered(target) if key(one) not in taken and key(one) not in reserved)
        taken[key(target)] = target
        result.append((target, note))
    return result


def _without_finished(
    found: list[_Source], targets: list[tuple[Path, str]], suffix: str
) -> tuple[list[_Source], list[tuple[Path, str]], list[Result]]:
    """Drop sources that have the suffix, with a result unless they are the target of another source."""
    made = {str(target) for one, (target, _) in zip(found, targets, strict=True) if target != one.path}
    kept, results = [], []
    for one, target in zip(found, targets, strict=True):
        if one.path.suffix.lower() != suffix:
            kept.append((one, target))
        elif str(one.path) not in made:
            reason = f"{one.label}: already ends in {suffix}"
            results.append(Result(one.path, one.label, "skipped", reason=reason, size=one.size))
    return [one for one, _ in kept], [target for _, target in kept], results
