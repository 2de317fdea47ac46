"""Which files a conversion of many takes, and where each result goes. Nothing is opened and nothing written."""

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


@dataclass(frozen=True)
class Job:
    """One file to convert.

    Attributes:
        source: the file.
        target: the file to write; its folder need not be there yet.
        label: what output calls the source.
        size: bytes of the source.
        note: why the target is called otherwise than the source; "" where it is not.
        sibling: a file of the same name with another suffix, which is converted too and may hold the same.
    """

    source: Path
    target: Path
    label: str
    size: int
    note: str = ""
    sibling: Path | None = None


@dataclass(frozen=True)
class Plan:
    """The files to convert, in their order, and what is known about others already."""

    jobs: tuple[Job, ...]
    settled: tuple[Result, ...]

    @property
    def size(self) -> int:
        """Bytes of all sources."""
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
) -> Plan:
    """Find the files to convert and give each its target.

    Args:
        paths: files, folders (with all that is below them; links are followed, each folder entered once) and
            patterns such as `old/*.pt` or `old/**/*.pt`, which are for shells that leave them to the program.
        suffix: how targets end: ".safetensors", ".pt", "-lora.safetensors".
        sources: which files in folders are looked at, by their suffix in lower case; by default formats with weights.
            Files that are named themselves are all taken.
        out: the folder for the targets, or the one target when it ends in `suffix`; by default each target lies
            beside its source. With one folder in `paths`, its tree is made anew below `out`; with several paths,
            folders keep their own names below it.
        flat: no folders below `out`. Files of the same name are told apart by their folders' names.
        exclude: patterns on names, or on paths below a folder, of files and folders to leave out.
        rewrites: a source that has the suffix of targets is converted as well where no `out` is given.

    Returns:
        The plan. Targets are the same whatever the order of `paths`, and no two are the same, not even on a
        file system that knows no upper and lower case.

    Raises:
        HypernetworkError: `out` is a file, or one file for several sources.
    """
    folder, single = _out(out, suffix)
    found, settled = _look(
        list(map(Path, paths)), tuple(sources) or suffixes(weights_only=True), folder, tuple(exclude)
    )
    found.sort(key=lambda one: (one.relative.as_posix(), str(one.path)))
    if single is not None:
        found, settled = _only_one(found, settled, single)
    targets = _targets(found, suffix, folder, single, flat)
    if folder is None and single is None and not rewrites:
        found, targets, finished = _without_finished(found, targets, suffix)
        settled += finished
    stems = {(one.path.parent, one.path.stem): one.path for one in reversed(found)}  # the first one stays
    jobs = []
    for one, (target, note) in zip(found, targets, strict=True):
        sibling = stems[one.path.parent, one.path.stem]
        other = sibling if note and sibling != one.path else None
        jobs.append(Job(one.path, target, one.label, one.size, note, other))
    return Plan(tuple(jobs), tuple(settled))


def _out(out: str | os.PathLike[str] | None, suffix: str) -> tuple[Path | None, Path | None]:
    """`out` as a folder or as a single file."""
    if out is None:
        return None, None
    path = expanded(out)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for names that are too long)
        return path, None
    ending = PurePath("x" + suffix).suffix
    if path.suffix.lower() == ending:
        return None, path
    if os.path.lexists(path):
        raise HypernetworkError(f"{path} is a file; the results go to a folder or to a file that ends in {ending}")
    for parent in path.parents:
        if os.path.lexists(parent) and not os.path.isdir(parent):  # noqa: PTH112
            raise HypernetworkError(f"{path} cannot be a folder, because {parent} is a file")
    return path, None


# -- finding


@dataclass(frozen=True)
class _Found:
    path: Path
    relative: PurePath
    label: str
    size: int


def _look(
    paths: Sequence[Path], sources: tuple[str, ...], out: Path | None, exclude: tuple[str, ...]
) -> tuple[list[_Found], list[Result]]:
    """Every file once, and what can be said of others without opening them."""
    found: dict[str, _Found] = {}
    settled: dict[str, Result] = {}
    expanded = [part for path in paths for part in _expanded(path)]
    for path in expanded:
        if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for names that are too long)
            below = PurePath() if len(expanded) == 1 else PurePath(path.resolve().name)
            one_folder = _in_folder(path, below, sources, out, exclude)
        else:
            one_folder = iter([_named(path)])
        for one in one_folder:
            if isinstance(one, Result):
                settled.setdefault(os.path.abspath(one.source), one)  # noqa: PTH100 (resolve would follow links)
            else:
                name = os.path.abspath(one.path)  # noqa: PTH100
                # A file that was named and lies in a folder that was named too keeps its place in the tree.
                found[name] = max(found.get(name, one), one, key=lambda found: len(found.relative.parts))
    return list(found.values()), [result for name, result in settled.items() if name not in found]


def _expanded(path: Path) -> list[Path]:
    """A pattern's files; a path that exists is itself, brackets and all."""
    path = _with_home(path)
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    if "**" not in path.parts:
        return sorted(map(Path, glob.glob(str(path)))) or [path]  # noqa: PTH207 (Path.glob lacks ~ and \)
    first = path.parts.index("**")
    start, rest = Path(*path.parts[:first]), path.parts[first:]
    folders = [folder for folder in _expanded(start) if os.path.isdir(folder)]  # noqa: PTH112 (see _look)
    # glob would go round and round in loops of links, with two of them without end.
    return sorted(e.path for folder in folders for e in walk(folder) if _matches(e.relative.parts, rest)) or [path]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path below a folder fits a pattern as `glob` reads it: `**` is any folders, hidden ones need a dot."""
    if not pattern:
        return not parts
    if pattern[0] == "**" and _matches(parts, pattern[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _with_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # a user without a home folder; the file will be missing
        return path


def _named(path: Path) -> _Found | Result:
    problem = _problem(path)
    if problem:
        return Result(path, str(path), "failed", reason=problem, error="HypernetworkError")
    return _Found(path, PurePath(path.name), str(path), path.stat().st_size)


def _problem(path: Path) -> str:
    """Why a path that was named is no file; "" when it is one."""
    try:
        if path.is_file():
            return ""
        if path.is_symlink():
            return f"{path} is a link that leads nowhere, or in a circle"
        if path.exists():
            return f"{path} is a pipe, socket or device, not a file"
        if glob.has_magic(str(path)):
            return f"{path}: no file matches this pattern"
        return f"{path} does not exist; check the path"
    except (OSError, ValueError) as error:
        return f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}"


def _in_folder(
    folder: Path, below: PurePath, sources: tuple[str, ...], out: Path | None, exclude: tuple[str, ...]
) -> Iterator[_Found | Result]:
    """The files below `folder` with a suffix in `sources`, and what is odd among the rest."""
    excluded = _excluded(folder, out, exclude)
    for entry in walk(folder, excluded):
        label = str(entry.path)
        looks_right = entry.relative.suffix.lower() in sources
        if entry.kind == "unreadable folder":
            reason = f"{label} cannot be read: {entry.reason}"
            yield Result(entry.path, label, "failed", reason=reason, error="HypernetworkError")
        elif not looks_right:
            continue
        elif entry.kind == "file" and not entry.relative.name.startswith("._"):
            size = _size(entry)
            yield _Found(entry.path, below / entry.relative, label, size)
        else:
            yield _odd(entry, label)


def _odd(entry: Entry, label: str) -> Result:
    """What has the name of a hypernetwork and is not even a file."""
    if entry.kind == "broken link":
        reason = f"{label} is a link that leads nowhere: {entry.reason}"
        return Result(entry.path, label, "failed", reason=reason, error="HypernetworkError")
    reasons = {
        "folder": "is a folder; the files in it are looked at",
        "special": "is a pipe, socket or device, not a file",
        "file": "holds what macOS notes about another file, no model",
    }
    return Result(entry.path, label, "skipped", reason=f"{label} {reasons[entry.kind]}")


def _size(entry: Entry) -> int:
    try:
        return entry.path.stat().st_size
    except OSError:  # gone meanwhile; opening it will say so
        return 0


def _excluded(folder: Path, out: Path | None, exclude: tuple[str, ...]) -> Callable[[PurePath], bool]:
    """Leaves out what the patterns match, and the folder that the results go to."""
    own: PurePath | None = None
    if out is not None:
        resolved, target = folder.resolve(), out.resolve()
        own = target.relative_to(resolved) if target.is_relative_to(resolved) else None
    patterns = [folded(pattern.rstrip("/\\")) for pattern in exclude]

    def matches(relative: PurePath) -> bool:
        if relative == own:
            return True
        names = (folded(relative.name), folded(relative.as_posix()))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return matches


# -- targets


def _only_one(found: list[_Found], settled: list[Result], single: Path) -> tuple[list[_Found], list[Result]]:
    if len(found) > 1:
        raise HypernetworkError(f"{single} is one file, and {len(found):,} are to be converted; name a folder")
    return found, settled


def _targets(
    found: Sequence[_Found], suffix: str, out: Path | None, single: Path | None, flat: bool
) -> list[tuple[Path, str]]:
    """A target for each file, and the reason where it is not called like the source."""
    if single is not None:
        return [(single, "") for _ in found]
    if out is None:
        return _unique([(one.path.with_name(one.path.stem + suffix), "") for one in found], str)
    wanted = [(_below(out, one.relative, suffix), "") for one in found]
    if flat:
        wanted = _flat(found, suffix, out)
    return _unique(wanted, lambda target: folded(str(target)))


def _below(out: Path, relative: PurePath, suffix: str) -> Path:
    return out / relative.with_name(relative.stem + suffix)


def _flat(found: Sequence[_Found], suffix: str, out: Path) -> list[tuple[Path, str]]:
    """All in one folder; those that would have the same name carry their folders' names as well.

    They all do, the first one too: so a name stays the same when further files are added.
    """
    count = Counter(folded(one.relative.stem) for one in found)
    targets = []
    for one in found:
        parts = one.relative.parts[:-1]
        if parts and count[folded(one.relative.stem)] > 1:
            name = "-".join((*parts, one.relative.stem))
            targets.append((out / f"{name}{suffix}", "named with its folder, because others are called the same"))
        else:
            targets.append((out / f"{one.relative.stem}{suffix}", ""))
    return targets


def _unique(wanted: Sequence[tuple[Path, str]], key: Callable[[Path], str]) -> list[tuple[Path, str]]:
    """Numbers the second and further targets of the same name (`ink-2`); `key` says what counts as the same."""
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


def numbered(path: Path) -> Iterator[Path]:
    """`ink-2.safetensors`, `ink-3.safetensors`, ... for `ink.safetensors`."""
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def _without_finished(
    found: list[_Found], targets: list[tuple[Path, str]], suffix: str
) -> tuple[list[_Found], list[tuple[Path, str]], list[Result]]:
    """Leaves out sources that are of the wanted format already; those that are others' targets without a word."""
    made = {str(target) for one, (target, _) in zip(found, targets, strict=True) if target != one.path}
    kept = []
    results = []
    for one, target in zip(found, targets, strict=True):
        if one.path.suffix.lower() != suffix:
            kept.append((one, target))
        elif str(one.path) not in made:
            reason = f"{one.label} is a {suffix} file already"
            results.append(Result(one.path, one.label, "skipped", reason=reason, size=one.size))
    return [one for one, _ in kept], [target for _, target in kept], results


def folded(name: str) -> str:
    """Return one spelling for what some file systems take for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
