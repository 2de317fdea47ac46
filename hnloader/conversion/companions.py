"""The `.pt.optim` beside a hypernetwork: the optimizer's state, from which a webui goes on training.

It names the file that it belongs to by the first ten hex digits of that file's sha256. A converted file has other
bytes, so the name is written anew; nothing else in it changes, and nothing in it is ever run.
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

SUFFIX = ".optim"
_SHORT = 10


def companion_of(path: Path) -> Path:
    """Where the optimizer's state of a file lies: `style.pt.optim`, `style.safetensors.optim`."""
    return path.with_name(path.name + SUFFIX)


@dataclass(frozen=True)
class State:
    """The companion of a file, opened.

    Attributes:
        path: Where it is.
        belongs: It names the file beside it.
    """

    path: Path
    belongs: bool
    _tree: dict[object, object]
    _checkpoint: Checkpoint

    def write(self, path: Path, sha256: str) -> None:
        """Write it as the companion of a file of that hash, to exactly this path.

        Raises:
            HypernetworkError: It cannot be written.
        """
        try:
            write_tree(path, lazily_stored(self._for(sha256), self._checkpoint))
        except OSError as error:
            raise HypernetworkError(f"cannot write {path}: {error.strerror or error}") from error

    def is_written(self, path: Path, sha256: str) -> bool:
        """Return whether `path` is a companion that names the file of that hash, as `write` would have written it."""
        try:
            with open_source(path) as opened:
                tree = read_checkpoint(opened).tree
        except HypernetworkError:
            return False
        return isinstance(tree, dict) and "optimizer_state_dict" in tree and tree.get("hash") == sha256[:_SHORT]

    def told(self, target: Path) -> str:
        """Say what became of it."""
        if not self.belongs:
            return f"{self.path.name} was copied to {target.name}, but belongs to another file: its hash differs"
        return f"{self.path.name} was copied to {target.name} and names the new file"

    def _for(self, sha256: str) -> dict[object, object]:
        return {**self._tree, "hash": sha256[:_SHORT]} if self.belongs else self._tree


@contextlib.contextmanager
def opened_state(path: Path, source_sha256: Callable[[], str]) -> Iterator[State | str]:
    """Open the companion `path` of a file; yield why it is left alone where it cannot be used.

    Raises:
        CorruptFileError: It was changed meanwhile.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_source(path))
            checkpoint = read_checkpoint(opened)
            check_refusals(checkpoint.refused, opened.label, inert_allowed=False)
        except HypernetworkError as error:
            yield f"{path.name} was left where it is: {as_text(error, 400)}"
            return
        tree = checkpoint.tree
        if not isinstance(tree, dict) or "optimizer_state_dict" not in tree:
            yield f"{path.name} holds no optimizer state, and was left where it is"
            return
        yield State(path, tree.get("hash") == source_sha256()[:_SHORT], tree, checkpoint)
