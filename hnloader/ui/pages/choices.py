"""Files of the library in a dropdown. Its choices are labels, the one kind that gradio 3.41 knows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError, HypernetworkNotFoundError
from hnloader.formats.registry import suffixes
from hnloader.texts import well_formed
from hnloader.ui.compat import update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hnloader.ui.catalog import Catalog
    from hnloader.ui.catalog_entry import Entry

__all__ = ["choices", "chosen_files"]


def choices(catalog: Catalog, *, embeddings: bool = False) -> Any:
    """Return an update of a dropdown with every file that has no known error, with or without embeddings."""
    return update(choices=[label for label, entry in _labeled(catalog).items() if _fits(entry, embeddings)])


def chosen_files(catalog: Catalog, labels: Iterable[str] | None, *, embeddings: bool = False) -> list[Entry]:
    """Return the files with these labels.

    Raises:
        HypernetworkError: A file is missing, has an error, or is an embedding where only hypernetworks are wanted.
    """
    known = _labeled(catalog) if labels else {}
    entries = []
    for label in labels or ():
        if label not in known:
            raise HypernetworkNotFoundError(
                f"{label}: this file no longer exists. Press Refresh in the Library tab and select again."
            )
        entry = catalog.inspect(known[label])
        if not _fits(entry, embeddings):
            raise HypernetworkError(entry.problem or f"{label}: cannot be used.")
        entries.append(entry)
    return entries


def _fits(entry: Entry, embeddings: bool) -> bool:
    if embeddings:
        return not entry.broken
    return entry.problem is None and entry.path.suffix.lower() in suffixes()


def _labeled(catalog: Catalog) -> dict[str, Entry]:
    """Return every file by a unique label, with its folder where two folders hold the same path."""
    entries = catalog.search()
    counts = Counter(entry.label for entry in entries)
    return {
        # The browser returns only well-formed text unchanged.
        well_formed(entry.label if counts[entry.label] == 1 else f"{entry.label} ({entry.file.folder})"): entry
        for entry in entries
    }
