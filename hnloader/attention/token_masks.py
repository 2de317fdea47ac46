"""Windows by token position: the tokens of a call on which a hypernetwork acts."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from hnloader.texts import shown

__all__ = ["TokenMask", "check_tokens"]

Tokens = tuple[int, "int | None"]


def check_tokens(tokens: Any) -> Tokens:
    """Return a window by token position as a pair. Raises ValueError for another value."""
    pair = tuple(tokens) if isinstance(tokens, (tuple, list)) else ()
    if len(pair) == 2 and type(pair[0]) is int and pair[0] >= 0:
        first, end = pair
        if end is None or (type(end) is int and end > first):
            return first, end
    raise ValueError(f"Tokens: found {shown(tokens)}. Use a pair of positions such as (10, 50) or (10, None).")


class TokenMask:
    """The mask of a window for the present call of each thread.

    Attributes:
        last: The mask that was set last in any thread, None before the first. [rows, tokens, 1].
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, Tensor] = {}
        self.last: Tensor | None = None

    def set(self, positions: Tensor, window: Tokens) -> bool | None:
        """Begin a call with tokens at these positions [rows, tokens].

        Returns:
            Whether all tokens are in the window; None if some are.
        """
        first, end = window
        inside = positions >= first if end is None else (positions >= first) & (positions < end)
        count = int(inside.sum())  # waits for an accelerator
        if count in (0, inside.numel()):
            return count > 0
        self.last = self._by_thread[threading.get_ident()] = inside[..., None]
        return None

    def present(self) -> Tensor:
        """Return the mask of this thread's call: [rows, tokens, 1]. Gradients may be computed in another thread."""
        found = self._by_thread.get(threading.get_ident(), self.last)
        assert found is not None, "the model's call sets the mask"
        return found

    def forget(self) -> None:
        """Free the masks."""
        self._by_thread.clear()
        self.last = None

    def __getstate__(self) -> dict[str, object]:
        """Copy no call."""
        return {"_by_thread": {}, "last": self.last}
