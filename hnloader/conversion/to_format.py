"""Converting many files between `.pt` and `.safetensors`: what `hnloader.convert` does to one, for `bulk`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hnloader.conversion.companions import companion_of
from hnloader.conversion.single import OnExisting, check, convert, is_free, is_result, origin
from hnloader.errors import ExistingFileError, HypernetworkError
from hnloader.inspection import inspect


@dataclass(frozen=True)
class ToFormat:
    """Writes files that end in `suffix`; the other settings are those of `hnloader.convert`."""

    suffix: str
    normalize: bool = False
    dtype: str | None = None
    verify: bool = True
    overwrite: bool = True

    def keeping(self) -> ToFormat:
        """Return one that replaces nothing."""
        return replace(self, overwrite=False)

    def is_free(self, source: Path, target: Path) -> bool:
        """Return whether neither the target exists nor the `.optim` that would be written beside it."""
        state_file = companion_of(source)
        return is_free(target, state_file if state_file.is_file() else None)

    def convert(self, source: Path, target: Path) -> Mapping[str, object]:
        """See `hnloader.convert`."""
        existing: OnExisting = "overwrite" if self.overwrite else "skip"
        done = convert(
            source, target, normalize=self.normalize, dtype=self.dtype, verify=self.verify, on_existing=existing
        )
        if done.action == "skipped":
            raise ExistingFileError(*done.notes or [f"{target} exists. Overwrite it or choose another name."])
        return {
            "lossless": done.lossless,
            "verified": list(done.verified),
            "notes": list(done.notes),
            "source_sha256": done.source_sha256,
        }

    def look(self, source: Path) -> None:
        """Read the header, which shows all but damaged or infinite values."""
        origin(source)

    def made(self, source: Path, target: Path) -> bool:
        """Whether the target states this source and these settings; a `.pt`, which states neither, is compared."""
        try:
            return is_result(source, target, normalize=self.normalize, dtype=self.dtype)
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
        return {"verified": list(check(source, target).verified)}
