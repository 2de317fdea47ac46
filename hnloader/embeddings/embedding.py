"""What a textual-inversion embedding is: vectors that stand for a word in the text encoder's input."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hnloader.errors import CorruptFileError, UnsupportedArchitectureError
from hnloader.families import embedding_family

MAX_VECTORS = 4096
# The key of the vectors for SD 3's third text encoder.
T5 = "t5xxl"
_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(eq=False)
class Embedding:
    """A textual-inversion embedding.

    Attributes:
        vectors: [count, width] in the stored dtype, on the CPU: what the text encoder receives in the place of
            the word; width 768 for SD 1, 1024 for SD 2, 768 for the first encoder of SDXL (clip_l).
        vectors_g: [count, 1280], for the second encoder of SDXL (clip_g); None for a model of one encoder.
        name: the word by which a webui calls it: the file's stem, in images the name that they hold.
        step: how many steps it was trained for; None where the file does not say.
        sd_checkpoint: short hash of the checkpoint that it was trained on.
        sd_checkpoint_name: that checkpoint's name.
        metadata: every other key of the file.
        token: the word in a file of diffusers' form, by which diffusers calls it; None for other files.
        others: tensors for further text encoders, by their key; `t5xxl` [count, 4096] for SD 3.
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
        """Check the vectors; a single one may be given as [width].

        Raises:
            UnsupportedArchitectureError: they are no vectors, or not as many for both encoders.
            CorruptFileError: a value is not finite.
        """
        self.others = {
            key: _checked(tensor, key) if key == T5 else tensor.detach().cpu().contiguous()
            for key, tensor in self.others.items()
        }
        self.vectors = _checked(self.vectors, "vectors")
        if self.vectors_g is not None:
            self.vectors_g = _checked(self.vectors_g, "vectors for the second encoder")
            if len(self.vectors_g) != len(self.vectors):
                raise UnsupportedArchitectureError(
                    f"it has {len(self.vectors)} vectors for the first text encoder and {len(self.vectors_g)} for the "
                    "second; as many for both were expected"
                )

    @property
    def count(self) -> int:
        """How many vectors: how many tokens of the prompt it takes."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Values per vector of the first (or only) text encoder."""
        return self.vectors.shape[1]

    @property
    def made_for(self) -> str:
        """The family of models whose text encoders have these widths."""
        if T5 in self.others:
            return "SD 3"
        widths = [tensor.shape[1] for tensor in (self.vectors, self.vectors_g) if tensor is not None]
        return embedding_family(widths) or f"a text encoder of {self.width}"


def _checked(given: Tensor, what: str) -> Tensor:
    if given.dim() == 1:
        given = given.unsqueeze(0)
    if given.dim() != 2 or given.dtype not in _FLOATING or not 1 <= len(given) <= MAX_VECTORS or given.shape[1] == 0:
        raise UnsupportedArchitectureError(
            f"its {what} are a {given.dtype} tensor of shape {list(given.shape)}; "
            f"[count, width] floating-point values, at most {MAX_VECTORS:,} vectors, were expected"
        )
    if not torch.isfinite(given).all():
        raise CorruptFileError(
            f"its {what} hold values that are NaN or infinite: the training diverged or the file is damaged"
        )
    return given.detach().cpu().contiguous()
