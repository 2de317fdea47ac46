"""The `.pt.optim` beside a hypernetwork: the optimizer's state, from which a webui goes on training.

It names the file that it belongs to by the first ten hex digits of that file's sha256. A converted file has other
bytes, so the name is written anew; nothing else in it changes, and nothing in it is ever run.
"""

from __future__ import annotations

from pathlib import Path

from hnloader.errors import HypernetworkError
from hnloader.files import replacing
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.outgoing import lazily
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import open_source
from hnloader.formats.torch_zip import write_tree
from hnloader.texts import as_text

SUFFIX = ".optim"
_SHORT = 10


def companion_of(path: Path) -> Path:
    """Where the optimizer's state of a file lies: `style.pt.optim`, `style.safetensors.optim`."""
    return path.with_name(path.name + SUFFIX)


def carry(source: Path, source_sha256: str, target: Path, target_sha256: str) -> str | None:
    """Write the companion of `source`, if there is one, as that of `target`.

    Returns:
        What became of it, for the user; None when there is none.

    Raises:
        HypernetworkError: it cannot be written.
    """
    given, wanted = companion_of(source), companion_of(target)
    if not given.is_file():
        return None
    try:
        with open_source(given) as opened:
            checkpoint = read_checkpoint(opened)
            check_refusals(checkpoint.refused, opened.label, inert_allowed=False)
            tree = checkpoint.tree
            if not isinstance(tree, dict) or "optimizer_state_dict" not in tree:
                return f"{given.name} is no optimizer state, and was left where it is"
            belongs = tree.get("hash") == source_sha256[:_SHORT]
            written = {**tree, "hash": target_sha256[:_SHORT]} if belongs else tree
            with replacing(wanted) as temporary:
                write_tree(temporary, lazily(written, checkpoint))
    except HypernetworkError as error:
        if str(error).startswith("cannot write"):
            raise
        return f"{given.name} was left where it is: {as_text(error, 400)}"
    if not belongs:
        return f"{given.name} was copied to {wanted.name}, but belongs to another file: its hash differs"
    return f"{given.name} was copied to {wanted.name} and names the new file"
