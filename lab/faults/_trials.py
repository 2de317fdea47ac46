"""Counting trials and what was found wrong in them."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.faults._children import Ending

_numbers = itertools.count()


@dataclass
class Count:
    """What became of the trials of a scenario.

    Attributes:
        endings: how often the work was killed, ended with an error of hnloader, or was done.
        finished: how often the next run went on to the end.
        wrong: what was found wrong, one text each.
        notes: what else was measured, one line each.
    """

    endings: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many there were."""
        return sum(self.endings.values())

    def add(self, ending: Ending, check: Callable[[], object]) -> None:
        """Count a trial, and what `check` finds after it."""
        self.endings[ending.how] += 1
        if ending.how == "bug":
            self.wrong.append(ending.message)
        self._look(check, "after the fault")

    def finish(self, ending: Ending, check: Callable[[], object]) -> None:
        """Count an undisturbed run after a fault."""
        self.finished += 1
        if ending.how != "done":
            self.wrong.append(f"the next run ended with {ending}")
        self._look(check, "after the next run")

    def _look(self, check: Callable[[], object], when: str) -> None:
        try:
            check()
        except Exception as error:
            self.wrong.append(f"{when}: {type(error).__name__}: {error}")

    def __str__(self) -> str:
        parts = ", ".join(f"{number} {how}" for how, number in sorted(self.endings.items()))
        return f"{self.trials} trials ({parts}), {self.finished} runs afterwards, {len(self.wrong)} wrong"


def fresh(place: Path) -> Path:
    """An empty folder; the one before it is removed."""
    for old in place.glob("trial-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder = place / f"trial-{next(_numbers)}"
    folder.mkdir()
    return folder
