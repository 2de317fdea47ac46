"""The tensors of any checkpoint file, read one at a time: `.safetensors`, or a pickle of `torch.save`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hnloader.errors import HypernetworkError, ModelError
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.outgoing import Lazy, lazily_stored
from hnloader.formats.refusals import check_refusals
from hnloader.formats.safetensors import read_lazily
from hnloader.formats.source import Source, open_source

__all__ = ["WeightFile", "open_weights"]


@dataclass(frozen=True, eq=False)
class WeightFile:
    """An opened file of tensors.

    Attributes:
        tensors: The tensors by name. Their data is read on demand, while the file is open.
        metadata: The text in the header of a safetensors file.
    """

    tensors: Mapping[str, Lazy]
    metadata: Mapping[str, str]


@contextlib.contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[WeightFile]:
    """Open a file of tensors without reading their data. Nothing in it is run.

    In a pickle, the tensors of the key `state_dict` count if there is one; other values are left out.

    Raises:
        ModelError: The file is damaged, or holds something else.
        HypernetworkError: The file cannot be opened, or changes meanwhile.
    """
    with open_source(path) as source:
        try:
            opened = WeightFile(*read_lazily(source)) if source.head[8:9] == b"{" else _from_pickle(source)
        except HypernetworkError as error:
            reason = str(error).strip().splitlines()[0].removeprefix(f"{source.label}: ")[:200]
            raise ModelError(
                f"{source.label}: cannot be read as plain weights ({reason}) Give the model as .safetensors or as a "
                "diffusers folder."
            ) from error
        yield opened


def _from_pickle(source: Source) -> WeightFile:
    checkpoint = read_checkpoint(source)
    check_refusals(checkpoint.refused, source.label, inert_allowed=True)
    content = lazily_stored(checkpoint.tree, checkpoint)
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise ModelError(f"Found a {type(content).__name__} instead of a dict of weights.")
    return WeightFile({str(name): tensor for name, tensor in content.items() if isinstance(tensor, Lazy)}, {})
