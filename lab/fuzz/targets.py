"""Define the targets: how each makes an input from the fuzzer's bytes, and what must hold for any input."""

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
import yaml  # noqa: F401  # read_config imports it, and readers must not import anything while watched

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
    """A reader of files or texts from strangers.

    Attributes:
        make: Makes a file or text from the fuzzer's bytes.
        check: Reads it; raises an exception if a promise is broken.
        format: Name of the hypernetwork format that it fuzzes; "" for other readers.
    """

    make: Callable[[Choices], bytes | str]
    check: Callable[[bytes | str], None]
    format: str = ""

    def run(self, data: bytes) -> None:
        """Check one input."""
        self.check(self.make(Choices(data)))


def _read_or_none(read: Callable[[], object]) -> object:
    """Return the result of a reader, or None if it raised a HypernetworkError."""
    try:
        return read()
    except HypernetworkError as error:
        assert str(error).strip(), "an error without a message"
        return None


def _read_weights(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    with watched():
        loaded = _read_or_none(lambda: hnloader.load(io.BytesIO(data)))
        inspected = _read_or_none(lambda: hnloader.inspect(io.BytesIO(data)))
        # Both read the header alike; `inspect` cannot see faults of the tensor data.
        assert loaded is None or inspected is not None, "it loads, but inspect refuses it"
        if isinstance(loaded, Hypernetwork):
            _check_computes(loaded)


def _check_computes(hypernetwork: Hypernetwork) -> None:
    """Check that a loaded hypernetwork is finite and computes."""
    for tensor in hypernetwork.state_dict().values():
        assert bool(torch.isfinite(tensor.float()).all())
    for scope in hypernetwork.scopes[:1]:
        if scope.width <= 1024:
            with torch.no_grad():
                hypernetwork(torch.zeros(1, 1, scope.width), 1.0, scope)


def _read_checkpoint(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    _read_weights(data)
    differential.compare(data)


def _read_archive(data: bytes | str) -> None:
    _read_checkpoint(data)
    assert isinstance(data, bytes)
    archives.check(data)


def _trace(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    unpicklers.check(data)


def _read_changed(data: bytes | str) -> None:
    _read_checkpoint(data)
    assert isinstance(data, bytes)
    differential.compare_fast_path(data)


def _read_safetensors(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    _read_weights(data)
    if _read_or_none(lambda: hnloader.load(io.BytesIO(data))) is not None:
        safetensors.deserialize(data)  # the library must read everything that hnloader reads


def _read_hns(data: bytes | str) -> None:
    assert isinstance(data, bytes)
    with watched():
        loaded = _read_or_none(lambda: hnloader.load(_Named(data), [_FOLDER]))
        inspected = _read_or_none(lambda: hnloader.inspect(_Named(data), [_FOLDER]))
        assert loaded is None or inspected is not None, "it loads, but inspect refuses it"
        if isinstance(loaded, Hypernetwork):
            _check_computes(loaded)


class _Named(io.BytesIO):
    """An open file that appears to be in the folder of the hypernetworks it may name."""

    @property
    def name(self) -> str:
        """Return the path of the file."""
        return str(_FOLDER / "made.hns")


def _make_folder() -> Path:
    """Make the hypernetworks that a composition may name, and load them so that lazy imports are done."""
    folder = Path(tempfile.mkdtemp(prefix="hnloader-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, width in (("ink.pt", 4), ("oil.safetensors", 8)):
        torch.manual_seed(0)
        hnloader.save(Hypernetwork.new((width,), Architecture((1, 2, 1), "relu"), name="x"), folder / name)
        hnloader.inspect(folder / name)
        _check_computes(hnloader.load(folder / name))
    return folder


_FOLDER = _make_folder()
read_config()  # evaluates its annotations once


def _read_config(text: bytes | str) -> None:
    assert isinstance(text, str)
    path = _FOLDER / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape" if text.isascii() else "replace")
    with watched():
        config = _read_or_none(lambda: read_config(path))
        if config is not None:
            _read_or_none(config.check)  # type: ignore[attr-defined]


def _read_prompt(text: bytes | str) -> None:
    assert isinstance(text, str)
    with watched():
        parsed = _read_or_none(lambda: prompt.parse_prompt(text))
        if isinstance(parsed, prompt.ParsedPrompt):
            for tag in parsed.tags:
                reread = prompt.parse_prompt(str(tag))
                assert reread == prompt.ParsedPrompt("", (tag,)), f"{tag!r} was written as {tag} but read as {reread!r}"
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
        reread = infotext.parse(written)
        if len(parsed.settings) >= 3 and "\n" not in "".join(parsed.settings.values()):
            assert dict(reread.settings) == dict(parsed.settings), f"{parsed!r} was read again as {reread!r}"


TARGETS: dict[str, Target] = {
    "pickle": Target(containers.plain_zip, _read_checkpoint, "pt"),
    "changed": Target(containers.changed_zip, _read_changed, "pt"),
    "opcodes": Target(opcodes.stream, _trace),
    "zip": Target(containers.broken_zip, _read_archive, "pt"),
    "legacy": Target(containers.legacy, _read_checkpoint, "pt"),
    "safetensors": Target(texts.safetensors, _read_safetensors, "safetensors"),
    "hns": Target(texts.hns, _read_hns, "hns"),
    "config": Target(texts.config, _read_config),
    "prompt": Target(texts.prompt, _read_prompt),
    "infotext": Target(texts.infotext, _read_infotext),
}
