"""Count trials and failures."""

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
    """The counts of a scenario.

    Attributes:
        endings: Number of trials for each `Ending.how`.
        finished: Number of undisturbed runs after a fault.
        wrong: One text for each failure.
        notes: Other measurements, one line each.
    """

    endings: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """Return the number of trials."""
        return sum(self.endings.values())

    def add(self, ending: Ending, check: Callable[[], object]) -> None:
        """Count a trial and the failures that `check` raises."""
        self.endings[ending.how] += 1
        if ending.how == "bug":
            self.wrong.append(ending.message)
        self._look(check, "after the fault")

    def finish(self, ending: Ending, check: Callable[[], object]) -> None:
        """Count an undisturbed run after a fault, and its failures."""
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
    """Return an empty folder, and remove the previous one."""
    for old in place.glob("trial-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder = place / f"trial-{next(_numbers)}"
    folder.mkdir()
    return folder
