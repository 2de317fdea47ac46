"""What is fuzzed: how an input is made of the fuzzer's bytes, and what must hold for any input."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import yaml  # noqa: F401  # read_config imports it, and while an input is read nothing may be imported

import hnloader
from hnloader import infotext, prompt
from hnloader.errors import HypernetworkError
from hnloader.network import Architecture, Hypernetwork
from hnloader.training.config import read_config
from lab.fuzz import archives, differential, unpicklers
from lab.fuzz.choices import Choices
from lab.fuzz.makers import containers, opcodes, texts
from lab.fuzz.watching import watched


@dataclass(frozen=True)
class Target:
    """Something that reads what strangers wrote.

    Attributes:
        make: a file or text from the fuzzer's bytes.
        check: reads it; raises anything where what is promised does not hold.
    """

    make: Callable[[Choices], bytes | str]
    check: Callable[[bytes | str], None]

    def run(self, data: bytes) -> None:
        """One input."""
        self.check(self.make(Choices(data)))


def _refused_or(read: Callable[[], object]) -> object:
    """What it gives; None where it was refused as it should be."""
    try:
        return read()
    except HypernetworkError as error:
        assert str(error).strip(), "an error without words"
        return None


def _read_weights(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    with watched():
        loaded = _refused_or(lambda: hnloader.load(io.BytesIO(data)))
        told = _refused_or(lambda: hnloader.inspect(io.BytesIO(data)))
        # The header is read the same by both; what only the data show, `inspect` cannot know.
        assert loaded is None or told is not None, "it loads, and inspect refuses it"
        if isinstance(loaded, Hypernetwork):
            _computes(loaded)


def _computes(hypernetwork: Hypernetwork) -> None:
    """What was loaded is finite and can be used."""
    for tensor in hypernetwork.state_dict().values():
        assert bool(torch.isfinite(tensor.float()).all())
    for width in hypernetwork.widths[:1]:
        if width <= 1024:
            with torch.no_grad():
                hypernetwork(torch.zeros(1, 1, width), 1.0)


def _read_checkpoint(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    _read_weights(data)
    differential.compare(data)


def _read_archive(data: bytes | str) -> None:
    _read_checkpoint(data)
    assert isinstance(data, bytes)
    archives.check(data)


def _follow(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    unpicklers.check(data)


def _read_changed(data: bytes | str) -> None:
    _read_checkpoint(data)
    assert isinstance(data, bytes)
    differential.compare_at_once(data)


def _read_safetensors(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    _read_weights(data)
    if _refused_or(lambda: hnloader.load(io.BytesIO(data))) is not None:
        safetensors.deserialize(data)  # the library reads whatever we read


def _read_hns(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    with watched():
        loaded = _refused_or(lambda: hnloader.load(_Named(data), [_FOLDER]))
        told = _refused_or(lambda: hnloader.inspect(_Named(data), [_FOLDER]))
        assert (loaded is None) == (told is None) or loaded is None
        if isinstance(loaded, Hypernetwork):
            _computes(loaded)


class _Named(io.BytesIO):
    """An open file that seems to lie beside the hypernetworks that it may name."""

    @property
    def name(self) -> str:
        """Where it would lie."""
        return str(_FOLDER / "made.hns")


def _made_folder() -> Path:
    """Hypernetworks that a composition may name; looking at them imports what is imported when it is needed."""
    folder = Path(tempfile.mkdtemp(prefix="hnloader-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, width in (("ink.pt", 4), ("oil.safetensors", 8)):
        torch.manual_seed(0)
        hnloader.save(Hypernetwork.new((width,), Architecture((1, 2, 1), "relu"), name="x"), folder / name)
        hnloader.inspect(folder / name)
        _computes(hnloader.load(folder / name))
    return folder


_FOLDER = _made_folder()
read_config()  # which evaluates its annotations once


def _read_config(text: bytes | str) -> None:
    assert isinstance(text, str)
    path = _FOLDER / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape" if text.isascii() else "replace")
    with watched():
        config = _refused_or(lambda: read_config(path))
        if config is not None:
            _refused_or(config.check)  # type: ignore[attr-defined]


def _read_prompt(text: bytes | str) -> None:
    assert isinstance(text, str)
    with watched():
        parsed = _refused_or(lambda: prompt.parse_prompt(text))
        if isinstance(parsed, prompt.ParsedPrompt):
            for tag in parsed.tags:
                again = prompt.parse_prompt(str(tag))
                assert again == prompt.ParsedPrompt("", (tag,)), f"{tag!r} was written as {tag} and read as {again!r}"
            left = prompt.parse_prompt(parsed.prompt) if "<hypernet:" not in parsed.prompt else None
            assert left is None or not left.tags


def _read_infotext(text: bytes | str) -> None:
    assert isinstance(text, str)
    with watched():
        parsed = infotext.parse(text)
        try:
            written = str(parsed)
        except ValueError:
            return
        again = infotext.parse(written)
        if len(parsed.settings) >= 3 and "\n" not in "".join(parsed.settings.values()):
            assert dict(again.settings) == dict(parsed.settings), f"{parsed!r} was read again as {again!r}"


TARGETS: dict[str, Target] = {
    "pickle": Target(containers.plain_zip, _read_checkpoint),
    "changed": Target(containers.changed_zip, _read_changed),
    "opcodes": Target(opcodes.stream, _follow),
    "zip": Target(containers.broken_zip, _read_archive),
    "legacy": Target(containers.legacy, _read_checkpoint),
    "safetensors": Target(texts.safetensors, _read_safetensors),
    "hns": Target(texts.hns, _read_hns),
    "config": Target(texts.config, _read_config),
    "prompt": Target(texts.prompt, _read_prompt),
    "infotext": Target(texts.infotext, _read_infotext),
}
