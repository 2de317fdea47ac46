"""The webui's `.pt.optim`: the state of the optimizer beside a hypernetwork, read without executing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnloader.errors import CorruptFileError, UnknownFormatError
from hnloader.files import sha256_of
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.pickles import TensorRef
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import open_source
from hnloader.formats.trees import mapped


@dataclass(frozen=True)
class Companion:
    """What the file holds.

    Attributes:
        optimizer: the name of the optimizer's class, such as "AdamW".
        hash: the first ten hexadecimal digits of the sha256 of the hypernetwork that it belongs to.
        state: parameter index -> name -> tensor or number. Parameters are counted width by width in the file's
            order, the k side before the v side.
    """

    optimizer: str
    hash: str
    state: dict[int, dict[str, Any]]

    def belongs_to(self, path: Path) -> bool:
        """Whether the file at `path` is the hypernetwork that it was saved beside."""
        return sha256_of(path)[:10] == self.hash


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
    return Companion(str(tree.get("optimizer_name")), str(tree.get("hash")), values)
