"""Choosing hypernetwork files in a dropdown. Its choices are labels, the one kind that gradio 3.41 knows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.texts import well_formed
from hnloader.ui.compat import update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hnloader.ui.catalog import Catalog
    from hnloader.ui.catalog_entry import Entry


def choices(catalog: Catalog) -> Any:
    """The dropdown's choices anew: every file that is not known to be bad, by its path below its folder."""
    return update(choices=[label for label, entry in _labeled(catalog).items() if entry.problem is None])


def chosen_files(catalog: Catalog, labels: Iterable[str] | None) -> list[Entry]:
    """The files that were chosen. Raises HypernetworkError for one that is gone or bad."""
    known = _labeled(catalog) if labels else {}
    entries = []
    for label in labels or ():
        if label not in known:
            raise HypernetworkError(f"{label} is gone. Press Refresh in Library and choose anew.")
        entry = catalog.look_into(known[label])
        if entry.problem is not None:
            raise HypernetworkError(entry.problem)
        entries.append(entry)
    return entries


def _labeled(catalog: Catalog) -> dict[str, Entry]:
    """Every file by a label of its own: where two folders hold the same path, with the folder."""
    entries = catalog.search()
    counts = Counter(entry.label for entry in entries)
    return {
        # The browser sends it back as it was sent to it.
        well_formed(entry.label if counts[entry.label] == 1 else f"{entry.label} ({entry.file.folder})"): entry
        for entry in entries
    }
