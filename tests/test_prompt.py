"""The grammar of tags: prompts of users, parts from hosts, and errors."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hnloader.errors import HypernetworkError, PromptTagError
from hnloader.prompt import (
    BlockWeight,
    ParsedPrompt,
    Tag,
    format_number,
    other_tags,
    parse_items,
    parse_prompt,
    parse_tag,
    tag_bodies,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1).filter(lambda name: name.strip() and ">" not in name)
block_names = st.text("abcdefghijklmnopqrstuvwxyz.*0123456789_-[]", min_size=1)


@st.composite
def tags(draw: st.DrawFn) -> Tag:
    start, end = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True)))
    blocks = draw(st.lists(st.builds(BlockWeight, block_names, numbers), max_size=3, unique_by=lambda b: b.block))
    return Tag(draw(names), draw(numbers), tuple(blocks), start, end, draw(numbers), draw(numbers))


@pytest.mark.parametrize(
    ("prompt", "cleaned", "tag"),
    [
        ("a cat <hypernet:ink:0.8>", "a cat ", Tag("ink", 0.8)),
        ("<hypernet:ink>a cat", "a cat", Tag("ink", 1.0)),
        ("a <hypernet:ink:-1.5> cat", "a  cat", Tag("ink", -1.5)),
        ("<hypernet:sketches/ink.v2:1>", "", Tag("sketches/ink.v2")),
        ("<hypernet:Tusche & Pinsel, grün:.5>", "", Tag("Tusche & Pinsel, grün", 0.5)),
        ("<hypernet:水墨 画:1e-1>", "", Tag("水墨 画", 0.1)),
        ("<hypernet: ink : 0.8 >", "", Tag("ink", 0.8)),
        ("<hypernet:ink:start=0.2>", "", Tag("ink", start=0.2)),
        ("<hypernet:ink:0.8:start=0.2,end=0.8>", "", Tag("ink", 0.8, start=0.2, end=0.8)),
        ("<hypernet:ink:0.8:start=0.2:end=0.8>", "", Tag("ink", 0.8, start=0.2, end=0.8)),
        ("<hypernet:ink:0.8, K=1, V = .5>", "", Tag("ink", 0.8, k=1.0, v=0.5)),
        ("<hypernet:ink:0.8:block=up>", "", Tag("ink", 0.8, (BlockWeight("up"),))),
        (
            "<hypernet:ink:1:block=mid+up.*@0.5:v=0>",
            "",
            Tag("ink", 1.0, (BlockWeight("mid"), BlockWeight("up.*", 0.5)), v=0.0),
        ),
        ('<hypernet:"12:30":0.8>', "", Tag("12:30", 0.8)),
        ('<hypernet:"say ""hi"": now":2:end=0.5>', "", Tag('say "hi": now', 2.0, end=0.5)),
        (r"<hypernet:C:\styles\ink.pt:0.8>", "", Tag(r"C:\styles\ink.pt", 0.8)),
    ],
)
def test_a_tag_is_read_and_removed(prompt: str, cleaned: str, tag: Tag) -> None:
    parsed = parse_prompt(prompt)
    assert parsed.prompt == cleaned
    assert parsed.tags == (tag,)


def test_tags_keep_their_order_and_repetitions() -> None:
    parsed = parse_prompt("<hypernet:b:1> x <hypernet:a:0.5>, y <hypernet:b:1>")
    assert [tag.name for tag in parsed.tags] == ["b", "a", "b"]
    assert parsed.prompt == " x , y "


def test_other_tags_and_broken_brackets_stay() -> None:
    prompt = "1 < 2, <hypernet:>, <lora:x:0.5>, (a:1.2)\n  [b] <hypernet:ink"
    assert parse_prompt(prompt).prompt == prompt
    assert parse_prompt(prompt).tags == ()
    assert other_tags("a <lora:x:0.5> <hypernet:ink:1> <lyco:y>") == ["<lora:x:0.5>", "<lyco:y>"]


@pytest.mark.parametrize("body", ["ink:0.8:start=0.2:end=0.8", '"12:30":0.8:block=up@2', r"C:\a\ink.pt:1", "ink"])
def test_a_host_that_splits_at_colons_gets_the_same_tag(body: str) -> None:
    assert parse_items(body.split(":")) == parse_tag(body)


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ("ink:strong", ["'ink'", "strength", "'strong'"]),
        ("ink:", ["strength", "''"]),
        ("ink:nan", ["strength", "finite"]),
        ("ink:0,8", ["'8'", "decimals with a point"]),
        ("ink:block=up:0.5", ["'0.5'"]),
        ("ink:0.8:k=1,5", ["'5'", "decimals with a point"]),
        ("ink:0.8:stop=0.5", ["'stop'", "block, start, end, k, v"]),
        ("ink:1:start=0.8,end=0.2", ["start=0.8", "end=0.2", "0 <= start < end <= 1"]),
        ("ink:1:end=30", ["end=30", "fractions"]),
        ("ink:1:k=much", ["k=", "'much'"]),
        ("ink:1:k=1:k=2", ["k="]),
        ("ink:1:block=", ["block=up"]),
        ("ink:1:block=up+up@0.5", ["block=up+up", "twice"]),
        ("ink:1:block=up@high", ["block up", "'high'"]),
        (":0.8", ["<hypernet:name:strength>"]),
        ('"ink:0.8', ["double quote"]),
    ],
)
def test_a_malformed_tag_is_refused_with_the_facts(body: str, facts: list[str]) -> None:
    with pytest.raises(PromptTagError) as error:
        parse_prompt(f"a cat <hypernet:{body}>")
    assert isinstance(error.value, HypernetworkError)
    for fact in facts:
        assert fact in str(error.value)


def test_a_name_with_a_closing_bracket_is_refused() -> None:
    with pytest.raises(PromptTagError, match="a>b"):
        str(Tag("a>b"))


def test_defaults_are_not_written() -> None:
    assert str(Tag("ink")) == "<hypernet:ink:1>"
    blocks = (BlockWeight("mid"), BlockWeight("up", 0.5))
    assert str(Tag("12:30", 0.8, blocks, end=0.5)) == '<hypernet:"12:30":0.8:block=mid+up@0.5,end=0.5>'


@given(tags(), st.text())
def test_a_written_tag_is_read_back(tag: Tag, text: str) -> None:
    text = text.replace("<", "").replace(">", "")
    parsed = parse_prompt(f"{text}{tag}{text}")
    assert parsed.tags == (tag,)
    assert parsed.prompt == text + text
    assert parse_items(str(tag)[len("<hypernet:") : -1].split(":")) == tag


@given(numbers)
@example(1e20)
@example(-0.0)
def test_a_written_number_is_read_back(number: float) -> None:
    assert float(format_number(number)) == number
    assert "+" not in format_number(number)


@given(st.text() | st.text('<>hypernet:"=,+@.0189block \\/C'))
@example("<hypernet:0:1e999>")
@example("<hypernet:\x00:1>")
def test_any_text_is_parsed_or_raises_a_tag_error(text: str) -> None:
    for prompt in (text, f"<hypernet:{text}>", f"<hypernet:ink:1:{text}>", f"<hypernet:ink:1:block={text}>"):
        try:
            parsed = parse_prompt(prompt)
        except PromptTagError:
            continue
        assert parse_prompt("".join(map(str, parsed.tags))).tags == parsed.tags


@given(st.text('abc<>:hypernet0.1" \n'))
def test_text_without_hypernet_tags_is_untouched(text: str) -> None:
    text = text.replace("<hypernet:", "")
    assert parse_prompt(text).prompt == text


@pytest.mark.parametrize("prompt", ["<a:" * 300_000, "<hypernet:a" * 100_000, "<a:" * 300_000 + ">" + "<b:" * 300_000])
def test_a_hostile_prompt_takes_no_time(prompt: str) -> None:
    assert parse_prompt(prompt) == ParsedPrompt(prompt, ())
    assert len(other_tags(prompt)) == prompt.count(">")


@pytest.mark.parametrize(
    ("body", "tag"),
    [
        ("ink:0.8:0.5", Tag("ink", 0.8)),
        ("ink:0.8:", Tag("ink", 0.8)),
        ("ink:0.8:0.5:0.3:words, more", Tag("ink", 0.8)),
        ("ink:0.8:0.5:k=0.5", Tag("ink", 0.8, k=0.5)),
        ("ink:0.8,k=0.5:9", Tag("ink", 0.8, k=0.5)),
    ],
)
def test_parts_after_the_strength_are_ignored_as_in_the_webuis(body: str, tag: Tag) -> None:
    assert parse_prompt(f"a <hypernet:{body}>").tags == (tag,)
    assert parse_items(body.split(":")) == tag


def test_a_name_that_ends_in_a_space_is_read_back() -> None:
    for name in ("n ", " n", "a/n "):
        assert parse_prompt(str(Tag(name))).tags == (Tag(name),)


def test_the_bodies_of_all_tags() -> None:
    assert tag_bodies("<hypernet:a:1> <lora:b:1> <hypernet:c:x> <hypernet:") == ["a:1", "c:x"]
