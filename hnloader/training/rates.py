"""Learning rates over the steps: one that falls, or the webui's piecewise ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hnloader.training.schema import ConfigError

FLOOR = 0.01


@dataclass(frozen=True)
class Rate:
    """Learning rates, each up to a step; the last up to the end.

    Attributes:
        pieces: (rate, last step at which it holds), steps counted from 1, rising.
    """

    pieces: tuple[tuple[float, int], ...]

    def at(self, step: int, *, schedule: str = "constant", warmup: int = 0) -> float:
        """The learning rate of `step`, counted from 1.

        Args:
            schedule: how a single rate falls towards its hundredth: "constant", "linear" or "cosine". Piecewise
                rates say themselves how they fall.
            warmup: steps over which the rate rises evenly from nothing.
        """
        total = self.pieces[-1][1]
        rate = next((rate for rate, last in self.pieces if step <= last), self.pieces[-1][0])
        if len(self.pieces) == 1 and schedule != "constant":
            done = min((step - 1) / max(total - 1, 1), 1.0)
            share = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
            rate *= FLOOR + (1 - FLOOR) * share
        return rate * min(step / warmup, 1.0) if warmup else rate


def parse_rate(text: str, steps: int) -> Rate:
    """Read "1e-4" or the webui's "5e-5:100, 1e-5:1000, 1e-6".

    Raises:
        ConfigError: it is neither, a rate is not in (0, 10), or the steps do not rise.
    """
    pieces: list[tuple[float, int]] = []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for index, part in enumerate(parts):
        number, colon, last = part.partition(":")
        try:
            rate, until = float(number), int(last) if colon else steps
        except ValueError as error:
            raise ConfigError(
                f"learning_rate is {text[:80]!r}; a number, or pieces such as '5e-5:100, 1e-5' were expected"
            ) from error
        if not 0 < rate < 10:
            raise ConfigError(f"learning_rate has {rate:g}; above 0 and below 10 was expected (1e-4 is usual)")
        if not colon and index < len(parts) - 1:
            raise ConfigError(f"learning_rate {text[:80]!r}: only the last piece may be without a step")
        if until == -1:  # the webui's word for the end
            until = steps
        if pieces and until <= pieces[-1][1] and index < len(parts) - 1:
            raise ConfigError(f"learning_rate {text[:80]!r}: the steps of its pieces must rise")
        pieces.append((rate, until))
        if until >= steps:
            break
    if not pieces:
        raise ConfigError("learning_rate is empty; a number such as 1e-4 was expected")
    rate, _ = pieces[-1]
    pieces[-1] = (rate, max(pieces[-1][1], steps))
    return Rate(tuple(pieces))
