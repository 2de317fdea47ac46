"""Read texts, and cut them into rows of tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnloader.errors import DatasetError, MissingExtraError
from hnloader.training import read_config
from hnloader.training.text_dataset import Document, Part, TextDataset, read_texts, rows_of
from tests.support.small_language_models import make_word_tokenizer, save_lines
from tests.support.trainings import raises


def read(place: Path, **settings: object) -> TextDataset:
    return read_texts(place, read_config(None, {f"text.{key}": value for key, value in settings.items()}).text)


def texts(dataset: TextDataset) -> list[str]:
    return [part.text for document in dataset.documents for part in document.parts]


def test_documents_of_txt_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "story.TXT").write_bytes("one\r\ntwo\r\n \r\nthree\r\n".encode("utf-16"))
    (tmp_path / "a.txt").write_text("  first  \n")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "notes.md").write_text("no")
    assert texts(read(tmp_path)) == ["first", "one\ntwo\n \nthree"]
    assert texts(read(tmp_path, documents="paragraph")) == ["first", "one\ntwo", "three"]
    assert texts(read(tmp_path, documents="line")) == ["first", "one", "two", "three"]
    assert texts(read(tmp_path / "a.txt")) == ["first"]


def test_rows_of_jsonl_files(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "other": 1}]
    rows: list[object] = [
        {"text": "a"},
        {"prompt": "b", "completion": "c", "text": "ignored"},
        {"messages": chat},
        {"prompt": "b"},
        {"messages": chat[:1]},
        {"messages": [{"role": "user"}]},
        ["a"],
        {"text": "  "},
    ]
    path = save_lines(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text() + "\n{broken\n")
    found = read(tmp_path)
    assert [document.parts for document in found.documents] == [
        (Part("a", True),),
        (Part("b", False), Part("c", True)),
        (),
    ]
    assert found.documents[2].messages == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"})
    assert [source for source, _ in found.problems] == [f"rows.jsonl, line {n}" for n in (4, 5, 6, 7, 8, 10)]


def test_unusable_folders(tmp_path: Path) -> None:
    with raises(DatasetError, "missing", "does not exist"):
        read(tmp_path / "missing")
    with raises(DatasetError, str(tmp_path), ".txt", ".jsonl"):
        read(tmp_path)
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\xff")
    with raises(DatasetError, "image.txt", "UTF-8"):
        read(tmp_path)
    (tmp_path / "zeros.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "good.txt").write_text("good")
    found = read(tmp_path)
    assert texts(found) == ["good"]
    assert {source for source, _ in found.problems} == {"image.txt", "zeros.txt", "empty.txt"}
    assert len(list(found.remarks())) == 3


def test_other_texts_have_another_fingerprint(tmp_path: Path) -> None:
    save_lines(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    before = read(tmp_path).fingerprint()
    assert read(tmp_path).fingerprint() == before
    save_lines(tmp_path / "a.jsonl", [{"prompt": "ab", "completion": "b"}])
    assert read(tmp_path).fingerprint() != before


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_folders_of_datasets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with raises(MissingExtraError, "pip install datasets"):
        read(tmp_path)
    rows = [{"text": "a"}, {"text": None}]
    found: Any = {"train": rows, "test": []} if name == "dataset_dict.json" else rows
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=lambda folder: found))
    dataset = read(tmp_path)
    assert texts(dataset) == ["a"]
    assert dataset.problems[0][0].endswith("row 2")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=lambda folder: 1 / 0))
    with raises(DatasetError, str(tmp_path)):
        read(tmp_path)


# -- tokens


def decoded(document: Document, block_size: int = 64, **tokenizer: Any) -> list[tuple[list[str], list[bool]]]:
    made = make_word_tokenizer(**tokenizer)
    rows = rows_of(document, made, block_size)
    return [(made.convert_ids_to_tokens(row.tokens.tolist()), row.trained.tolist()) for row in rows]


def test_a_long_text_is_cut_into_pieces() -> None:
    text = Document("", (Part("the cat sees the dog .", True),))
    assert decoded(text) == [(["<s>", "the", "cat", "sees", "the", "dog", ".", "</s>"], [True] * 8)]
    pieces = decoded(text, 3)
    assert [words for words, _ in pieces] == [["<s>", "the", "cat"], ["sees", "the", "dog"], [".", "</s>"]]
    # A piece of one token has nothing to predict.
    assert len(decoded(text, 7)) == 1


def test_the_loss_skips_prompts() -> None:
    pair = Document("", (Part("the cat", False), Part("sees the dog", True)))
    words = ["<s>", "the", "cat", "sees", "the", "dog", "</s>"]
    assert decoded(pair) == [(words, [False] * 3 + [True] * 4)]
    assert decoded(pair, 4) == [(words[:4], [False] * 3 + [True])]
    with pytest.raises(ValueError, match="3 tokens"):
        decoded(pair, 3)


def test_the_loss_counts_the_answers_of_a_chat() -> None:
    turns = [("user", "the cat ?"), ("assistant", "a dog"), ("user", "and ?"), ("assistant", "a bird")]
    chat = Document("", messages=tuple({"role": role, "content": content} for role, content in turns))
    ((words, trained),) = decoded(chat, chat=True)
    assert " ".join(words) == "user: the cat ? bot: a dog </s> user: and ? bot: a bird </s>"
    assert [word for word, counts in zip(words, trained, strict=True) if counts] == [
        *("a", "dog", "</s>"),
        *("a", "bird", "</s>"),
    ]
    with pytest.raises(ValueError, match="chat template"):
        decoded(chat)
    changing = make_word_tokenizer()
    changing.chat_template = "{{ messages | length }} {{ messages[-1].content }}"
    with pytest.raises(ValueError, match="changes earlier messages"):
        rows_of(chat, changing, 64)
    changing.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="no system role"):
        rows_of(chat, changing, 64)
