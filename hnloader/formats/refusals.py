"""Say that a file is unsafe or unusual, from what its pickle names or calls that no hypernetwork needs."""

from __future__ import annotations

from collections.abc import Sequence

from hnloader.errors import UnsafeFileError, UnsupportedArchitectureError
from hnloader.formats.pickles import Refusal
from hnloader.texts import as_text


def check_refusals(refused: Sequence[Refusal], label: str, *, inert_allowed: bool = False) -> None:
    """Raise an error for what a pickle may not hold.

    Args:
        refused: What the pickle names or calls that is not on the allow-list.
        label: What messages call the file.
        inert_allowed: The file is refused anyway, as another kind of model, so that what sound files of other kinds
            hold needs no remark.

    Raises:
        UnsafeFileError: Something in it could run.
        UnsupportedArchitectureError: Nothing in it can run, but no hypernetwork holds it and hnloader does not read it.
    """
    harmful = [refusal for refusal in refused if not refusal.is_harmless]
    if harmful:
        raise UnsafeFileError(
            f"{label} is not safe: its pickle holds {listed(harmful)}. A hypernetwork holds only numbers, text and "
            "tensors. Nothing was run. Do not open the file with other programs; get it from another source."
        )
    if refused and not inert_allowed:
        raise UnsupportedArchitectureError(
            f"{label} is unusual: its pickle holds {listed(refused)}, which hnloader does not read. Nothing in it can "
            "run. Save the file again without it."
        )


def listed(refused: Sequence[Refusal]) -> str:
    """Return the first three in words, and how many more there are."""
    named = ", ".join(dict.fromkeys(_printable(refusal) for refusal in refused[:3]))
    return named + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")


def _printable(refusal: Refusal) -> str:
    text = f"{as_text(refusal.what, 160)} at byte {refusal.offset}"
    return "".join(char if char.isprintable() else "?" for char in text)[:160]
