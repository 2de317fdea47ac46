"""The webui's `.pt.optim`: the state of the optimizer beside a hypernetwork, read without executing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnloader.errors import CorruptFileError, UnknownFormatError
from hnloader.files import legacy_hash_of, open_regular, sha256_of
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.pickles import TensorRef
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import open_source
from hnloader.formats.trees import mapped

_LEGACY_DIGITS = 8


@dataclass(frozen=True)
class Companion:
    """What the file holds.

    Attributes:
        optimizer: the name of the optimizer's class, such as "AdamW".
        hash: Of the hypernetwork that it belongs to: the first ten hexadecimal digits of its sha256, or the first
            eight of the sha256 of the 64 KiB after its first MiB, as the webui counted up to 2023.
        state: parameter index -> name -> tensor or number. Parameters are counted width by width in the file's
            order, the k side before the v side.
    """

    optimizer: str
    hash: str
    state: dict[int, dict[str, Any]]

    def belongs_to(self, path: Path) -> bool:
        """Whether the file at `path` is the hypernetwork that it was saved beside."""
        if len(self.hash) != _LEGACY_DIGITS:
            return sha256_of(path)[:10] == self.hash.lower()
        with open_regular(path) as file:
            return legacy_hash_of(file) == self.hash.lower()


def read_companion(path: Path) -> Companion:
    """Read a `.pt.optim` file.

    Raises:
        UnsafeFileError: its pickle names or calls something that an optimizer's state does not need.
        UnknownFormatError, CorruptFileError: it is something else, or damaged.
    """
    with open_source(path) as source:
        checkpoint = read_checkpoint(source)
        check_refusals(checkpoint.refused, source.label, inert_allowed=False)
        tree = checkpoint.tree
        state = tree.get("optimizer_state_dict") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(state, dict):
            raise UnknownFormatError(f"{path} is no optimizer state (.pt.optim)")
        values = mapped(
            state.get("state"), lambda part: checkpoint.read(part).clone() if isinstance(part, TensorRef) else part
        )
    if not isinstance(values, dict) or not all(isinstance(each, dict) for each in values.values()):
        raise CorruptFileError(f"{path}: its optimizer state has no state per parameter")
    name = tree.get("optimizer_name")
    # The webui takes a file that does not say for AdamW's: before it had others, it wrote no name.
    return Companion("AdamW" if name is None else str(name), str(tree.get("hash")), values)
