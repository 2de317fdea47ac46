"""The `.pt` format of the webuis: int keys with a (k, v) pair of state dicts, and string keys with metadata.

Reads files of NovelAI-style modules, AUTOMATIC1111's webui, the MonkeyPatch extension and kohya's trainer; writes the
form of AUTOMATIC1111's webui. docs/format.md describes the layout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from hnloader.errors import OtherModelError, UnsupportedArchitectureError
from hnloader.formats.checkpoint import ZIP_MAGIC, Checkpoint, is_legacy_stream, read_checkpoint
from hnloader.formats.contents import Contents, all_named_tensors
from hnloader.formats.identify import kind_of_tree
from hnloader.formats.outgoing import Outgoing
from hnloader.formats.refusals import check_refusals
from hnloader.formats.registry import FileFormat
from hnloader.formats.source import Source
from hnloader.formats.torch_zip import write_tree
from hnloader.network import SIDES, SideName
from hnloader.scopes import Scope
from hnloader.texts import as_text, shown

__all__ = ["FORMAT"]

_KOHYA = "kohya trainer"


def _detect(source: Source) -> bool:
    """Return whether torch.save may have written a file."""
    return source.head.startswith(ZIP_MAGIC) or is_legacy_stream(source.head)


def _read(source: Source) -> Contents:
    checkpoint = read_checkpoint(source)
    tree = checkpoint.tree
    kind = kind_of_tree(tree)
    check_refusals(checkpoint.refused, source.label, inert_allowed=kind is not None)
    if kind is not None:
        raise OtherModelError(f"{source.label} is {kind}.")
    assert isinstance(tree, dict)
    try:
        return _contents(checkpoint, tree, source.label)
    except UnsupportedArchitectureError as error:
        text = str(error)
        raise UnsupportedArchitectureError(text if source.label in text else f"{source.label}: {text}") from error


def _contents(checkpoint: Checkpoint, tree: dict[object, object], label: str) -> Contents:
    given: dict[tuple[Scope, SideName], Mapping[object, object]] = {}
    containers: set[type] = set()
    for width, pair in tree.items():
        if type(width) is not int:
            continue
        containers.add(type(pair))
        given |= {(Scope(width), side): tensors for side, tensors in _pair(width, pair)}
    sides, old_names = all_named_tensors(given)
    kinds = set(map(type, given.values()))
    metadata = {key: value for key, value in tree.items() if isinstance(key, str)}
    if odd := [key for key in tree if type(key) is not int and not isinstance(key, str)]:
        raise UnsupportedArchitectureError(
            f"{label}: found the key {shown(as_text(odd[0]))}. Use whole numbers as widths and text as other keys."
        )
    program, variant = identify_variant(metadata, old_names=old_names, lists=list in containers)
    return Contents(
        label=label,
        format="pt",
        container=checkpoint.container,
        program=program,
        variant=variant,
        metadata=metadata,
        sides=sides,
        old_names=old_names,
        read=checkpoint.read,
        forget=checkpoint.forget,
        stream=checkpoint.stream,
        ordered=kinds == {OrderedDict} if len(kinds) == 1 else None,
    )


def _pair(width: int, pair: object) -> list[tuple[SideName, Mapping[object, object]]]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(side, dict) for side in pair):
        return [("k", pair[0]), ("v", pair[1])]
    size = f" of {len(pair)}" if isinstance(pair, (tuple, list, dict)) else ""
    raise UnsupportedArchitectureError(
        f"The key {width} holds a {type(pair).__name__}{size}. Expected a pair of state dicts (k, v)."
    )


# When AUTOMATIC1111's webui began to write each key, newest first: the first one in a file tells its age.
_ERAS = {
    "dropout_structure": "from 2022-11",
    "optional_info": "from 2022-11",
    "activate_output": "2022-10-26",
    "use_dropout": "2022-10-22",
    "activation_func": "2022-10-21",
    "layer_structure": "2022-10-21",
}


def identify_variant(metadata: Mapping[str, object], *, old_names: bool, lists: bool) -> tuple[str, str]:
    """Return program and variant, by the keys, the names of the tensors, and whether the (k, v) pairs are lists."""
    if lists:
        return _KOHYA, "NAI-compatible list"
    if "skip_connection" in metadata or "upsample_linear" in metadata:
        return "MonkeyPatch extension", "residual blocks" if metadata.get("skip_connection") else "usual layers"
    if not metadata:
        return "NovelAI or A1111 webui", "2022-10-07" if old_names else "without metadata"
    if old_names:
        return "A1111 webui", "2022-10-11"
    return "A1111 webui", next((era for key, era in _ERAS.items() if key in metadata), "2022-10-19")


def _write(outgoing: Outgoing, path: Path) -> None:
    """Write int keys and tuples, then the metadata in the order in which they were read."""
    kind = OrderedDict if outgoing.ordered else dict
    if limited := [scope for scope in outgoing.scopes if not scope.whole]:
        raise UnsupportedArchitectureError(
            f"{shown(outgoing.name)}: the sides of {limited[0].label} are for some of the attention layers. Programs "
            "that read .pt files apply all sides to all layers of a width. Save as .safetensors."
        )
    tree: dict[object, object] = {
        scope.width: tuple(kind(outgoing.sides[scope, side]) for side in SIDES) for scope in outgoing.scopes
    }
    tree.update(outgoing.metadata)
    write_tree(path, tree)


def _changes(contents: Contents) -> tuple[str, ...]:
    if not contents.origin.startswith(_KOHYA):
        return ()
    return ("Pairs of sides are tuples, as the webui writes them. kohya's trainer wrote lists.",)


FORMAT = FileFormat(
    name="pt",
    label="pt (webuis)",
    suffixes=(".pt",),
    detect=_detect,
    read=_read,
    write=_write,
    rank=20,
    changes=_changes,
)
