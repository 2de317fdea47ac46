"""Page 'Hypernetworks' of the extra networks, with a card for each hypernetwork of the library.

It replaces AUTOMATIC1111's page, which shows one card for all files with the same name; Forge has none. Preview,
description, preferred strength and notes are those of the library (`hnloader.ui.sidecars`).
"""

from __future__ import annotations

import contextlib
import html
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modules import shared, ui_extra_networks

from hnloader.errors import HypernetworkError, PromptTagError
from hnloader.library import LibraryFile
from hnloader.prompt import Tag
from hnloader.texts import as_text, well_formed
from hnloader.ui import sidecars

from ...facts import Facts, facts_in, facts_of
from ...host_library import HostLibrary
from ...redaction import inspect_redacted, redacted_values
from .card_editor import editor_class

TITLE = "Hypernetworks"
# The webuis' pages would read these characters of a name as HTML. Such a name gets no card, nor does one outside UTF-8,
# which would keep the whole page from being sent.
_UNSAFE = frozenset('<>"')
# Files that one listing reads; the next one reads as many more. A webui with 2,000 new files must start at once.
_MOST_READ = 100


def add_page(library: HostLibrary, refresh: Callable[[], None]) -> None:
    """Replace the webui's own page, or add a last one; `refresh` updates the webui's list."""
    page = page_class(library, refresh)()
    pages = ui_extra_networks.extra_pages
    places = [place for place, other in enumerate(pages) if other.name == page.name]
    pages[:] = [other for other in pages if other.name != page.name]
    ui_extra_networks.register_page(page)
    if places:
        pages.insert(places[0], pages.pop())


def page_class(library: HostLibrary, refresh: Callable[[], None]) -> type:
    """Make the page's class, since a reload of the webui replaces its base class."""

    class HypernetworkCards(ui_extra_networks.ExtraNetworksPage):  # type: ignore[misc, unused-ignore]
        """AUTOMATIC1111 1.7 calls some of these methods with fewer arguments than 1.10 and Forge."""

        def __init__(self) -> None:
            super().__init__(TITLE)

        @property
        def metadata(self) -> Any:
            """Return what the button 'i' shows, by card. The webui's dictionary is ignored."""
            return _Details(library)

        @metadata.setter
        def metadata(self, values: Any) -> None: ...

        def refresh(self) -> None:
            refresh()
            library.refresh()
            ui_extra_networks.allowed_dirs.update(self.allowed_directories_for_previews())

        def allowed_directories_for_previews(self) -> list[str]:
            return [str(folder.absolute()) for folder in library.folders()]

        def list_items(self) -> Iterator[dict[str, Any]]:
            left = _MOST_READ
            for index, file in enumerate(_shown(library, _strict(self))):
                entry = library.catalog.find(file.path, read=False)
                if entry is not None and not entry.inspected and left > 0:
                    entry, left = library.catalog.inspect(entry), left - 1
                with contextlib.suppress(OSError):  # deleted meanwhile
                    yield _item(self, library, file, index, facts_in(library, entry))
            library.catalog.save()

        def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any]:
            """Raise HypernetworkNotFoundError for an unknown name."""
            file = library.find(name)
            return _item(self, library, file, index, facts_of(library, file.path))

        def read_user_metadata(self, item: dict[str, Any] | None, use_cache: bool = True) -> None:
            if item is not None:
                _read_sidecars(item)

        def find_preview(self, path: str) -> str | None:
            """Take a path without its suffix."""
            found = sidecars.preview_path(Path(f"{path}.pt"), _exists(self))
            return None if found is None else _link(found)

        def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
            return editor_class(library)(ui, tabname, self)

    return HypernetworkCards


def _shown(library: HostLibrary, strict: bool) -> Iterator[LibraryFile]:
    """Yield the files that a prompt can name; of files that differ only in their suffix, the first."""
    seen = set()
    unsafe = _UNSAFE | {"'"} if strict else _UNSAFE
    for file in library.current.files():
        stem = file.folder, file.relative.with_suffix("")
        path = file.path.as_posix()  # the page contains it, too
        if stem not in seen and unsafe.isdisjoint(file.relative.as_posix()) and well_formed(path) == path:
            seen.add(stem)
            yield file


def _strict(page: Any) -> bool:
    """AUTOMATIC1111 1.8 and 1.9 write names into JavaScript between single quotes."""
    return "'{filename}'" in getattr(page, "btn_copy_path_tpl", "")


def _item(page: Any, library: HostLibrary, file: LibraryFile, index: int | None, facts: Facts) -> dict[str, Any]:
    """Return the values that the webui makes a card from."""
    path = file.path.absolute()
    stem = str(path.with_suffix(""))
    name = library.current.shortest_name(file)
    shown = f"Cannot be used: {facts.problem}" if facts.problem else f"For {facts.models}" if facts.models else ""
    words = html.escape(f"{page.search_terms_from_path(stem)} {shown}")
    preview = sidecars.preview_path(path, _exists(page))
    item: dict[str, Any] = {
        "name": name,
        "filename": str(path),
        "shorthash": "",
        "preview": None if preview is None else _link(preview),
        "search_terms": [words],
        "search_term": words,  # 1.7
        "local_preview": str(preview or path.with_name(f"{path.stem}.preview.{shared.opts.samples_format}")),
        "metadata": {"file": file.relative.as_posix()},  # any value makes the button appear; see `_Details`
        "sort_keys": {"default": index, **page.get_sort_keys(str(path))},
    }
    page.read_user_metadata(item)
    item["description"] = "\n".join(filter(None, [html.escape(shown), item["description"]]))
    item["prompt"] = _javascript(name, sidecars.strength_in(item["user_metadata"]))
    return item


def _link(preview: Path) -> str:
    """Return the address at which all webuis serve previews."""
    return f"./sd_extra_networks/thumb?filename={quote(preview.as_posix())}&mtime={preview.stat().st_mtime}"


def _read_sidecars(item: dict[str, Any]) -> None:
    """Add the file's notes. Unlike the webui's method, this accepts a JSON file with any content."""
    path = Path(item["filename"])
    values = sidecars.read_values(path)
    description = sidecars.text_in(values, sidecars.DESCRIPTION) or sidecars.description_beside(path)
    item["user_metadata"] = {**values, sidecars.DESCRIPTION: description}
    # 1.7 shows descriptions as HTML; later versions do if a setting asks for it.
    escapes = hasattr(shared.opts, "extra_networks_card_description_is_html")
    item["description"] = description if escapes else html.escape(description)


def _javascript(name: str, strength: float | None) -> str:
    """Return the tag that a click adds, as a JavaScript expression. ersatzForge has no setting for the strength."""
    try:
        if strength is not None:
            return json.dumps(str(Tag(name, strength)))
        before, after = str(Tag(name, 0.125)).split(":0.125>")
    except (PromptTagError, ValueError):
        return '""'
    return f"{json.dumps(before + ':')} + (opts.extra_networks_default_multiplier ?? 1) + {json.dumps('>' + after)}"


def _exists(page: Any) -> Callable[[Path], bool]:
    """Since 1.8, the page lists each folder once."""
    lister = getattr(page, "lister", None)
    return Path.is_file if lister is None else lambda path: bool(lister.exists(str(path))) and path.is_file()


class _Details:
    """Replaces the webui's dictionary of metadata by card, and reads a file only on request."""

    def __init__(self, library: HostLibrary) -> None:
        self._library = library

    def get(self, name: str, default: Any = None) -> Any:
        """Return what a file's header holds, with lists as text since the page collapses lists."""
        try:
            path = self._library.find(name).path
        except HypernetworkError:
            return default
        folders = self._library.folders()
        found = inspect_redacted(folders, path)
        return {"problem": found} if isinstance(found, str) else _joined(redacted_values(folders, found))

    def __setitem__(self, name: str, value: Any) -> None: ...


def _joined(value: Any) -> Any:
    """Replace each list of plain values by one text."""
    if isinstance(value, dict):
        return {key: _joined(part) for key, part in value.items()}
    if isinstance(value, list) and not any(isinstance(part, (dict, list)) for part in value):
        return ", ".join(as_text(part, 1_000) for part in value)
    return value
