"""HTML of the pages: no text from a file becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path, PurePath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hnloader.inspection import inspect
from hnloader.library import LibraryFile
from hnloader.ui import markup
from hnloader.ui.catalog_entry import Entry
from tests.support.builders import simple_tree, write


class Tags(HTMLParser):
    """Tags, attributes and text of some HTML."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def entry(name: str, info: object = None, problem: str | None = None) -> Entry:
    return Entry("0123456789abcdef", LibraryFile(Path("/styles"), PurePath(f"{name}.pt")), 10, 0, 0, info, problem)


HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>{{value}}${1+1}`"
text = st.text(st.characters(exclude_characters="\0"), min_size=1)


@settings(deadline=None, max_examples=100)
@given(text)
@example(HOSTILE)
def test_no_text_becomes_a_tag_an_attribute_or_a_template(value: str) -> None:
    harmless, given_text = entry("x", problem="y"), entry(value.replace("/", "|"), problem=value)
    for make in (
        lambda one: markup.cards([one], None),
        lambda one: markup.headline(one),
        lambda one: markup.details(one, [one], "0" * 64),
        lambda one: markup.notice(one.problem or "x"),
        lambda one: markup.progress(1, 2, one.problem or "x"),
        lambda one: markup.empty(one.file.name, one.file.name),
    ):
        found = make(given_text)
        assert Tags(found).found == Tags(make(harmless)).found
        assert "{{" not in found
        assert "${" not in found


def test_metadata_stays_text(tmp_path: Path) -> None:
    keys = {"name": HOSTILE, "sd_checkpoint_name": HOSTILE, "sd_checkpoint": HOSTILE, HOSTILE: HOSTILE}
    info = inspect(write(tmp_path / "x.pt", simple_tree(768, **keys)))
    shown = markup.details(entry("x", info), [], "0" * 64)
    assert Tags(shown).text.count("<script>alert(1)</script>") == 5
    assert {tag for tag, _ in Tags(shown).found} <= {"div", "table", "tr", "th", "td", "code"}


def test_shortens_long_text_and_shows_invisible_characters() -> None:
    assert markup.escaped("a\u202eb\x00c") == "a\ufffdb\ufffdc"
    assert markup.escaped("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(("done", "total", "percent"), [(0, 0, 0), (1, 3, 33), (3, 3, 100), (9, 3, 100)])
def test_screen_readers_get_the_progress(done: int, total: int, percent: int) -> None:
    assert f'aria-valuenow="{percent}"' in markup.progress(done, total, "step 1")


def test_the_error_of_a_file_omits_its_path() -> None:
    assert markup.reason(entry("x", problem="/styles/x.pt is empty")) == "empty"
    assert markup.reason(entry("x", problem="Found no member 'ink'.")) == "Found no member 'ink'."
