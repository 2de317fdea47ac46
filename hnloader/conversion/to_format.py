"""Converting many files between `.pt` and `.safetensors`: what `hnloader.convert` does to one, for `bulk`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hnloader.conversion.single import check, convert, is_result, origin
from hnloader.errors import HypernetworkError
from hnloader.inspection import inspect


@dataclass(frozen=True)
class ToFormat:
    """Writes files that end in `suffix`; the other settings are those of `hnloader.convert`."""

    suffix: str
    normalise: bool = False
    dtype: str | None = None
    prove: bool = True

    def convert(self, source: Path, target: Path) -> Mapping[str, object]:
        """See `hnloader.convert`."""
        done = convert(source, target, normalise=self.normalise, dtype=self.dtype, prove=self.prove)
        return {
            "lossless": done.lossless,
            "proved": list(done.proved),
            "notes": list(done.notes),
            "source_sha256": done.source_sha256,
        }

    def look(self, source: Path) -> None:
        """Read the header, which shows all but damaged or infinite values."""
        origin(source)

    def made(self, source: Path, target: Path) -> bool:
        """Whether the target states this source and these settings; a `.pt`, which states neither, is compared."""
        try:
            return is_result(source, target, normalise=self.normalise, dtype=self.dtype)
        except HypernetworkError:
            return False

    def came_from(self, file: Path, source: Path) -> bool:
        """Whether the file states the sha256 of `source` as that of its own source."""
        try:
            return origin(file).sha256 == inspect(source).sha256
        except HypernetworkError:
            return False

    def check(self, source: Path, target: Path) -> Mapping[str, object]:
        """See `hnloader.conversion.check`."""
        return {"proved": list(check(source, target).proved)}
