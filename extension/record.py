"""Record of a batch of images: the hypernetworks that were applied, for the generation parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hnloader.infotext import HASHES, NOT_APPLIED
from hnloader.texts import well_formed

_RECORD = "hnloader_record"


@dataclass
class Record:
    """Hashes of applied hypernetworks by name, and names and messages of those that failed.

    A name can be in both: applied in the first pass, and failed in the second one, whose model it does not fit.
    """

    applied: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)

    def add(self, applied: Iterable[tuple[str, str]], missing: Iterable[str], messages: Iterable[str]) -> None:
        """Add pairs of name and hash, then names and messages."""
        self.applied.update(applied)
        self.missing.update(filter(None, missing))
        self.messages += (message for message in messages if message not in self.messages)

    def write(self, parameters: dict[str, Any]) -> None:
        """Write the record into the parameters of an image, or remove an old one."""
        for key, value in (
            (HASHES, ", ".join(f"{name}: {digest}" for name, digest in self.applied.items())),
            (NOT_APPLIED, ", ".join(sorted(self.missing))),
        ):
            if value:
                parameters[key] = well_formed(value)
            else:
                parameters.pop(key, None)


def record_of(job: Any) -> Record:
    """Return the record of the job's current batch."""
    record = getattr(job, _RECORD, None)
    return new_record(job) if record is None else record


def new_record(job: Any) -> Record:
    """Start the record of a new batch."""
    record = Record()
    setattr(job, _RECORD, record)
    return record
