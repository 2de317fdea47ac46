"""Learning rates over the steps: a single one that decays, or the webui's pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hnloader.errors import ConfigError

FLOOR = 0.01
HIGHEST = 10


@dataclass(frozen=True)
class LearningRate:
    """Learning rates, each up to a step; the last holds to the end.

    Attributes:
        pieces: Each rate and its last step; steps count from 1 and rise.
        previous_steps: Steps of the file that this training run starts from. The pieces include them.
    """

    pieces: tuple[tuple[float, int], ...]
    previous_steps: int = 0

    def at(self, step: int, *, scheduler: str = "constant", warmup_steps: int = 0) -> float:
        """Return the learning rate of a step of this training run.

        Args:
            step: Counts from 1.
            scheduler: "constant", "linear" or "cosine": the decay of a single rate to a hundredth.
            warmup_steps: Steps over which the rate rises from 0.
        """
        total = self.pieces[-1][1] - self.previous_steps
        rate = next((rate for rate, last in self.pieces if self.previous_steps + step <= last), self.pieces[-1][0])
        if len(self.pieces) == 1 and scheduler != "constant":
            done = min((step - 1) / max(total - 1, 1), 1.0)
            share = 1 - done if scheduler == "linear" else (1 + math.cos(math.pi * done)) / 2
            rate *= FLOOR + (1 - FLOOR) * share
        return rate * min(step / warmup_steps, 1.0) if warmup_steps else rate


def parse_learning_rate(text: str, steps: int, previous_steps: int = 0) -> LearningRate:
    """Read "1e-4" or the webui's "5e-5:100, 1e-5:1000, 1e-6".

    Args:
        text: One rate, or pieces with their last steps.
        steps: Steps of this training run.
        previous_steps: Steps of the file that it starts from. The pieces include them.

    Raises:
        ConfigError: The text is malformed, a rate is outside (0, 10), or the steps do not rise.
    """
    end = previous_steps + steps
    given = _pieces(text, end)
    reached = next((index for index, (_, last) in enumerate(given) if last >= end), len(given) - 1)
    pieces = given[: reached + 1]
    rate, last = pieces[-1]
    pieces[-1] = (rate, max(last, end))
    return LearningRate(tuple(pieces), previous_steps)


def _pieces(text: str, end: int) -> list[tuple[float, int]]:
    """Return all pieces, also those after `end`."""
    where = f"Setting 'learning_rate' ({text[:80]!r})"
    parts = [part.strip() for part in text.split(",") if part.strip()]
    pieces: list[tuple[float, int]] = []
    for index, part in enumerate(parts):
        number, colon, last_text = part.partition(":")
        try:
            rate, last = float(number), int(last_text) if colon else end
        except ValueError as error:
            raise ConfigError(f"{where}: expected a number, or pieces such as '5e-5:100, 1e-5'.") from error
        if not 0 < rate < HIGHEST:
            raise ConfigError(f"{where}: expected a rate above 0 and below 10, got {rate:g}. A usual one is 1e-4.")
        to_the_end = not colon or last == -1  # -1 is the webui's notation
        if to_the_end and index < len(parts) - 1:
            raise ConfigError(f"{where}: only the last piece may omit the step or have -1.")
        if not to_the_end and last <= (pieces[-1][1] if pieces else 0):
            raise ConfigError(
                f"{where}: the steps of the pieces must rise, got {last}. Example: '5e-5:100, 1e-5:1000'."
            )
        pieces.append((rate, end if to_the_end else last))
    if not pieces:
        raise ConfigError(f"{where}: expected a number such as 1e-4.")
    return pieces
