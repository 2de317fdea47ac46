"""Facts about a file for cards and rows of the panel: its model family, its preview, and why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from hnloader.attention import AttentionSite, find_sites
from hnloader.attention.matching import check_match
from hnloader.errors import NoMatchingSitesError
from hnloader.inspection import FileInfo
from hnloader.ui.catalog_entry import Entry

from .host_library import HostLibrary
from .redaction import redact

_sites_of: WeakKeyDictionary[nn.Module, tuple[AttentionSite, ...]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Facts:
    """The facts about a file.

    Attributes:
        info: What `inspect` reports; None if the file cannot be used or was not read.
        problem: Why the file cannot be used, otherwise empty.
    """

    info: FileInfo | None
    problem: str = ""

    @property
    def models(self) -> str:
        """The model families that the file is for, as text."""
        if self.info is None:
            return ""
        if not self.info.widths:
            return "any model"
        return ", ".join(self.info.made_for) or "an unknown model"


def facts_of(library: HostLibrary, path: Path) -> Facts:
    """Return the facts about a file of the library."""
    return facts_in(library, library.catalog.find(path))


def facts_in(library: HostLibrary, entry: Entry | None) -> Facts:
    """Return the facts in an entry of the library's catalog; None stands for a file that is gone."""
    if entry is None:
        return Facts(None, "The file no longer exists.")
    return Facts(entry.info, redact(library.folders(), entry.problem or ""))


def mismatch(info: FileInfo, unet: nn.Module | None) -> str:
    """Return why a file is for none of a model's layers, otherwise an empty text."""
    if unet is None or not info.scopes:
        return ""
    try:
        check_match(info, _sites(unet))
    except NoMatchingSitesError as error:
        return str(error)
    return ""


def _sites(unet: nn.Module) -> tuple[AttentionSite, ...]:
    if unet not in _sites_of:
        _sites_of[unet] = find_sites(unet)
    return _sites_of[unet]
