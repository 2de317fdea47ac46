"""The activation functions of hypernetwork files, by name.

The key `activation_func` holds the lower-case name of a class of `torch.nn.modules.activation`, or a name of the
original programs: "swish" means Hardswish, not SiLU.
"""

from __future__ import annotations

import difflib

from torch import nn

from hnloader.errors import UnsupportedArchitectureError
from hnloader.texts import shown

__all__ = ["ACTIVATIONS", "MIXING", "canonical_activation", "make_activation"]

_CLASSES = """CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU ReLU
    ReLU6 RReLU SELU Sigmoid SiLU Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink"""

ACTIVATIONS: dict[str, type[nn.Module]] = {name.lower(): getattr(nn, name) for name in _CLASSES.split()}
ACTIVATIONS["swish"] = nn.Hardswish

# Activations that mix values: those of all images of a batch, for the usual contexts [batch, tokens, width].
MIXING: tuple[type[nn.Module], ...] = (nn.LogSoftmax, nn.Softmax, nn.Softmax2d, nn.Softmin)

# Names that the original programs accept in a file without being able to compute the network.
_IMPOSSIBLE = {
    "threshold": "it needs a threshold and a value, which files lack",
    "multiheadattention": "it needs arguments that files lack",
    "glu": "it halves the width, so the next layer does not fit",
}


def canonical_activation(name: object) -> str | None:
    """Return the activation that a value of the key activation_func names.

    Returns:
        A key of `ACTIVATIONS`, or None for None and "linear".

    Raises:
        UnsupportedArchitectureError: The name is unknown, or names an activation that cannot be computed.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise UnsupportedArchitectureError(f"The key activation_func is {shown(name)}. Use a name such as 'relu'.")
    folded = name.strip().lower()
    if folded == "linear":
        return None
    if folded in ACTIVATIONS:
        return folded
    if folded in _IMPOSSIBLE:
        raise UnsupportedArchitectureError(
            f"The activation_func {name!r} cannot be computed: {_IMPOSSIBLE[folded]}. Use another one."
        )
    close = difflib.get_close_matches(folded, [*ACTIVATIONS, "linear"], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" Use one of {', '.join(ACTIVATIONS)}."
    raise UnsupportedArchitectureError(f"The activation_func {shown(name)} is unknown.{hint}")


def make_activation(name: str) -> nn.Module:
    """Return a new module for a key of `ACTIVATIONS`, with torch's default arguments."""
    return ACTIVATIONS[name]()
