"""Numbers beyond floats, paths that cannot be, malformed headers, formulas: an error of ours, and no other one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hnloader
from extension import applying, guard, rows
from hnloader.attention.strengths import check_strength
from hnloader.cli.app import app
from hnloader.conversion import convert
from hnloader.conversion.planning import plan
from hnloader.conversion.reports import write_report
from hnloader.conversion.results import Result
from hnloader.errors import CorruptFileError, HypernetworkError, HypernetworkNotFoundError, PromptTagError
from hnloader.files import file_lock, make_folder, remove_leftovers
from hnloader.formats import hns
from hnloader.library import Library
from hnloader.prompt import Tag, parse_prompt
from hnloader.ui import comparison_grid, saving, sidecars
from hnloader.ui.protection import Protection, host_in, is_of_another_site, length_within
from tests.support.paths import GOLDENS

SOUND = GOLDENS / "relu_121.pt"
LARGE = 10**400
TEXTS = ("1" + 400 * "0", 5000 * "9", "1e999", "nan", "-inf")


# -- numbers


@pytest.mark.parametrize("value", [LARGE, -LARGE, 10**5000, float("inf"), float("nan")], ids=lambda value: "number")
def test_numbers_beyond_float_are_refused(value: Any) -> None:
    for field in ("strength", "k", "v", "start", "end"):
        with pytest.raises(PromptTagError):
            Tag("ink", **{field: value})
        (row,) = rows.read_rows([{"name": "ink", field: value}])
        assert row.tag is None and len(row.problem) < 200
    with pytest.raises(ValueError, match="finite"):
        check_strength(value)
    with pytest.raises(ValueError, match="finite"):
        check_strength({"up": value})
    assert sidecars.strength_in({sidecars.STRENGTH: value}) is None
    assert applying.default_strength(_Options(value)) == 1.0


class _Options:
    """A host with one value for every setting."""

    def __init__(self, value: object) -> None:
        self.value = value

    def option(self, key: str, default: object) -> object:
        return self.value

    def add_options(self, section: str, options: object) -> None: ...


@pytest.mark.parametrize(("value", "strength"), [(0.5, 0.5), ("0.7", 0.7), (None, 1.0), ("much", 1.0), ([], 1.0)])
def test_invalid_default_strength_is_1(value: object, strength: float) -> None:
    assert applying.default_strength(_Options(value)) == strength


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_of_numbers_beyond_float_are_refused(text: str, tmp_path: Path) -> None:
    for prompt in (f"<hypernet:ink:{text}>", f"<hypernet:ink:1:k={text}>", f"<hypernet:ink:1:block=up@{text}>"):
        with pytest.raises(PromptTagError):
            parse_prompt(prompt)
    with pytest.raises(HypernetworkError):
        comparison_grid.read_strengths(text)
    for structure in (f"(ink, {text})", f"{{ink: {text}, wash: 1}}", f"{{ink: {text}}}", "{ink: 1e308, wash: 1e308}"):
        (tmp_path / "both.hns").write_text(structure)
        with pytest.raises(CorruptFileError):
            hnloader.inspect(tmp_path / "both.hns")


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize(
    "command",
    [
        *(["generate", "x", option] for option in ("--steps", "--seed", "--count", "--guidance", "--sweep", "--size")),
        ["explain", str(SOUND), "--batch"],
        *(["convert", str(SOUND), "--to", "lora", "--base", "/none", option] for option in ("--rank", "--strength")),
        *(["convert", str(SOUND), "--to", "lora", "--base", "/none", o] for o in ("--fidelity", "--guidance")),
        ["compare", "--prompt", "x", "--seconds"],
        ["train", "--steps"],
    ],
    ids=lambda command: " ".join(command[:1] + command[-1:]),
)
def test_options_with_numbers_beyond_float_are_refused(command: list[str], text: str) -> None:
    ended = CliRunner().invoke(app, [*command, text])
    assert ended.exit_code in (1, 2), ended.output
    assert "bug" not in ended.output


# -- paths


def _paths_with_a_nul(folder: Path) -> list[Callable[[], object]]:
    path = folder / "a\0b"
    made = hnloader.load(SOUND)
    return [
        lambda: hnloader.load(path),
        lambda: hnloader.inspect(path),
        lambda: hnloader.save(made, path.with_suffix(".pt")),
        lambda: hnloader.save(made, path.with_suffix(".safetensors")),
        lambda: convert(SOUND, path.with_suffix(".safetensors")),
        lambda: convert(SOUND, path / "x.safetensors", on_existing="rename"),
        lambda: convert(path.with_suffix(".pt"), folder / "x.safetensors"),
        lambda: plan([SOUND.parent], suffix=".safetensors", out=path),
        lambda: write_report([], path.with_suffix(".csv")),
        lambda: make_folder(path),
        lambda: Library([path]).find("ink"),
        lambda: Library([folder]).find("a\0b"),
        lambda: saving.next_number(path, "x"),
        lambda: sidecars.save_notes(path, "mine"),
    ]


@pytest.mark.parametrize("index", range(14))
def test_nul_in_a_path_raises_a_package_error(index: int, tmp_path: Path) -> None:
    with pytest.raises(HypernetworkError):
        _paths_with_a_nul(tmp_path)[index]()
    assert list(tmp_path.iterdir()) == []


def test_nul_in_a_listed_path_is_skipped(tmp_path: Path) -> None:
    assert remove_leftovers([tmp_path / "a\0b"]) == []
    with file_lock(tmp_path / "a\0b" / "lock", "held by another"):
        pass
    assert sidecars.read_values(tmp_path / "a\0b.pt") == {}
    assert sidecars.thumbnail(tmp_path / "a\0b.pt") is None
    (result,) = plan([tmp_path / "a\0b"], suffix=".safetensors").settled
    assert result.outcome == "failed"


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x.pt", "a\0b"])
@pytest.mark.parametrize(
    "command",
    [
        *(["inspect"], ["explain"], ["convert"], ["generate", "x", "--hypernet"], ["generate", "x", "--model"]),
        *(["ui", "--model"], ["merge", "-o", "x.pt"], ["convert", "--to", "lora", "--base", "/none"]),
        ["convert", str(SOUND), "-o"],
        *(["train", "--model", "x", "--images", "y", "--output"], ["train", "--output", "x.pt", "--model"]),
    ],
    ids=" ".join,
)
def test_command_line_names_the_problem_of_a_path(
    command: list[str], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, [*command, path])
    assert ended.exit_code in (1, 2), ended.output
    assert "bug" not in ended.output


def test_composition_member_with_a_nul_is_missing(tmp_path: Path) -> None:
    (tmp_path / "odd.hns").write_text(r"['a\0b', 'c']")
    with pytest.raises(HypernetworkNotFoundError):
        hnloader.load(tmp_path / "odd.hns")
    assert hns.FORMAT.suffixes == (".hns",)


# -- headers of requests

MALFORMED = ("[::1", "[", "localhost:port", "[v1.x", "localhost:99999999")


@pytest.mark.parametrize("host", MALFORMED)
def test_malformed_host_is_refused(host: str) -> None:
    assert host_in(f"//{host}") is None
    assert is_of_another_site({"origin": f"http://{host}", "host": "localhost:7870"})
    assert not guard._is_local(host) or host.startswith("localhost:")


@pytest.mark.parametrize("host", MALFORMED)
def test_page_answers_malformed_host_with_400(host: str) -> None:
    pytest.importorskip("starlette")
    import anyio

    sent: list[dict[str, Any]] = []

    async def never(*_: object) -> None:
        raise AssertionError("it reached the page")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())]}
    anyio.run(Protection(never), scope, never, send)
    assert sent[0]["status"] == 400


@pytest.mark.parametrize("given", ["", "-1", "1.5", "9" * 5000, "١", "101", "x"])
def test_invalid_content_length_is_refused(given: str) -> None:
    assert not length_within(given, 100) or given == "١"
    assert length_within("0", 100) and length_within("100", 100)


# -- formulas

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\N{FULLWIDTH EQUALS SIGN}1", "=cmd|' /C calc'!A0")


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_report_cells_are_never_formulas(text: str, tmp_path: Path) -> None:
    result = Result(
        Path(text), text, "failed", Path(f"x;{text}"), text, "Error", 1, -0.5, {text: text, "notes": [text], "n": -1}
    )
    write_report([result], tmp_path / "report.csv")
    written = (tmp_path / "report.csv").read_bytes().decode("utf-8")
    ((header, row),) = [list(csv.reader(io.StringIO(written, newline="")))]
    values = dict(zip(header, row, strict=True))
    assert values["source"] == values["reason"] == values[f"'{text}"] == f"'{text}"
    assert (values["seconds"], values["n"], values["size"]) == ("-0.5", "-1", "1")  # numbers are numbers
    assert not any(cell.startswith(("=", "@", "\t", "\r", "+")) for cell in (*header, *row))
    # Also where a program splits at semicolons: the text is quoted.
    assert f'"x;{text}"' in written


def test_torch_reads_the_written_files(tmp_path: Path) -> None:
    """The checks above refuse nothing sound."""
    done = convert(SOUND, tmp_path / "x.pt")
    assert torch.load(done.target, weights_only=True)
