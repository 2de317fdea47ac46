"""Converting many files: outcomes, existing files, cancelling, and errors in single files."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hnloader import CorruptFileError, HypernetworkError
from hnloader.conversion.bulk import convert_many, dry_run, verify_many
from hnloader.conversion.planning import plan
from hnloader.conversion.results import Result, counts
from hnloader.conversion.to_format import ToFormat
from hnloader.errors import OtherModelError
from hnloader.files import TEMPORARY_SUFFIX, replacing


class Copier:
    """Copies text files; what a file holds decides what happens to it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.at_once = self.most_at_once = 0
        self.before: Callable[[Path], None] = lambda source: None
        self._lock = threading.Lock()

    def convert(self, source: Path, target: Path, *, overwrite: bool) -> Mapping[str, object]:
        with self._lock:
            self.seen.append(source.name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.before(source)
            self.check_source(source)
            with replacing(target, overwrite=overwrite) as temporary:
                temporary.write_text(f"copy of {source.read_text()}")
        finally:
            with self._lock:
                self.at_once -= 1
        return {"length": len(source.read_text())}

    def check_source(self, source: Path) -> None:
        content = source.read_text()
        errors: dict[str, BaseException] = {
            "bad": CorruptFileError(f"{source} is damaged"),
            "lora": OtherModelError(f"{source} is a LoRA"),
            "memory": MemoryError(),
            "allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            "deep": RecursionError("maximum recursion depth exceeded"),
            "io": OSError(errno.EIO, "Input/output error", str(source)),
            "bug": ZeroDivisionError("division by zero"),
        }
        if content in errors:
            raise errors[content]

    def is_free(self, source: Path, target: Path) -> bool:
        return not os.path.lexists(target)

    def is_current(self, source: Path, target: Path) -> bool:
        return target.is_file() and target.read_text() == f"copy of {source.read_text()}"

    def came_from(self, file: Path, source: Path) -> bool:
        return self.is_current(source, file)

    def verify(self, source: Path, target: Path) -> Mapping[str, object]:
        if not self.is_current(source, target):
            raise HypernetworkError(f"{target} differs from {source}")
        return {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {"a.pt": "1", "b.pt": "2", "sub/c.pt": "3"}.items():
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_text(content)
    return tmp_path / "old"


def run(folder: Path, converter: Copier | None = None, **options: object) -> dict[str, Result]:
    """The results by the name of the source; results go to `new` beside the folder."""
    made = plan([folder], suffix=".copy", out=folder.parent / "new")
    results = convert_many(made, converter or Copier(), **options)  # type: ignore[arg-type]
    return {result.source.name: result for result in results}


def outcomes(results: Mapping[str, Result]) -> dict[str, str]:
    return {name: result.outcome for name, result in results.items()}


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_file_has_a_result(folder: Path, jobs: int) -> None:
    results = run(folder, jobs=jobs)
    assert outcomes(results) == {"a.pt": "converted", "b.pt": "converted", "c.pt": "converted"}
    assert contents(folder.parent / "new") == {"a.copy": "copy of 1", "b.copy": "copy of 2", "sub/c.copy": "copy of 3"}
    assert results["a.pt"].details == {"length": 1}
    assert results["a.pt"].size == 1
    assert results["a.pt"].target == folder.parent / "new" / "a.copy"


def test_jobs_limits_concurrency(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.pt").write_text("x")
    for jobs in (1, 3):
        converter = Copier()
        meeting = threading.Barrier(jobs)

        def meet(source: Path, meeting: threading.Barrier = meeting) -> None:
            if source.name in ("0.pt", "1.pt", "10.pt"):  # the first three of the plan
                meeting.wait(timeout=30)

        converter.before = meet
        run(folder, converter, jobs=jobs)
        assert converter.most_at_once == jobs
        shutil.rmtree(folder.parent / "new")
    with pytest.raises(ValueError, match="0"):
        run(folder, jobs=0)


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        ("bad", "CorruptFileError", "is damaged"),
        ("memory", "MemoryError", "not enough memory"),
        ("allocator", "RuntimeError", "not enough memory"),
        ("deep", "RecursionError", "bug in hnloader: RecursionError"),
        ("io", "OSError", "Input/output error"),
        ("bug", "ZeroDivisionError", "bug in hnloader: ZeroDivisionError: division by zero"),
    ],
)
def test_errors_stay_in_their_file(folder: Path, content: str, error: str, reason: str) -> None:
    (folder / "b.pt").write_text(content)
    results = run(folder)
    assert outcomes(results) == {"a.pt": "converted", "b.pt": "failed", "c.pt": "converted"}
    assert results["b.pt"].error == error
    assert reason in results["b.pt"].reason
    assert "b.pt" in results["b.pt"].reason
    assert sorted(contents(folder.parent / "new")) == ["a.copy", "sub/c.copy"]


def test_other_models_are_skipped(folder: Path) -> None:
    (folder / "b.pt").write_text("lora")
    result = run(folder)["b.pt"]
    assert (result.outcome, result.brief_reason, result.target) == ("skipped", "a LoRA", None)


def test_a_second_run_is_up_to_date(folder: Path) -> None:
    run(folder)
    converter = Copier()
    for mode in ("skip", "rename"):
        assert set(outcomes(run(folder, converter, on_existing=mode)).values()) == {"up to date"}
    assert converter.seen == []
    assert len(contents(folder.parent / "new")) == 3
    assert set(outcomes(run(folder, converter, on_existing="overwrite")).values()) == {"converted"}


def test_existing_targets_are_skipped_replaced_or_numbered(folder: Path) -> None:
    new = folder.parent / "new"
    new.mkdir()
    (new / "a.copy").write_text("another")
    (new / "a-2.copy").write_text("yet another")
    skipped = run(folder)
    assert outcomes(skipped) == {"a.pt": "skipped", "b.pt": "converted", "c.pt": "converted"}
    assert str(new / "a.copy") in skipped["a.pt"].reason
    renamed = run(folder, on_existing="rename")
    assert renamed["a.pt"].target == new / "a-3.copy"
    assert outcomes(renamed)["b.pt"] == "up to date"
    assert contents(new)["a.copy"] == "another"
    assert contents(new)["a-3.copy"] == "copy of 1"
    again = run(folder, on_existing="rename")
    assert (again["a.pt"].outcome, again["a.pt"].target) == ("up to date", new / "a-3.copy")
    run(folder, on_existing="overwrite")
    assert contents(new)["a.copy"] == "copy of 1"


def test_concurrent_numbers_differ(folder: Path) -> None:
    new = folder.parent / "new"
    new.mkdir()
    for number in range(30):
        (folder / f"x{'-2' * number}.pt").write_text(str(number))
        (new / f"x{'-2' * number}.copy").write_text("another")
    results = run(folder, jobs=4, on_existing="rename")
    targets = [result.target for result in results.values()]
    assert len(set(targets)) == len(targets) == 33
    assert sum(text == "another" for text in contents(new).values()) == 30
    assert sum(text.startswith("copy of") for text in contents(new).values()) == 33


def test_a_changed_source_is_not_up_to_date(folder: Path) -> None:
    run(folder)
    (folder / "a.pt").write_text("changed")
    assert outcomes(run(folder))["a.pt"] == "skipped"
    assert outcomes(run(folder, on_existing="overwrite"))["a.pt"] == "converted"
    assert contents(folder.parent / "new")["a.copy"] == "copy of changed"


def test_a_source_is_never_its_own_target(folder: Path) -> None:
    (folder / "a.copy").hardlink_to(folder / "a.pt")
    for mode in ("skip", "overwrite"):
        (result,) = convert_many(plan([folder / "a.pt"], suffix=".copy"), Copier(), on_existing=mode)  # type: ignore[arg-type]
        assert result.outcome == "failed"
        assert result.label in result.reason
    (result,) = convert_many(plan([folder / "a.pt"], suffix=".copy"), Copier(), on_existing="rename")
    assert (result.outcome, result.target) == ("converted", folder / "a-2.copy")
    assert (folder / "a.pt").read_text() == "1"


def test_a_folder_with_the_name_of_a_target(folder: Path) -> None:
    (folder.parent / "new" / "a.copy").mkdir(parents=True)
    for mode in ("skip", "overwrite"):
        result = run(folder, on_existing=mode)["a.pt"]
        assert (result.outcome, result.error) == ("failed", "HypernetworkError")
    (folder.parent / "new" / "sub" / "c.copy").unlink()
    (folder.parent / "new" / "sub").rmdir()
    (folder.parent / "new" / "sub").write_text("a file where a folder is needed")
    results = run(folder)
    assert outcomes(results)["c.pt"] == "failed"
    assert str(folder.parent / "new" / "sub") in results["c.pt"].reason


def test_results_of_siblings_are_skipped(folder: Path) -> None:
    (folder / "a.text").write_text("copy of 1")
    (folder / "b.text").write_text("something else")
    made = plan([folder], suffix=".copy", sources=(".pt", ".text"), out=folder.parent / "new")
    results = {result.source.name: result for result in convert_many(made, Copier())}
    assert outcomes(results)["a.text"] == "skipped"
    assert "a.pt" in results["a.text"].brief_reason
    assert results["b.text"].target == folder.parent / "new" / "b-2.copy"  # it only shares the name
    assert sorted(contents(folder.parent / "new")) == ["a.copy", "b-2.copy", "b.copy", "sub/c.copy"]


def test_cancelling_finishes_running_files_only(folder: Path) -> None:
    for number in range(50):
        (folder / f"{number}.pt").write_text("x")
    converter = Copier()
    cancel = threading.Event()
    results = []
    for result in convert_many(plan([folder], suffix=".copy"), converter, jobs=2, cancel=cancel):
        results.append(result)
        cancel.set()
    assert len(results) == len(converter.seen) < 10
    assert {result.outcome for result in results} == {"converted"}
    assert len(list(folder.rglob("*.copy"))) == len(results)


def test_converters_can_abandon_a_file_when_cancelled(folder: Path) -> None:
    converter = Copier()
    cancel = threading.Event()

    def give_up(source: Path) -> None:
        if source.name == "b.pt":
            cancel.set()
            raise KeyboardInterrupt

    converter.before = give_up
    assert outcomes(run(folder, converter, cancel=cancel)) == {"a.pt": "converted"}
    assert sorted(contents(folder.parent / "new")) == ["a.copy"]


def test_a_finished_run_is_not_cancelled(folder: Path) -> None:
    cancel = threading.Event()
    run(folder, cancel=cancel)
    assert not cancel.is_set()


def test_closing_the_iterator_ends_the_run(folder: Path) -> None:
    for number in range(50):
        (folder / f"{number}.pt").write_text("x")
    converter = Copier()
    running = convert_many(plan([folder], suffix=".copy"), converter, jobs=2)
    next(running)
    running.close()
    begun = len(converter.seen)
    time.sleep(0.05)  # whatever would go on would go on now
    assert len(converter.seen) == begun < 10
    assert not list(folder.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_temporary_files_of_killed_runs_are_removed(folder: Path) -> None:
    new = folder.parent / "new"
    (new / "sub").mkdir(parents=True)
    for place in (new, new / "sub"):
        (place / f".a.copy.0123456789ab{TEMPORARY_SUFFIX}").write_text("half")
    run(folder)
    assert sorted(contents(new)) == ["a.copy", "b.copy", "sub/c.copy"]


def test_files_that_cannot_fit_on_a_full_disk_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converter = Copier()

    def full(source: Path) -> None:
        if source.name == "a.pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))

    converter.before = full
    (folder / "a.pt").write_text("1" * 2000)
    (folder / "b.pt").write_text("2" * 1000)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    results = run(folder, converter)
    assert outcomes(results) == {"a.pt": "failed", "b.pt": "failed", "c.pt": "converted"}
    assert "No space left on device" in results["b.pt"].reason
    assert converter.seen == ["a.pt", "c.pt"]


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    (folder / "b.pt").write_text("bad")
    (folder / "lora.pt").write_text("lora")
    before = contents(folder.parent)
    made = plan([folder], suffix=".copy", out=folder.parent / "new")
    results = {result.source.name: result for result in dry_run(made, Copier())}
    assert outcomes(results) == {"a.pt": "planned", "b.pt": "failed", "c.pt": "planned", "lora.pt": "skipped"}
    assert contents(folder.parent) == before
    assert not (folder.parent / "new").exists()
    assert counts(results.values()) == {"planned": 2, "skipped": 1, "failed": 1}


def test_pairs_are_verified(folder: Path) -> None:
    run(folder)
    new = folder.parent / "new"
    (new / "a.copy").write_text("changed")
    (new / "b.copy").unlink()
    (folder / "lora.pt").write_text("lora")
    results = {result.source.name: result for result in verify_many(plan([folder], suffix=".copy", out=new), Copier())}
    assert outcomes(results) == {"a.pt": "failed", "b.pt": "failed", "c.pt": "verified", "lora.pt": "skipped"}
    assert "b.copy" in results["b.pt"].reason
    assert not os.path.lexists(new / "b.copy")


def test_compositions_with_missing_members_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "both.hns").write_text("['ink', 'chalk']")
    converter = ToFormat(".safetensors")
    found = plan([tmp_path], suffix=".safetensors", sources=(".hns",))
    for results in (dry_run(found, converter), verify_many(found, converter), convert_many(found, converter)):
        (result,) = results
        assert result.outcome == "skipped", result
        assert "hnloader merge" in result.reason
