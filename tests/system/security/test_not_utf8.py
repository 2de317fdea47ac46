"""Names that are not UTF-8, and lone surrogates in what files hold: kept, shown as escapes, and no door fails."""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

import hnloader
from hnloader.conversion import convert, verify
from hnloader.library import Library
from hnloader.network import Architecture, Hypernetwork
from hnloader.texts import all_well_formed, well_formed
from hnloader.ui import sidecars
from hnloader.ui.catalog import Catalog
from hnloader.ui.pages.choices import chosen_files

ODD = {
    "name": "a\ud800b",
    "optional_info": "z\udfff",
    "sd_checkpoint_name": "\udcff",
    "k\udc80": {"\ud801": ["\udbff"]},
}
# The Python of a system that knows no other letters than ASCII.
BARE = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "200"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`ink.pt`, and one whose name, notes and metadata are not UTF-8."""
    made = Hypernetwork.new((16,), Architecture((1, 2, 1), "relu", dropout=(0, 0, 0)), name="ink")
    hnloader.save(made, tmp_path / "ink.pt")
    odd = tmp_path / "odd\udcff\udcfe.pt"
    try:
        odd.touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 alone")
    tree = torch.load(tmp_path / "ink.pt", weights_only=True)
    torch.save({**tree, **ODD}, odd)
    odd.with_suffix(".json").write_text(json.dumps({"notes": "n\ud800", "other": "\udfff"}))
    return tmp_path


@pytest.fixture
def odd(folder: Path) -> Path:
    return folder / "odd\udcff\udcfe.pt"


def as_sent(value: object) -> str:
    """Return the bytes that a page or an API sends."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8").decode("utf-8")


@pytest.mark.parametrize("text", ["", "plain", "ink \N{SNOWMAN} \U0001f600", "\udcff", "\ud83d\ude00", "\ud800x\udfff"])
def test_texts_are_kept_or_escaped(text: str) -> None:
    made = well_formed(text)
    assert made.encode("utf-8").decode("utf-8") == made
    assert json.loads(f'"{made}"').encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")
    assert all_well_formed({text: [(text, 1, None)]}) == {made: [(made, 1, None)]}


@pytest.mark.parametrize(
    "target", ["out.safetensors", "odd\udcff\udcfe.safetensors", "\udcfe/odd.safetensors", "new.pt"]
)
def test_metadata_convert_unchanged(folder: Path, odd: Path, target: str) -> None:
    (folder / target).parent.mkdir(exist_ok=True)
    done = convert(odd, folder / target)
    assert done.lossless and done.verified
    assert verify(odd, folder / target)
    before, after = hnloader.inspect(odd), hnloader.inspect(folder / target)
    assert after.metadata == before.metadata and after.metadata.items() >= ODD.items()
    hnloader.save(hnloader.load(folder / target), folder / "again.safetensors")
    back = convert(folder / "again.safetensors", folder / "back.pt").target
    assert hnloader.inspect(back).metadata == before.metadata
    assert torch.load(back, weights_only=True)["k\udc80"] == ODD["k\udc80"]


def test_header_is_readable_by_every_program(folder: Path, odd: Path) -> None:
    convert(odd, folder / "out.safetensors")
    with safetensors.safe_open(folder / "out.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.title"] == "a\\ud800b"
    assert header["hnloader.source_name"] == "odd\\udcff\\udcfe.pt"


def test_notes_keep_other_keys_of_their_file(odd: Path) -> None:
    written = sidecars.save_notes(odd, "mine \udcfd \N{SNOWMAN}")
    assert json.loads(written.read_text(encoding="utf-8")) == {"notes": "mine \udcfd \N{SNOWMAN}", "other": "\udfff"}
    assert "\N{SNOWMAN}" in written.read_text(encoding="utf-8")


def test_library_finds_shown_names(folder: Path, odd: Path) -> None:
    library = Library([folder])
    for name in ("odd\udcff\udcfe", well_formed("odd\udcff\udcfe"), well_formed(odd.name)):
        assert library.find(name) == odd
    assert library.find("ink") == folder / "ink.pt"


def _handlers(blocks: Any, **inputs: Any) -> Iterator[tuple[str, Any]]:
    """Yield the output of each event of the page for the inputs of its function."""
    for each in blocks.fns.values():
        names = [] if each.fn is None else list(inspect.signature(each.fn).parameters)
        if each.fn is None or not set(names) <= inputs.keys():
            continue
        found = each.fn(*(inputs[name] for name in names))
        for sent in found if inspect.isgenerator(found) else [found]:
            yield each.fn.__name__, sent


def test_every_event_of_the_page_can_be_sent(folder: Path, odd: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from hnloader.ui import compat
    from hnloader.ui.page import build_page
    from hnloader.ui.page_host import Host

    with compat.blocks("hnloader") as page:
        build_page(Host(lambda: [folder], lambda: tmp_path / "images", pages=("library", "convert")))
    catalog = Catalog(lambda: [folder])
    (entry,) = (each for each in catalog.entries() if each.path == odd)
    asked = {"query": "", "sort": "name", "only": "all files", "chosen": entry.key, "key": entry.key, "page": 1}
    convert_it = {"scope": "selected files", "labels": [well_formed(odd.name)], "target": "safetensors", "report": True}
    convert_it |= {"place": "same folder", "existing": "overwrite", "notes": "mine"}
    sent: dict[str, str] = {}
    for name, value in _handlers(page, **asked, **convert_it):
        sent[name] = sent.get(name, "") + as_sent(value)
    assert {"load", "search", "choose", "save_notes", "run"} <= sent.keys()
    assert sent["load"].count("data-key") == 2
    assert "odd\\\\udcff\\\\udcfe.pt" in sent["load"]
    assert "&lt;hypernet:odd\\\\udcff\\\\udcfe:1&gt;" in sent["choose"]
    assert "1 converted" in sent["run"]
    assert odd.with_suffix(".safetensors").is_file()


def test_components_accept_sendable_values() -> None:
    pytest.importorskip("gradio")
    from hnloader.ui import compat

    with compat.blocks("hnloader"):
        made = compat.make("Dropdown", label="\udcff", choices=["\ud800"], value="\ud800")
    assert as_sent([made.label, made.value, made.choices])


def test_labels_identify_files(folder: Path, odd: Path) -> None:
    catalog = Catalog(lambda: [folder], folder / "cache")
    assert [entry.path for entry in chosen_files(catalog, [well_formed(odd.name)])] == [odd]
    list(catalog.inspect_all())
    again = Catalog(lambda: [folder], folder / "cache")
    assert {entry.path: entry.inspected for entry in again.entries()} == {odd: True, folder / "ink.pt": True}
    assert next(entry for entry in again.entries() if entry.path == odd).info == hnloader.inspect(odd)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, BARE], ids=["usual", "ascii"])
def test_the_command_line(folder: Path, odd: Path, environment: dict[str, str]) -> None:
    report = folder / "report.csv"
    commands = [
        ["inspect", "."], ["inspect", odd.name], ["inspect", ".", "--json"], ["scan", ".", "--json"],
        ["convert", ".", "--report", "report.csv", "--on-existing", "overwrite"],
        ["merge", odd.name, "ink.pt", "-o", "both.hns"], ["inspect", "both.hns"],
        ["inspect", "missing\udcff"], ["explain", "missing\udcff"], ["train", "\udcff.yaml"],
    ]  # fmt: skip
    program = "import json, os, sys; import hnloader.cli.app as app; import hnloader.inspection, hnloader.conversion\n"
    program += "for command in json.loads(sys.argv[1]):\n child = os.fork()\n if not child:\n"
    program += "  sys.argv = ['hnloader', *command]\n  app.run()\n"
    program += " print('\\nended', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, cwd=folder, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(hnloader.__file__).parents[1]), **environment}, errors="replace",
    )  # fmt: skip
    codes = [int(line.removeprefix("ended")) for line in done.stdout.splitlines() if line.startswith("ended")]
    assert codes == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1], done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
    rows = list(csv.DictReader(report.read_text(encoding="utf-8").splitlines()))
    assert {row["source"] for row in rows} == {"ink.pt", "odd\\udcff\\udcfe.pt"}
