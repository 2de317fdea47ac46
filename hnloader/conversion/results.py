"""The outcome of each file of a conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["GOOD", "OUTCOMES", "Outcome", "Result", "counts"]

Outcome = Literal["converted", "up to date", "verified", "planned", "skipped", "failed"]

# In the order of tables.
OUTCOMES: tuple[Outcome, ...] = ("converted", "up to date", "verified", "planned", "skipped", "failed")
# The file has, or would have, the requested form.
GOOD: tuple[Outcome, ...] = ("converted", "up to date", "verified", "planned")


@dataclass(frozen=True)
class Result:
    """The outcome of one file.

    Attributes:
        source: The file.
        label: Name of the source in output: its path below the given folder.
        outcome: "converted"; "up to date": the target was made from this source before; "verified": the target equals
            its source; "planned": a dry run would convert it; "skipped" and "failed": see `reason`.
        target: The file that was or would be written, or None.
        reason: Reason to skip the file or to fail, or a remark.
        error: Class of the error of a failed file, such as "UnsafeFileError".
        size: Size of the source in bytes.
        seconds: Time that it took.
        details: Facts from the converter about a converted or verified file, as plain values.
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
    """Return the number of results by outcome, without zeros."""
    found = [result.outcome for result in results]
    return {outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found}
