"""Says that a file is unsafe, from what its pickle names or calls that no hypernetwork needs."""

from __future__ import annotations

from collections.abc import Sequence

from hnloader.errors import UnsafeFileError
from hnloader.formats.pickles import Refusal

# Globals of programs whose full checkpoints carry more than tensors. They are not honoured either; they only
# decide whether a file is called "another kind of model" (or a damaged one) or "unsafe".
_INERT = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "numpy.core.multiarray.",
    "numpy._core.multiarray.",
    "numpy.dtype",
    "torch.storage.",
    "torch.nn.modules.container.ParameterDict",
    "collections.defaultdict",
    "typing.Any",
)


def check_refusals(refused: Sequence[Refusal], label: str, *, inert_allowed: bool) -> None:
    """Raise UnsafeFileError for what a pickle may not hold.

    Args:
        refused: what the pickle names or calls that is not on the allow-list.
        label: what messages call the file.
        inert_allowed: the file is refused anyway, as another kind of model or as damaged, so that the usual
            extras of full checkpoints need no alarm.
    """
    if inert_allowed and all(refusal.name.startswith(_INERT) for refusal in refused):
        return
    if refused:
        named = ", ".join(dict.fromkeys(_printable(refusal) for refusal in refused[:3]))
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise UnsafeFileError(
            f"{label} is not safe: its pickle holds {named}{more}. A hypernetwork holds only numbers, text and "
            "tensors. Nothing was run. Do not open the file with other programs; get it from another source."
        )


def _printable(refusal: Refusal) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(refusal))[:160]
