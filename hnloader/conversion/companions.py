"""The `.pt.optim` beside a hypernetwork: the state of the optimizer, from which a webui resumes training.

It names its file by the first ten hex digits of that file's sha256. A converted file has other bytes, so its state gets
a new name; nothing else in the state changes, and nothing in it is ever run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnloader.errors import HypernetworkError
from hnloader.formats.checkpoint import Checkpoint, read_checkpoint
from hnloader.formats.outgoing import lazily_stored
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import open_source
from hnloader.formats.torch_zip import write_tree
from hnloader.texts import as_text

__all__ = ["State", "companion_of", "opened_state"]

_SUFFIX = ".optim"
_SHORT = 10


def companion_of(path: Path) -> Path:
    """Return the path of the state of a file: `style.pt.optim`, `style.safetensors.optim`."""
    return path.with_name(path.name + _SUFFIX)


@dataclass(frozen=True)
class State:
    """The state of a file, opened.

    Attributes:
        path: Its path.
        belongs: It names the file beside it.
    """

    path: Path
    belongs: bool
    _tree: dict[object, object]
    _checkpoint: Checkpoint

    def write(self, path: Path, sha256: str) -> None:
        """Write it to exactly this path as the state of a file of that hash. Raises HypernetworkError."""
        tree = {**self._tree, "hash": sha256[:_SHORT]} if self.belongs else self._tree
        try:
            write_tree(path, lazily_stored(tree, self._checkpoint))
        except OSError as error:
            raise HypernetworkError(
                f"{path}: cannot write the file ({error.strerror or error}). Check the folder and the disk."
            ) from error

    def is_written(self, path: Path, sha256: str) -> bool:
        """Return True if `path` is a state that names the file of that hash."""
        try:
            with open_source(path) as opened:
                tree = read_checkpoint(opened).tree
        except HypernetworkError:
            return False
        return isinstance(tree, dict) and "optimizer_state_dict" in tree and tree.get("hash") == sha256[:_SHORT]

    def described(self, target: Path) -> str:
        """Return a note about its copy."""
        if not self.belongs:
            return f"{self.path.name} was copied to {target.name}, but belongs to another file: its hash differs"
        return f"{self.path.name} was copied to {target.name} and names the new file"


@contextlib.contextmanager
def opened_state(path: Path, source_sha256: Callable[[], str]) -> Iterator[State | str]:
    """Open the state of a file, or yield a note if it cannot be used.

    Raises:
        CorruptFileError: The file changed meanwhile.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_source(path))
            checkpoint = read_checkpoint(opened)
            check_refusals(checkpoint.refused, opened.label, inert_allowed=False)
        except HypernetworkError as error:
            yield f"{path.name} was not copied: {as_text(error, 400)}"
            return
        tree = checkpoint.tree
        if not isinstance(tree, dict) or "optimizer_state_dict" not in tree:
            yield f"{path.name} was not copied: it holds no optimizer state"
            return
        yield State(path, tree.get("hash") == source_sha256()[:_SHORT], tree, checkpoint)
