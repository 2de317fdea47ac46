"""Learning rates over the steps: one that falls, or the webui's piecewise ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hnloader.errors import ConfigError

FLOOR = 0.01


@dataclass(frozen=True)
class Rate:
    """Learning rates, each up to a step; the last up to the end.

    Attributes:
        pieces: (rate, last step at which it holds), steps counted from 1, rising.
        before: Steps that were done before this training, in the file that it starts from: pieces count them.
    """

    pieces: tuple[tuple[float, int], ...]
    before: int = 0

    def at(self, step: int, *, schedule: str = "constant", warmup: int = 0) -> float:
        """The learning rate of `step` of this training, counted from 1.

        Args:
            schedule: how a single rate falls towards its hundredth: "constant", "linear" or "cosine". Piecewise
                rates say themselves how they fall.
            warmup: steps over which the rate rises evenly from nothing.
        """
        total = self.pieces[-1][1] - self.before
        rate = next((rate for rate, last in self.pieces if self.before + step <= last), self.pieces[-1][0])
        if len(self.pieces) == 1 and schedule != "constant":
            done = min((step - 1) / max(total - 1, 1), 1.0)
            share = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
            rate *= FLOOR + (1 - FLOOR) * share
        return rate * min(step / warmup, 1.0) if warmup else rate


def parse_rate(text: str, steps: int, before: int = 0) -> Rate:
    """Read "1e-4" or the webui's "5e-5:100, 1e-5:1000, 1e-6".

    Args:
        text: One rate, or pieces with the step up to which each holds.
        steps: Steps of this training.
        before: Steps that the file to start from was trained for already; the pieces' steps count them.

    Raises:
        ConfigError: it is neither, a rate is not in (0, 10), or the steps do not rise.
    """
    end = before + steps
    given = _pieces(text, end)
    reached = next((index for index, (_, until) in enumerate(given) if until >= end), len(given) - 1)
    pieces = given[: reached + 1]
    rate, last = pieces[-1]
    pieces[-1] = (rate, max(last, end))
    return Rate(tuple(pieces), before)


def _pieces(text: str, end: int) -> list[tuple[float, int]]:
    """Every piece that was written, of which a training up to `end` may reach the first only."""
    shown = repr(text[:80])
    parts = [part.strip() for part in text.split(",") if part.strip()]
    pieces: list[tuple[float, int]] = []
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        number, colon, last = part.partition(":")
        try:
            rate, until = float(number), int(last) if colon else end
        except ValueError as error:
            raise ConfigError(
                f"learning_rate is {shown}; a number, or pieces such as '5e-5:100, 1e-5' were expected"
            ) from error
        if not 0 < rate < 10:
            raise ConfigError(f"learning_rate has {rate:g}; above 0 and below 10 was expected (1e-4 is usual)")
        to_the_end = not colon or until == -1  # the webui's word for the end
        if to_the_end and not is_last:
            raise ConfigError(f"learning_rate {shown}: only the last piece may be without a step, or have -1")
        if not to_the_end and until <= (pieces[-1][1] if pieces else 0):
            raise ConfigError(
                f"learning_rate {shown}: the steps of its pieces must rise, and {until} does not. Write the "
                "pieces in the order of their steps: '5e-5:100, 1e-5:1000'"
            )
        pieces.append((rate, end if to_the_end else until))
    if not pieces:
        raise ConfigError("learning_rate is empty; a number such as 1e-4 was expected")
    return pieces
