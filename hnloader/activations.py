"""The activation functions that hypernetwork files name, and what each name means.

A file names its activation in the key `activation_func`. The names are the lower-cased class names of
`torch.nn.modules.activation`, plus a few of the originals' own: "swish" there means Hardswish, not SiLU.
"""

from __future__ import annotations

import difflib

from torch import nn

from hnloader.errors import UnsupportedArchitectureError
from hnloader.texts import shown

_CLASSES: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.LogSoftmax,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.RReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)

ACTIVATIONS: dict[str, type[nn.Module]] = {cls.__name__.lower(): cls for cls in _CLASSES}
ACTIVATIONS["swish"] = nn.Hardswish

# They look at more than one value: over the images of a batch, for the usual contexts [batch, tokens, width].
MIXING: tuple[type[nn.Module], ...] = (nn.LogSoftmax, nn.Softmax, nn.Softmax2d, nn.Softmin)

# Names that the originals accept in a file but whose network they cannot compute either.
_IMPOSSIBLE = {
    "threshold": "it needs a threshold and a value, which the file does not hold",
    "multiheadattention": "it needs arguments that the file does not hold",
    "glu": "it halves the width, so the next layer does not fit",
}


def canonical_activation(name: object) -> str | None:
    """The activation that `name`, the value of the key activation_func, stands for.

    Returns:
        None for no activation (None or "linear"), else a key of `ACTIVATIONS`.

    Raises:
        UnsupportedArchitectureError: the name is unknown or stands for something that cannot be computed.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise UnsupportedArchitectureError(f"activation_func is {shown(name)}; a name such as 'relu' was expected")
    folded = name.strip().lower()
    if folded == "linear":
        return None
    if folded in ACTIVATIONS:
        return folded
    if folded in _IMPOSSIBLE:
        raise UnsupportedArchitectureError(f"activation_func {name!r} cannot be computed: {_IMPOSSIBLE[folded]}")
    close = difflib.get_close_matches(folded, [*ACTIVATIONS, "linear"], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnsupportedArchitectureError(f"activation_func {shown(name)} is not an activation that torch has{hint}")


def make_activation(name: str) -> nn.Module:
    """A new module for `name`, a key of `ACTIVATIONS`, with torch's default arguments."""
    return ACTIVATIONS[name]()
