"""Choosing hypernetwork files in a dropdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.ui.compat import update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hnloader.ui.catalogue import Catalogue, Entry


def choices(catalogue: Catalogue) -> Any:
    """The dropdown's choices anew: every file that is not known to be bad, by its path below its folder."""
    entries = [entry for entry in catalogue.search() if entry.problem is None]
    labels = [entry.label for entry in entries]
    return update(choices=[(_label(entry, labels.count(entry.label) > 1), entry.key) for entry in entries])


def chosen_files(catalogue: Catalogue, keys: Iterable[str] | None) -> list[Entry]:
    """The files that were chosen. Raises HypernetworkError for one that is gone or bad."""
    entries = []
    for key in keys or ():
        entry = catalogue.get(key)
        if entry is None:
            raise HypernetworkError("A chosen file is gone. Press Refresh in Library and choose anew.")
        if entry.problem is not None:
            raise HypernetworkError(entry.problem)
        entries.append(entry)
    return entries


def _label(entry: Entry, twice: bool) -> str:
    return f"{entry.label} ({entry.file.folder})" if twice else entry.label
