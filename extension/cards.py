"""The webui's cards: its page 'Hypernetworks' among the extra networks, one card for each hypernetwork of the library.

AUTOMATIC1111's own page shows what the webui's list of names holds, so that two files of one name are one card; Forge
has left its own out. Ours takes its place. Preview, description, preferred strength and notes are those of the library
(`hnloader.ui.sidecars`), so that both show the same. A file's header is read when its details are asked for.
"""

from __future__ import annotations

import contextlib
import html
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hnloader.errors import HypernetworkError, PromptTagError
from hnloader.library import LibraryFile
from hnloader.prompt import Tag
from hnloader.texts import as_text, well_formed
from hnloader.ui import markup, sidecars

from .runtime import Extension
from .telling import looked_into, values_of

TITLE = "Hypernetworks"
# Characters in a name that the webuis' pages would take for their own HTML; there is no card then, nor for a name that
# is not UTF-8, without which the page could not be sent.
_UNSAFE = frozenset('<>"')


def register(extension: Extension) -> None:
    """Add the page before the webui builds its own, when its default pages are there in any case."""
    from modules import script_callbacks

    script_callbacks.on_before_ui(lambda: add_page(extension))


def add_page(extension: Extension) -> None:
    """Put our page where the webui's own is, or last where it has none."""
    from modules import ui_extra_networks

    page = page_class(extension)()
    pages = ui_extra_networks.extra_pages
    places = [place for place, other in enumerate(pages) if other.name == page.name]
    pages[:] = [other for other in pages if other.name != page.name]
    ui_extra_networks.register_page(page)
    if places:
        pages.insert(places[0], pages.pop())


def page_class(extension: Extension) -> type:
    """The page, a class of the webui as it is now: a reload may have made its modules anew."""
    from modules import ui_extra_networks

    class HypernetworkCards(ui_extra_networks.ExtraNetworksPage):  # type: ignore[misc, unused-ignore]
        """See the module. AUTOMATIC1111 1.7 calls some methods with fewer arguments than 1.10 and Forge."""

        def __init__(self) -> None:
            super().__init__(TITLE)

        @property
        def metadata(self) -> Any:
            """What the button 'i' of a card shows, by its name; the webui fills a dictionary that is not used."""
            return _Details(extension)

        @metadata.setter
        def metadata(self, values: Any) -> None: ...

        def refresh(self) -> None:
            extension.host.refresh()
            ui_extra_networks.allowed_dirs.update(self.allowed_directories_for_previews())

        def allowed_directories_for_previews(self) -> list[str]:
            return [str(folder.absolute()) for folder in extension.host.folders()]

        def list_items(self) -> Iterator[dict[str, Any]]:
            for index, file in enumerate(_shown(extension, _strict(self))):
                with contextlib.suppress(OSError):  # gone meanwhile
                    yield _item(self, extension, file, index)

        def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any]:
            """Raises HypernetworkNotFoundError."""
            extension.find(name)
            return _item(self, extension, extension.library.matches(name)[0], index)

        def read_user_metadata(self, item: dict[str, Any] | None, use_cache: bool = True) -> None:
            if item is not None:
                _read_sidecars(self, item)

        def find_preview(self, path: str) -> str | None:
            """For a path without its suffix."""
            found = sidecars.preview_path(Path(f"{path}.pt"), _exists(self))
            return None if found is None else self.link_preview(str(found))

        def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
            return editor_class(extension)(ui, tabname, self)

    return HypernetworkCards


# -- cards


def _shown(extension: Extension, strict: bool) -> Iterator[LibraryFile]:
    """The library's files that a prompt can name, one of those that differ in their suffix alone."""
    seen = set()
    unsafe = _UNSAFE | {"'"} if strict else _UNSAFE
    for file in extension.library.files():
        stem = file.folder, file.relative.with_suffix("")
        name = file.path.as_posix()  # which the page holds too
        if stem not in seen and unsafe.isdisjoint(file.relative.as_posix()) and well_formed(name) == name:
            seen.add(stem)
            yield file


def _strict(page: Any) -> bool:
    """AUTOMATIC1111 1.8 and 1.9 write names into JavaScript between single quotes."""
    return "'{filename}'" in getattr(page, "btn_copy_path_tpl", "")


def _item(page: Any, extension: Extension, file: LibraryFile, index: int | None) -> dict[str, Any]:
    """What the webui makes a card of."""
    from modules import shared

    path = file.path.absolute()
    stem = str(path.with_suffix(""))
    name = extension.library.shortest_name(file)
    words = html.escape(page.search_terms_from_path(stem))
    own = sidecars.preview_path(path, _exists(page))
    item: dict[str, Any] = {
        "name": name,
        "filename": str(path),
        "shorthash": "",
        "preview": None if own is None else page.link_preview(str(own)),
        "search_terms": [words],
        "search_term": words,  # 1.7
        "local_preview": str(own or path.with_name(f"{path.stem}.preview.{shared.opts.samples_format}")),
        "metadata": {"file": file.relative.as_posix()},  # anything: the button appears; see `_Details`
        "sort_keys": {"default": index, **page.get_sort_keys(str(path))},
    }
    page.read_user_metadata(item)
    item["prompt"] = _javascript(name, sidecars.strength_in(item["user_metadata"]))
    return item


def _read_sidecars(page: Any, item: dict[str, Any]) -> None:
    """Add what lies beside the file. Unlike the webui's own, this outlasts a JSON file of any content."""
    from modules import shared

    path = Path(item["filename"])
    values = sidecars.read_values(path)
    description = sidecars.text_in(values, sidecars.DESCRIPTION) or sidecars.description_beside(path)
    item["user_metadata"] = {**values, sidecars.DESCRIPTION: description}
    # 1.7 shows descriptions as HTML; later ones do so where a setting asks for it.
    escapes = hasattr(shared.opts, "extra_networks_card_description_is_html")
    item["description"] = description if escapes else html.escape(description)


def _javascript(name: str, strength: float | None) -> str:
    """The tag that a click adds, as an expression of the page's JavaScript."""
    try:
        if strength is not None:
            return json.dumps(str(Tag(name, strength)))
        before, after = str(Tag(name, 0.125)).split(":0.125>")
    except (PromptTagError, ValueError):
        return '""'
    return f"{json.dumps(before + ':')} + opts.extra_networks_default_multiplier + {json.dumps('>' + after)}"


def _exists(page: Any) -> Callable[[Path], bool]:
    """1.8 and later list each folder once."""
    lister = getattr(page, "lister", None)
    return Path.is_file if lister is None else lambda path: bool(lister.exists(str(path))) and path.is_file()


class _Details:
    """What the webui takes for the dictionary of all cards' metadata; a file is read when it is asked for."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def get(self, name: str, default: Any = None) -> Any:
        """What the header of a file holds, its lists as texts: the webuis' page folds lists away."""
        try:
            path = Path(self._extension.find(name))
        except HypernetworkError:
            return default
        found = looked_into(self._extension.host, path)
        return {"problem": found} if isinstance(found, str) else _joined(values_of(self._extension.host, found))

    def __setitem__(self, name: str, value: Any) -> None: ...


def _joined(value: Any) -> Any:
    """`value` with each list of plain values as one text."""
    if isinstance(value, dict):
        return {key: _joined(part) for key, part in value.items()}
    if isinstance(value, list) and not any(isinstance(part, (dict, list)) for part in value):
        return ", ".join(as_text(part, 1_000) for part in value)
    return value


# -- the dialogue


def editor_class(extension: Extension) -> type:
    """The webui's dialogue for a card, with the preferred strength and what the file holds."""
    from modules import ui_extra_networks_user_metadata

    from hnloader.ui import compat

    base = ui_extra_networks_user_metadata.UserMetadataEditor

    class HypernetworkEditor(base):  # type: ignore[misc, valid-type, unused-ignore]
        """See the function."""

        def create_editor(self) -> None:
            self.create_default_editor_elems()
            self.strength = compat.make(
                "Slider", label="Preferred strength", info="0: that of the webui's settings",
                minimum=0, maximum=2, step=0.01, value=0, elem_id=f"{self.id_part}_strength",
            )  # fmt: skip
            self.edit_notes = compat.make("Textbox", label="Notes", lines=4, elem_id=f"{self.id_part}_notes")
            self.create_default_buttons()
            shown = [self.edit_name, self.edit_description, self.html_filedata, self.html_preview, self.edit_notes]
            opened = compat.listen(self.button_edit.click, self.show, [self.edit_name_input], [*shown, self.strength])
            compat.listen(opened.then, lambda: compat.update(visible=True), [], [self.box])
            edited = [self.edit_description, self.edit_notes, self.strength]
            self.setup_save_handler(self.button_save, self.save, edited)

        def get_user_metadata(self, name: str) -> dict[str, Any]:
            """Read anew: the library may have changed it since the cards were made."""
            item = self.page.items.get(name) or self.page.create_item(name)
            self.page.read_user_metadata(item, use_cache=False)
            values: dict[str, Any] = item["user_metadata"]
            return values

        def get_metadata_table(self, name: str) -> list[tuple[str, str]]:
            """Labels, and values as HTML."""
            path = Path(extension.find(name))
            found = looked_into(extension.host, path)
            rows = [("Problem", html.escape(found))] if isinstance(found, str) else markup.facts(found)
            return [("File", html.escape(self.relative_path(str(path)))), ("Size", _size(path)), *rows]

        def show(self, name: str) -> list[Any]:
            """The values of the dialogue's fields."""
            values = self.get_user_metadata(name)
            *shown, _ = super().put_values_into_components(name)
            return [*shown, sidecars.text_in(values, sidecars.NOTES), sidecars.strength_in(values) or 0]

        def save(self, name: str, description: str, notes: str, strength: float) -> None:
            """Write what differs from what is there; everything else in the file is kept."""
            import gradio

            given = {sidecars.DESCRIPTION: description, sidecars.NOTES: notes, sidecars.STRENGTH: strength}
            before = self.get_user_metadata(name)
            changes = {key: value for key, value in given.items() if value != (before.get(key) or type(value)())}
            try:
                if changes:
                    written = sidecars.save_values(Path(self.page.items[name]["filename"]), changes)
                    if (lister := getattr(self.page, "lister", None)) is not None:
                        lister.update_file_entry(str(written))
            except HypernetworkError as error:
                raise gradio.Error(well_formed(str(error))) from error

    return HypernetworkEditor


def _size(path: Path) -> str:
    try:
        return markup.size_text(path.stat().st_size)
    except OSError:
        return "gone"
