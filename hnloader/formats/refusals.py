"""Refuse a file for what its pickle names or calls and no hypernetwork needs."""

from __future__ import annotations

from collections.abc import Sequence

from hnloader.errors import UnsafeFileError, UnsupportedArchitectureError
from hnloader.formats.pickles import Refusal
from hnloader.texts import as_text

__all__ = ["check_refusals"]


def check_refusals(refused: Sequence[Refusal], label: str, *, inert_allowed: bool = False) -> None:
    """Raise an error for what a pickle may not hold.

    Args:
        refused: What the pickle names or calls that is not on the allow-list.
        label: Name of the file in messages.
        inert_allowed: Accept what sound files of other kinds hold, because the file is refused anyway as one of them.

    Raises:
        UnsafeFileError: Something in it could run.
        UnsupportedArchitectureError: Nothing in it can run, but hnloader does not read it.
    """
    harmful = [refusal for refusal in refused if not refusal.is_harmless]
    if harmful:
        raise UnsafeFileError(
            f"{label} is not safe: its pickle holds {_listed(harmful)}. A hypernetwork holds only numbers, text and "
            "tensors. Nothing was run. Do not open the file with other programs; get it from another source."
        )
    if refused and not inert_allowed:
        raise UnsupportedArchitectureError(
            f"{label} is unusual: its pickle holds {_listed(refused)}, which hnloader does not read. Nothing in it can "
            "run. Save the file again without it."
        )


def _listed(refused: Sequence[Refusal]) -> str:
    named = ", ".join(dict.fromkeys(_printable(refusal) for refusal in refused[:3]))
    return named + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")


def _printable(refusal: Refusal) -> str:
    text = f"{as_text(refusal.what, 160)} at byte {refusal.offset}"
    return "".join(char if char.isprintable() else "?" for char in text)[:160]
