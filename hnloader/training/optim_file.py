"""The webui's `.pt.optim`: the optimizer state next to a hypernetwork, read as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import optim

from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError
from hnloader.files import legacy_hash_of, open_regular, sha256_of
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.pickles import TensorRef
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import open_source
from hnloader.formats.trees import mapped
from hnloader.training.optimizers import check_state

_LEGACY_DIGITS = 8


@dataclass(frozen=True)
class OptimFile:
    """The content of a `.pt.optim` file.

    Attributes:
        optimizer: The class name of the optimizer, such as "AdamW".
        hash: A hash of the hypernetwork: the first ten hexadecimal digits of its sha256, or the first eight of the
            sha256 of the 64 KiB after its first MiB, which the webui used up to 2023.
        state: Parameter index -> name -> tensor or number. The parameters follow the order of the file: width by
            width, the k side before the v side.
    """

    optimizer: str
    hash: str
    state: dict[int, dict[str, Any]]

    def belongs_to(self, path: Path) -> bool:
        """Return True for the hypernetwork that it was saved with."""
        if len(self.hash) != _LEGACY_DIGITS:
            return sha256_of(path)[:10] == self.hash.lower()
        with open_regular(path) as file:
            return legacy_hash_of(file) == self.hash.lower()


def read_optim_file(path: Path) -> OptimFile:
    """Read a `.pt.optim` file.

    Raises:
        UnsafeFileError: Its pickle imports or calls something that an optimizer state does not need.
        UnknownFormatError: The file holds something else.
        CorruptFileError: The file is damaged.
    """
    with open_source(path) as source:
        checkpoint = read_checkpoint(source)
        check_refusals(checkpoint.refused, source.label, inert_allowed=False)
        tree = checkpoint.tree
        state = tree.get("optimizer_state_dict") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(state, dict):
            raise UnknownFormatError(f"{path}: expected an optimizer state. Remove it to start with a new one.")
        values = mapped(
            state.get("state"), lambda part: checkpoint.read(part).clone() if isinstance(part, TensorRef) else part
        )
    if not isinstance(values, dict) or not all(isinstance(each, dict) for each in values.values()):
        raise CorruptFileError(f"{path} is damaged: it lacks parameters. Remove it to start with a new one.")
    name = tree.get("optimizer_name")
    # Files without a name are from before the webui had other optimizers than AdamW.
    return OptimFile("AdamW" if name is None else str(name), str(tree.get("hash")), values)


def load_optim_file(hypernetwork: Path, optimizer: optim.Optimizer, name: str) -> str | None:
    """Set an optimizer from the `.pt.optim` next to a hypernetwork, if it belongs to this file and optimizer.

    Args:
        hypernetwork: The path of the hypernetwork.
        optimizer: The optimizer to set.
        name: Its name in the settings, such as "adamw".

    Returns:
        The reason why the file was not used; None if it was.

    Raises:
        HypernetworkError: The file is unsafe or damaged.
    """
    path = hypernetwork.with_name(hypernetwork.name + ".optim")
    if not path.is_file():
        return f"{path.name} does not exist"
    found = read_optim_file(path)
    if found.optimizer.lower() != name:
        return f"{path.name} is for the optimizer {found.optimizer}, not {name}"
    if not found.belongs_to(hypernetwork):
        return f"{path.name} belongs to another file"
    state = optimizer.state_dict()
    state["state"] = found.state
    try:
        check_state(optimizer, [value for group in optimizer.param_groups for value in group["params"]], state)
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise HypernetworkError(
            f"{path} does not fit its hypernetwork: {error} Remove it to start with a new optimizer."
        ) from error
    return None
