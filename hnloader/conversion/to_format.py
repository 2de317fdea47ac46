"""Convert many files between `.pt` and `.safetensors`, as a converter for `hnloader.conversion.bulk`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnloader.conversion.companions import companion_of
from hnloader.conversion.preparing import opened, origin_of
from hnloader.conversion.single import convert, is_free
from hnloader.conversion.verification import is_result, verify
from hnloader.embeddings.embedding_conversion import convert_embedding, is_embedding_result, verify_embedding
from hnloader.embeddings.embedding_info import read_if_embedding
from hnloader.errors import ExistingFileError, HypernetworkError, UnknownFormatError
from hnloader.inspection import inspect

__all__ = ["ToFormat"]

_EMBEDDING = "a textual-inversion embedding"


@dataclass(frozen=True)
class ToFormat:
    """Write files that end in `suffix`, with the settings of `hnloader.convert`."""

    suffix: str
    normalize: bool = False
    dtype: str | None = None
    verify_results: bool = True

    def convert(self, source: Path, target: Path, *, overwrite: bool = True) -> Mapping[str, object]:
        """See `hnloader.convert`; embeddings are converted too. Returns facts for a report."""
        try:
            done = convert(
                source,
                target,
                normalize=self.normalize,
                dtype=self.dtype,
                verify=self.verify_results,
                on_existing="overwrite" if overwrite else "skip",
            )
        except UnknownFormatError:
            if read_if_embedding(source) is None:
                raise
            lost = convert_embedding(source, target, dtype=self.dtype, overwrite=overwrite)
            notes = [_EMBEDDING, *([f"the file has no place for {', '.join(lost)}"] if lost else [])]
            return {"lossless": self.dtype is None and not lost, "verified": _checked(lost), "notes": notes}
        if done.action == "skipped":
            raise ExistingFileError(*done.notes or [f"{target} exists. Overwrite it or choose another name."])
        return {
            "lossless": done.lossless,
            "verified": list(done.verified),
            "notes": list(done.notes),
            "source_sha256": done.source_sha256,
        }

    def check_source(self, source: Path) -> None:
        """Read the header, which shows all but damaged and infinite values. Raises HypernetworkError."""
        try:
            with opened(source):
                pass
        except UnknownFormatError:
            if read_if_embedding(source) is None:
                raise

    def is_free(self, source: Path, target: Path) -> bool:
        """Return True if neither the target exists nor the `.optim` that would be written beside it."""
        state_file = companion_of(source)
        return is_free(target, state_file if state_file.is_file() else None)

    def is_current(self, source: Path, target: Path) -> bool:
        """Return True if the target states this source and these settings; a `.pt` is compared."""
        try:
            return is_result(source, target, normalize=self.normalize, dtype=self.dtype)
        except UnknownFormatError:
            return is_embedding_result(source, target, self.dtype)
        except HypernetworkError:
            return False

    def came_from(self, file: Path, source: Path) -> bool:
        """Return True if the file states the sha256 of `source` as that of its source."""
        try:
            with opened(file) as contents:
                return origin_of(contents).sha256 == inspect(source).sha256
        except HypernetworkError:
            return False

    def verify(self, source: Path, target: Path) -> Mapping[str, object]:
        """See `hnloader.conversion.verify`."""
        try:
            return {"verified": list(verify(source, target))}
        except UnknownFormatError:
            if read_if_embedding(source) is None:
                raise
            return {"verified": _checked(verify_embedding(source, target, self.dtype))}


def _checked(lost: Sequence[str]) -> list[str]:
    return ["tensors"] if lost else ["tensors", "metadata"]
