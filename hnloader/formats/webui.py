"""The `.pt` format of the webuis: int keys with a (k, v) pair of state dicts, and string keys with metadata.

Reads what NovelAI-style modules, AUTOMATIC1111's webui, the MonkeyPatch extension and kohya's trainer wrote;
writes what AUTOMATIC1111's webui writes. docs/format.md describes the layout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hnloader.errors import OtherModelError, UnsupportedArchitectureError
from hnloader.formats.checkpoint import ZIP_MAGIC, Checkpoint, is_legacy_stream, read_checkpoint
from hnloader.formats.contents import Contents, all_named_tensors
from hnloader.formats.identify import kind_of_tree
from hnloader.formats.outgoing import Outgoing, from_hypernetwork
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import Source
from hnloader.formats.torch_zip import write_tree
from hnloader.network import SIDES, Hypernetwork, SideName
from hnloader.texts import as_text, shown

SUFFIX = ".pt"
KOHYA = "kohya trainer"


def detect(source: Source) -> bool:
    """True for whatever torch.save may have written."""
    return source.head.startswith(ZIP_MAGIC) or is_legacy_stream(source.head)


def read(source: Source) -> Contents:
    """The hypernetwork in the file, tensors not read.

    Raises:
        UnsafeFileError: the pickle names or calls something that no hypernetwork needs.
        OtherModelError: it holds something else.
        CorruptFileError: it is damaged.
        UnsupportedArchitectureError: metadata and tensors contradict each other.
    """
    checkpoint = read_checkpoint(source)
    tree = checkpoint.tree
    kind = kind_of_tree(tree)
    check_refusals(checkpoint.refused, source.label, inert_allowed=kind is not None)
    if kind is not None:
        raise OtherModelError(f"{source.label} is {kind}")
    assert isinstance(tree, dict)
    try:
        return _contents(checkpoint, tree, source.label)
    except UnsupportedArchitectureError as error:
        text = str(error)
        raise UnsupportedArchitectureError(text if source.label in text else f"{source.label}: {text}") from error


# -- reading


def _contents(checkpoint: Checkpoint, tree: dict[object, object], label: str) -> Contents:
    given: dict[tuple[int, SideName], Mapping[object, object]] = {}
    containers: set[type] = set()
    for width, pair in tree.items():
        if type(width) is not int:
            continue
        containers.add(type(pair))
        for side, tensors in _pair(width, pair):
            given[width, side] = tensors
    sides, old_names = all_named_tensors(given)
    kinds = set(map(type, given.values()))
    metadata = {key: value for key, value in tree.items() if isinstance(key, str)}
    odd = [key for key in tree if type(key) is not int and not isinstance(key, str)]
    if odd:
        raise UnsupportedArchitectureError(
            f"{label} has a key {shown(as_text(odd[0]))} that is neither a width nor text"
        )
    program, variant = identify_variant(metadata, old_names=old_names, lists=list in containers)
    return Contents(
        label,
        "pt",
        checkpoint.container,
        program,
        variant,
        metadata,
        sides,
        old_names,
        checkpoint.read,
        checkpoint.forget,
        checkpoint.stream,
        ordered=kinds == {OrderedDict} if len(kinds) == 1 else None,
    )


def _pair(width: int, pair: object) -> list[tuple[SideName, Mapping[object, object]]]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(side, dict) for side in pair):
        return [("k", pair[0]), ("v", pair[1])]
    raise UnsupportedArchitectureError(
        f"the key {width} holds {_shape_of(pair)}; a pair of state dicts (k, v) was expected"
    )


def _shape_of(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"a {type(value).__name__}{size}"


@dataclass(frozen=True)
class _Era:
    """A time in the webui's history, told by the keys that it began to write."""

    since: str
    key: str


# Newest first: the first key that the file has tells its age.
_ERAS = (
    _Era("from 2022-11", "dropout_structure"),
    _Era("from 2022-11", "optional_info"),
    _Era("2022-10-26", "activate_output"),
    _Era("2022-10-22", "use_dropout"),
    _Era("2022-10-21", "activation_func"),
    _Era("2022-10-21", "layer_structure"),
)


def identify_variant(metadata: Mapping[str, object], *, old_names: bool, lists: bool) -> tuple[str, str]:
    """Program and variant, from the keys, the tensors' names and the kind of the (k, v) pairs."""
    if lists:
        return KOHYA, "NAI-compatible list"
    if "skip_connection" in metadata or "upsample_linear" in metadata:
        residual = "residual blocks" if metadata.get("skip_connection") else "usual layers"
        return "MonkeyPatch extension", residual
    if not metadata:
        return "NovelAI or A1111 webui", "2022-10-07" if old_names else "without metadata"
    if old_names:
        return "A1111 webui", "2022-10-11"
    for era in _ERAS:
        if era.key in metadata:
            return "A1111 webui", era.since
    return "A1111 webui", "2022-10-19"


# -- writing


def write(hypernetwork: Hypernetwork, path: Path) -> None:
    """Write the form that AUTOMATIC1111's webui writes: int keys, tuples, then the metadata as it was read.

    Raises:
        UnsupportedArchitectureError: a composition, which this format cannot hold.
        OSError: The file cannot be written.
    """
    write_outgoing(from_hypernetwork(hypernetwork, SUFFIX), path)


def write_outgoing(outgoing: Outgoing, path: Path) -> None:
    """As `write`, to exactly this path; raises OSError where it cannot be written."""
    tree: dict[object, object] = {}
    kind = OrderedDict if outgoing.ordered else dict
    for width in outgoing.widths:
        tree[width] = tuple(kind(outgoing.sides[width, side]) for side in SIDES)
    tree.update(outgoing.metadata)
    write_tree(path, tree)
