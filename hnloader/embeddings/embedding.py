"""The `Embedding` class."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hnloader.errors import CorruptFileError, UnsupportedArchitectureError
from hnloader.families import embedding_family

__all__ = ["MAX_VECTORS", "T5", "Embedding"]

MAX_VECTORS = 4096
# Key of the vectors for the third text encoder of SD 3.
T5 = "t5xxl"
_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(eq=False)
class Embedding:
    """A textual-inversion embedding: vectors that stand for a word in the input of a text encoder.

    Attributes:
        vectors: The vectors [count, width] in the stored dtype, on the CPU. The width is 768 for SD 1 and the first
            encoder of SDXL (clip_l), 1024 for SD 2. A single vector may be given as [width].
        vectors_g: The vectors [count, 1280] for the second encoder of SDXL (clip_g). Default: None.
        name: Name in webuis: the stem of the file, or the name in an image. Default: "".
        step: Number of training steps. Default: None, unknown.
        sd_checkpoint: Short hash of the checkpoint that it was trained on. Default: None.
        sd_checkpoint_name: Name of that checkpoint. Default: None.
        metadata: All other keys of the file. Default: empty.
        token: Token in a file of diffusers, by which diffusers calls it. Default: None.
        others: Tensors for further text encoders by key: `t5xxl` [count, 4096] for SD 3. Default: empty.

    Raises:
        UnsupportedArchitectureError: A tensor has another shape or type, or the counts of both encoders differ.
        CorruptFileError: A value is NaN or infinite.

    Example:
        >>> import torch
        >>> from hnloader.embeddings import Embedding
        >>> embedding = Embedding(torch.zeros(4, 768), name="style")
        >>> embedding.count, embedding.made_for
        (4, 'SD 1')
    """

    vectors: Tensor
    vectors_g: Tensor | None = None
    name: str = ""
    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    token: str | None = None
    others: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.others = {
            key: _checked(tensor, key) if key == T5 else tensor.detach().cpu().contiguous()
            for key, tensor in self.others.items()
        }
        self.vectors = _checked(self.vectors, "vectors")
        if self.vectors_g is not None:
            self.vectors_g = _checked(self.vectors_g, "vectors for the second encoder")
            if len(self.vectors_g) != len(self.vectors):
                raise UnsupportedArchitectureError(
                    f"Found {len(self.vectors)} vectors for the first text encoder and {len(self.vectors_g)} for the "
                    "second. Both need the same number."
                )

    @property
    def count(self) -> int:
        """Number of vectors, and of tokens that it takes in a prompt."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Width of the vectors of the first or only text encoder."""
        return self.vectors.shape[1]

    @property
    def made_for(self) -> str:
        """Family of models whose text encoders have these widths."""
        if T5 in self.others:
            return "SD 3"
        widths = [tensor.shape[1] for tensor in (self.vectors, self.vectors_g) if tensor is not None]
        encoders = "a text encoder" if len(widths) == 1 else "text encoders"
        return embedding_family(widths) or f"{encoders} of {' and '.join(f'{width}' for width in widths)}"


def _checked(given: Tensor, what: str) -> Tensor:
    if given.dim() == 1:
        given = given.unsqueeze(0)
    if given.dim() != 2 or given.dtype not in _FLOATING or not 1 <= len(given) <= MAX_VECTORS or given.shape[1] == 0:
        raise UnsupportedArchitectureError(
            f"Found {given.dtype} of shape {list(given.shape)} as {what}. Expected floating-point values "
            f"[count, width], at most {MAX_VECTORS:,} vectors."
        )
    if not torch.isfinite(given).all():
        raise CorruptFileError(
            f"The {what} hold values that are NaN or infinite: the training diverged, or the file is damaged. Use an "
            "earlier step."
        )
    return given.detach().cpu().contiguous()
