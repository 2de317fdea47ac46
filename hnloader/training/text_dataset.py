"""The texts of a folder, their problems and their tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hnloader.errors import DatasetError, MissingExtraError
from hnloader.training.config import TextConfig
from hnloader.training.text_files import read_text, reason_of
from hnloader.units import counted

SUFFIXES = (".txt", ".jsonl")
# The files that `datasets.Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_LARGEST = 256 << 20
_MAX_REMARKS = 10
_FIELDS = "Expected text, or prompt and completion, or messages."


class Part(NamedTuple):
    """A part of a document; `trained` if the loss counts it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Document:
    """A text, a pair of prompt and completion, or a conversation.

    Attributes:
        source: The file, and the place in it.
        parts: The parts of a text or a pair; empty for a conversation.
        messages: The messages of a conversation, with `role` and `content`.
        path: The file; None for a row of a table.
    """

    source: str
    parts: tuple[Part, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    path: Path | None = None


class Row(NamedTuple):
    """A document, or a piece of a long one, as the model reads it.

    Attributes:
        tokens: [length], whole numbers.
        trained: [length], True for tokens that the loss counts. The first token never counts.
    """

    tokens: Tensor
    trained: Tensor


@dataclass
class TextDataset:
    """The documents of a folder or a file, and their problems."""

    folder: Path
    documents: list[Document] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def exclude(self, source: str, message: str) -> None:
        """Add a problem of a document that is not trained on."""
        self.problems.append((source, f"{message} It is excluded."))

    def unusable(self) -> DatasetError:
        """Return the error of a dataset whose documents are all excluded."""
        source, message = self.problems[0]
        return DatasetError(f"{self.folder}: found no usable text. {source}: {message}")

    def remarks(self) -> Iterator[str]:
        """Yield the first problems."""
        for source, message in self.problems[:_MAX_REMARKS]:
            yield f"{source}: {message}"
        if len(self.problems) > _MAX_REMARKS:
            yield f"{counted(len(self.problems) - _MAX_REMARKS, 'more problem')}, which the report lists."

    def fingerprint(self) -> str:
        """Return a hash of the documents."""
        parts = [(document.parts, [sorted(each.items()) for each in document.messages]) for document in self.documents]
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_texts(place: Path, config: TextConfig) -> TextDataset:
    """Read the documents of a folder and its subfolders, of one file, or of a folder that datasets saved.

    Args:
        place: The folder or the file.
        config: The settings for texts.

    Raises:
        DatasetError: The folder does not exist, or contains no usable text.
        MissingExtraError: datasets saved the folder, and is not installed.
    """
    dataset = TextDataset(place)
    if any((place / name).is_file() for name in (_SAVED, _SAVED_SPLITS)):
        _add_rows(dataset, place, _saved_rows(place), "row")
    else:
        for path in text_files(place):
            _read_file(dataset, path, config)
    return _usable(dataset)


def read_text_files(folder: Path, files: Iterable[Path], config: TextConfig) -> TextDataset:
    """Read the documents of files; raise DatasetError if none is usable.

    Args:
        folder: The folder, for messages.
        files: The files, at least one.
        config: The settings for texts.
    """
    dataset = TextDataset(folder)
    for path in files:
        _read_file(dataset, path, config)
    return _usable(dataset)


def _usable(dataset: TextDataset) -> TextDataset:
    """Return the dataset; raise DatasetError if it has no documents."""
    if not dataset.documents:
        raise dataset.unusable()
    return dataset


def text_files(place: Path) -> list[Path]:
    """Return the texts in a folder and its subfolders, sorted, or a file itself; raise DatasetError if none exists."""
    files = list(_files(place))
    if not files:
        raise DatasetError(f"{place}: found no texts. Add files that end in {' or '.join(SUFFIXES)}.")
    return files


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    if not place.is_dir():
        raise DatasetError(f"{place}: the folder does not exist. Name a folder of texts.")
    for path in sorted(place.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _saved_rows(place: Path) -> Iterable[Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{place}: datasets saved this folder, and is not installed. Run: pip install datasets."
        ) from error
    try:
        found: Any = datasets.load_from_disk(str(place))
        return found["train"] if isinstance(found, Mapping) else found  # type: ignore[no-any-return]
    except Exception as error:  # datasets, pyarrow and fsspec raise their own
        raise DatasetError(f"{place}: datasets cannot load the folder ({reason_of(error)}) Save it again.") from error


def _read_file(dataset: TextDataset, path: Path, config: TextConfig) -> None:
    try:
        text = read_text(path, _LARGEST)
    except (OSError, ValueError) as error:
        dataset.exclude(path.name, f"Cannot be read: {reason_of(error)}")
        return
    if path.suffix.lower() == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        _add_rows(dataset, path, (line for _, line in lines), "line", [number for number, _ in lines])
        return
    for number, document in enumerate(_documents(text, config), 1):
        source = path.name if config.documents == "file" else f"{path.name}, {config.documents} {number:,}"
        dataset.documents.append(Document(source, (Part(document, True),), path=path))
    if not text.strip():
        dataset.exclude(path.name, "The file is empty.")


def _documents(text: str, config: TextConfig) -> Iterator[str]:
    text = text.replace("\r\n", "\n")
    found = [text]
    if config.documents == "line":
        found = text.split("\n")
    elif config.documents == "paragraph":
        found = re.split(r"\n[ \t]*\n", text)
    yield from (each.strip() for each in found if each.strip())


def _add_rows(
    dataset: TextDataset, place: Path, rows: Iterable[Any], unit: str, numbers: Sequence[int] | None = None
) -> None:
    """Add the documents of the lines of a JSON file, or of the rows of a table."""
    path = place if unit == "line" else None
    for index, row in enumerate(rows):
        source = f"{place.name}, {unit} {numbers[index] if numbers else index + 1:,}"
        try:
            document = _document(source, json.loads(row) if isinstance(row, str) else row)
            dataset.documents.append(replace(document, path=path))
        except (ValueError, RecursionError) as error:
            dataset.exclude(source, reason_of(error))


def _document(source: str, row: Any) -> Document:
    """Return the document of a row; raise ValueError if it has none."""
    if not isinstance(row, Mapping):
        raise ValueError(_FIELDS)
    if isinstance(row.get("messages"), Sequence):
        messages = tuple(_message(each) for each in row["messages"])
        if not any(each["role"] == "assistant" for each in messages):
            raise ValueError("Expected a message of the assistant.")
        return Document(source, messages=messages)
    prompt, completion, text = (row.get(name) for name in ("prompt", "completion", "text"))
    parts: tuple[Part, ...]
    if isinstance(prompt, str) and isinstance(completion, str):
        parts = (Part(prompt, False), Part(completion, True))
    elif isinstance(text, str):
        parts = (Part(text, True),)
    else:
        raise ValueError(_FIELDS)
    if not parts[-1].text.strip():
        raise ValueError("The text is empty.")
    return Document(source, parts)


def _message(given: Any) -> Mapping[str, str]:
    role, content = (given.get(name) if isinstance(given, Mapping) else None for name in ("role", "content"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("Expected messages with role and content.")
    return {"role": role, "content": content}


# -- tokens


def rows_of(document: Document, tokenizer: Any, block_size: int) -> list[Row]:
    """Return a document as the model reads it: a text in pieces, a pair or a conversation cut at the end.

    Args:
        document: The document.
        tokenizer: The tokenizer of the model.
        block_size: The most tokens of a row.

    Raises:
        ValueError: Nothing is left to train on, or the tokenizer has no chat template for messages.
    """
    whole = len(document.parts) == 1
    tokens, trained = _text_tokens(document, tokenizer) if document.parts else _chat_tokens(document, tokenizer)
    row = Row(torch.tensor(tokens, dtype=torch.long), torch.tensor(trained, dtype=torch.bool))
    starts = range(0, len(tokens), block_size) if whole else [0]
    pieces = [Row(*(part[start : start + block_size] for part in row)) for start in starts]
    pieces = [piece for piece in pieces if bool(piece.trained[1:].any())]
    if not pieces:
        raise ValueError("Too short." if whole else f"The prompt fills all {block_size:,} tokens of a block.")
    return pieces


def _text_tokens(document: Document, tokenizer: Any) -> tuple[list[int], list[bool]]:
    first, *others = document.parts
    end = tokenizer.eos_token_id
    tokens: list[int] = tokenizer(first.text)["input_ids"]
    while tokens and tokens[-1] == end:
        tokens = tokens[:-1]
    trained = [first.trained] * len(tokens)
    for part in others:
        more: list[int] = tokenizer(part.text, add_special_tokens=False)["input_ids"]
        tokens, trained = tokens + more, trained + [part.trained] * len(more)
    if end is not None:
        tokens, trained = [*tokens, end], [*trained, True]
    return tokens, trained


def _chat_tokens(document: Document, tokenizer: Any) -> tuple[list[int], list[bool]]:
    tokens: list[int] = []
    trained: list[bool] = []
    for part in chat_parts(document.messages, tokenizer):
        more: list[int] = tokenizer(part.text, add_special_tokens=False)["input_ids"]
        tokens, trained = tokens + more, trained + [part.trained] * len(more)
    return tokens, trained


def chat_parts(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> list[Part]:
    """Return a conversation in the tokenizer's chat template; the loss counts the answers of the assistant.

    Raises:
        ValueError: The tokenizer has no template, or the template changes earlier messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("The tokenizer has no chat template for messages. Use prompt and completion.")
    parts: list[Part] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(messages[:index], tokenizer, add_generation_prompt=True)
        after = _rendered(messages[: index + 1], tokenizer)
        if not before.startswith(done) or not after.startswith(before):
            raise ValueError("The chat template changes earlier messages. Use prompt and completion.")
        parts += [Part(before[len(done) :], False), Part(after[len(before) :], True)]
        done = after
    return parts


def _rendered(messages: Sequence[Mapping[str, str]], tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    given = [dict(each) for each in messages]
    try:
        text = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # jinja2's, and whatever the template raises
        raise ValueError(f"The chat template failed: {reason_of(error)}") from error
    return str(text)
