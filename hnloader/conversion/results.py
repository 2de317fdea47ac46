"""What became of each file of a conversion of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Outcome = Literal["converted", "up to date", "verified", "planned", "skipped", "failed"]

# In the order in which they are told.
OUTCOMES: tuple[Outcome, ...] = ("converted", "up to date", "verified", "planned", "skipped", "failed")

# The file is, or would be, what was asked for.
GOOD: tuple[Outcome, ...] = ("converted", "up to date", "verified", "planned")


@dataclass(frozen=True)
class Result:
    """What became of one file.

    Attributes:
        source: the file.
        label: what output calls it: its path below the folder that was given.
        outcome: "converted"; "up to date": the target was made from this source before; "verified": the target
            was compared with its source; "planned": a dry run would convert it; "skipped": nothing to do, see
            `reason`; "failed": see `reason`.
        target: the file that was or would be written; None where none was decided on.
        reason: why it was skipped or failed, or what is worth knowing about one that was converted.
        error: the kind of error of a failed one, e.g. "UnsafeFileError".
        size: bytes of the source.
        seconds: how long it took.
        details: what the converter tells of a converted or verified file, as plain values.
    """

    source: Path
    label: str
    outcome: Outcome
    target: Path | None = None
    reason: str = ""
    error: str = ""
    size: int = 0
    seconds: float = 0.0
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def brief_reason(self) -> str:
        """`reason` without the path that most messages begin with."""
        for name in (str(self.source), self.label):
            if name and self.reason.startswith(name):
                return self.reason[len(name) :].lstrip(": ").removeprefix("is ")
        return self.reason


def counts(results: Iterable[Result]) -> dict[Outcome, int]:
    """How many of each outcome there are; those that there are none of are left out."""
    found = [result.outcome for result in results]
    return {outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found}
