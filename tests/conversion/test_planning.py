"""Sources and targets of a conversion of many files."""

from __future__ import annotations

import glob
import os
import random
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnloader import HypernetworkError
from hnloader.conversion.planning import Plan, plan


def files(folder: Path, *names: str) -> Path:
    """Empty files of these names below the folder; planning opens none."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def targets(made: Plan, below: Path) -> dict[str, str]:
    """Source -> target, both as text relative to a folder."""
    return {job.source.relative_to(below).as_posix(): job.target.relative_to(below).as_posix() for job in made.jobs}


def settled(made: Plan) -> dict[str, tuple[str, str]]:
    return {result.source.name: (result.outcome, result.reason) for result in made.settled}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return files(
        tmp_path / "old", "ink.pt", "deep/down/oil.PT", "deep/chalk.pt", "notes.txt", "ink.pt.optim", "ink.png"
    )


def test_a_folder_beside_its_sources(old: Path) -> None:
    assert targets(plan([old], suffix=".safetensors"), old) == {
        "deep/chalk.pt": "deep/chalk.safetensors",
        "deep/down/oil.PT": "deep/down/oil.safetensors",
        "ink.pt": "ink.safetensors",
    }


def test_a_folder_mirrored_below_another(old: Path, tmp_path: Path) -> None:
    assert targets(plan([old], suffix=".safetensors", out=tmp_path / "new"), tmp_path) == {
        "old/deep/chalk.pt": "new/deep/chalk.safetensors",
        "old/deep/down/oil.PT": "new/deep/down/oil.safetensors",
        "old/ink.pt": "new/ink.safetensors",
    }


def test_several_paths_keep_their_folders_names(old: Path, tmp_path: Path) -> None:
    extra = files(tmp_path, "extra.pt") / "extra.pt"
    assert targets(plan([extra, old], suffix=".safetensors", out=tmp_path / "new"), tmp_path) == {
        "extra.pt": "new/extra.safetensors",
        "old/deep/chalk.pt": "new/old/deep/chalk.safetensors",
        "old/deep/down/oil.PT": "new/old/deep/down/oil.safetensors",
        "old/ink.pt": "new/old/ink.safetensors",
    }


def test_one_file_to_one_file(old: Path, tmp_path: Path) -> None:
    made = plan([old / "ink.pt"], suffix=".safetensors", out=tmp_path / "other.safetensors")
    assert targets(made, tmp_path) == {"old/ink.pt": "other.safetensors"}
    with pytest.raises(HypernetworkError, match=r"other\.safetensors.*3"):
        plan([old], suffix=".safetensors", out=tmp_path / "other.safetensors")


def test_flat_adds_folders_to_equal_names(tmp_path: Path) -> None:
    old = files(tmp_path / "old", "a/ink.pt", "b/INK.pt", "b/oil.pt", "ink.pt", "a/b/ink.pt")
    made = plan([old], suffix=".safetensors", out=tmp_path / "new", flat=True)
    assert targets(made, tmp_path) == {
        "old/a/b/ink.pt": "new/a-b-ink.safetensors",
        "old/a/ink.pt": "new/a-ink.safetensors",
        "old/b/INK.pt": "new/b-INK.safetensors",
        "old/b/oil.pt": "new/oil.safetensors",
        "old/ink.pt": "new/ink.safetensors",
    }
    files(old, "c/ink.pt")
    again = plan([old], suffix=".safetensors", out=tmp_path / "new", flat=True)
    assert targets(made, tmp_path).items() <= targets(again, tmp_path).items()  # names stay when files are added


def test_equal_names_are_numbered(tmp_path: Path) -> None:
    old = files(tmp_path / "old", "a-b/ink.pt", "a/b-ink.pt", "ink.pt", "a-b-ink.pt")
    made = plan([old], suffix=".safetensors", out=tmp_path / "new", flat=True)
    names = [job.target.name for job in made.jobs]
    assert len({name.casefold() for name in names}) == 4
    assert [job.target.name for job in made.jobs if "numbered" in job.note] == ["a-b-ink-2.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no two such files")
def test_names_that_differ_only_in_case_or_composition_stay_apart(tmp_path: Path) -> None:
    composed, decomposed = "\u00e9.pt", "e\u0301.pt"
    old = files(tmp_path / "old", "Ink.pt", "ink.pt", "INK.pt", composed, decomposed)
    made = targets(plan([old], suffix=".safetensors", out=tmp_path / "new"), tmp_path)
    assert made["old/INK.pt"] == "new/INK.safetensors"
    assert made["old/Ink.pt"] == "new/Ink-2.safetensors"
    assert made["old/ink.pt"] == "new/ink-3.safetensors"
    assert {made[f"old/{composed}"], made[f"old/{decomposed}"]} == {
        "new/e\u0301.safetensors",
        "new/\u00e9-2.safetensors",
    }
    files(old, "ink-2.pt")  # a file of that name keeps it
    made = targets(plan([old], suffix=".safetensors", out=tmp_path / "new"), tmp_path)
    assert made["old/ink-2.pt"] == "new/ink-2.safetensors"
    assert {made["old/Ink.pt"], made["old/ink.pt"]} == {"new/Ink-3.safetensors", "new/ink-4.safetensors"}
    beside = targets(plan([old], suffix=".safetensors"), tmp_path)  # where both sources are, both results can be
    assert beside["old/Ink.pt"] == "old/Ink.safetensors"
    assert beside["old/ink.pt"] == "old/ink.safetensors"


def test_the_plan_does_not_depend_on_the_order_of_the_paths(tmp_path: Path) -> None:
    old = files(tmp_path, *(f"{folder}/{name}.pt" for folder in "abc" for name in ("ink", "Ink", "oil")))
    paths = [old / folder for folder in "abc"] + [old / "a" / "ink.pt"]
    expected = targets(plan(paths, suffix=".safetensors", out=tmp_path / "new", flat=True), tmp_path)
    assert len(expected) == 9
    for seed in range(5):
        shuffled = random.Random(seed).sample(paths, len(paths))
        assert targets(plan(shuffled, suffix=".safetensors", out=tmp_path / "new", flat=True), tmp_path) == expected


NAMES = st.sampled_from(["a", "A", "a-2", "a-3", "b-a", "a-b", "\u00e9", "e\u0301", "A-2", "ss", "\u00df"])


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(NAMES, max_size=2), NAMES, st.sampled_from([".pt", ".PT", ".safetensors"])), max_size=12
    ),
    st.booleans(),
    st.randoms(),
)
def test_no_two_targets_are_equal(paths: list[tuple[list[str], str, str]], flat: bool, shuffler: random.Random) -> None:
    with tempfile.TemporaryDirectory() as place:
        old, new = Path(place, "old"), Path(place, "new")
        files(old, *("/".join([*folders, name + suffix]) for folders, name, suffix in paths))
        made = plan([old], suffix=".safetensors", out=new, flat=flat)
        assert len(made.jobs) == sum(path.is_file() for path in old.rglob("*"))
        spelled = {unicodedata.normalize("NFC", str(job.target)).casefold() for job in made.jobs}
        assert len(spelled) == len(made.jobs)
        for job in made.jobs:
            assert new in job.target.parents
            assert not flat or job.target.parent == new
            assert job.target.suffix == ".safetensors"
        named = sorted(job.source for job in made.jobs)
        shuffler.shuffle(named)
        again = plan([old, *named], suffix=".safetensors", out=new, flat=flat)
        assert len({job.target for job in again.jobs}) == len(made.jobs)


def test_files_in_the_target_format_are_skipped(old: Path) -> None:
    files(old, "ink.safetensors", "other.safetensors")
    made = plan([old], suffix=".safetensors")
    assert "ink.safetensors" not in targets(made, old)
    # ink.safetensors is the result of ink.pt, and needs no remark.
    assert set(settled(made)) == {"other.safetensors"}
    assert settled(made)["other.safetensors"][0] == "skipped"
    named = plan([old / "ink.safetensors"], suffix=".safetensors")
    assert ".safetensors" in settled(named)["ink.safetensors"][1]


def test_files_in_the_target_format_are_copied_to_another_folder(old: Path, tmp_path: Path) -> None:
    files(old, "ink.safetensors", "other.safetensors")
    made = plan([old], suffix=".safetensors", out=tmp_path / "new")
    assert targets(made, tmp_path)["old/other.safetensors"] == "new/other.safetensors"
    (twin,) = (job for job in made.jobs if job.source.name == "ink.safetensors")
    assert twin.sibling == old / "ink.pt"
    assert twin.target.name == "ink-2.safetensors"


def test_the_output_folder_is_skipped(old: Path) -> None:
    files(old, "new/ink.safetensors", "new/deep/chalk.safetensors")
    made = plan([old], suffix=".safetensors", out=old / "new")
    assert [job.source.name for job in made.jobs] == ["chalk.pt", "oil.PT", "ink.pt"]


def test_patterns_and_repeated_paths(old: Path) -> None:
    made = plan([old / "**" / "*.pt", old / "ink.pt", old], suffix=".safetensors")
    assert sorted(job.source.name for job in made.jobs) == ["chalk.pt", "ink.pt", "oil.PT"]
    brackets = files(old, "[a].pt") / "[a].pt"
    assert [job.source for job in plan([brackets], suffix=".safetensors").jobs] == [brackets]


def test_exclusions_are_names_or_paths(old: Path) -> None:
    def left(*patterns: str) -> list[str]:
        return sorted(targets(plan([old], suffix=".safetensors", exclude=patterns), old))

    assert left("DEEP") == ["ink.pt"]
    assert left("deep/down") == ["deep/chalk.pt", "ink.pt"]
    assert left("*.pt", "oil*") == []
    assert left("down/", "ink.pt") == ["deep/chalk.pt"]


def test_other_entries_than_files_get_results(old: Path, tmp_path: Path) -> None:
    (old / "folder.pt").mkdir()
    files(old, "folder.pt/inside.pt", "._ink.pt")
    (old / "gone.pt").symlink_to(tmp_path / "nowhere.pt")
    (old / "circle.pt").symlink_to(old / "circle.pt")
    os.mkfifo(old / "pipe.pt")
    made = plan([old, tmp_path / "missing.pt", tmp_path / "no*.pt", tmp_path / ("x" * 300)], suffix=".safetensors")
    results = settled(made)
    assert results["folder.pt"][0] == results["pipe.pt"][0] == results["._ink.pt"][0] == "skipped"
    assert results["gone.pt"][0] == results["circle.pt"][0] == "failed"
    for name in ("missing.pt", "no*.pt"):
        assert results[name][0] == "failed"
        assert name in results[name][1]
    assert "File name too long" in results["x" * 300][1]
    assert "inside.pt" in {job.source.name for job in made.jobs}


def test_loops_of_links_are_entered_once(old: Path) -> None:
    (old / "deep" / "back").symlink_to(old, target_is_directory=True)
    (old / "again").symlink_to(old / "deep", target_is_directory=True)
    assert sorted(targets(plan([old], suffix=".safetensors"), old)) == ["deep/chalk.pt", "deep/down/oil.PT", "ink.pt"]


def test_patterns_enter_loops_of_links_once(old: Path) -> None:
    for name in ("back", "again"):  # two of them lead to more paths than can be listed
        (old / "deep" / name).symlink_to(old, target_is_directory=True)
    assert sorted(targets(plan([old / "**" / "*.pt"], suffix=".safetensors"), old)) == ["deep/chalk.pt", "ink.pt"]
    assert sorted(targets(plan([old / "d*" / "**" / "c*.pt"], suffix=".safetensors"), old)) == ["deep/chalk.pt"]


@pytest.mark.parametrize(
    "pattern",
    ["**/*.pt", "**", "**/down/*", "**/deep", "d*/**/o*", "**/**/ink.pt", "**/.hidden/*", "**/*.[pP][tT]", "**/x*/*"],
)
def test_patterns_match_as_glob_does(old: Path, pattern: str) -> None:
    files(old, ".hidden/soot.pt", "deep/.soot.pt")
    expected = {Path(path) for path in glob.glob(str(old / pattern), recursive=True)} - {old}  # noqa: PTH207
    taken = {job.source for job in plan([old / pattern], suffix=".safetensors").jobs}
    in_folders = {
        below for path in expected if path.is_dir() for below in path.rglob("*") if below.suffix.lower() == ".pt"
    }
    wanted = {path for path in expected if path.is_file()}
    assert wanted <= taken <= wanted | in_folders


def test_unreadable_folders_fail(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refusing(place: Path):
        if Path(place).name == "down":
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", refusing)  # the tests may run as root, whom no permission stops
    made = plan([old], suffix=".safetensors")
    assert settled(made)["down"][0] == "failed"
    assert "Permission denied" in settled(made)["down"][1]
    assert sorted(targets(made, old)) == ["deep/chalk.pt", "ink.pt"]


def test_output_into_a_file_is_refused(old: Path) -> None:
    with pytest.raises(HypernetworkError, match=r"notes\.txt"):
        plan([old], suffix=".safetensors", out=old / "notes.txt")
    with pytest.raises(HypernetworkError, match=r"notes\.txt"):
        plan([old], suffix=".safetensors", out=old / "notes.txt" / "new")
