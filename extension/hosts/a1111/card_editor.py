"""Dialog of a card: the webui's own, with preferred strength, notes and what the file holds."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio
from modules import ui_extra_networks_user_metadata

from hnloader.errors import HypernetworkError
from hnloader.texts import well_formed
from hnloader.ui import compat, markup, sidecars
from hnloader.units import size_text

from ...host_library import HostLibrary
from ...redaction import inspect_redacted


def editor_class(library: HostLibrary) -> type:
    """Make the dialog's class, since a reload of the webui replaces its base class."""
    base = ui_extra_networks_user_metadata.UserMetadataEditor

    class HypernetworkEditor(base):  # type: ignore[misc, valid-type, unused-ignore]
        """See the module."""

        def create_editor(self) -> None:
            self.create_default_editor_elems()
            self.strength = compat.make(
                "Slider", label="Preferred strength", info="Set to 0 to use the default of the settings",
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
            """Read the file again, since the library may have changed it."""
            item = self.page.items.get(name) or self.page.create_item(name)
            self.page.read_user_metadata(item, use_cache=False)
            values: dict[str, Any] = item["user_metadata"]
            return values

        def get_metadata_table(self, name: str) -> list[tuple[str, str]]:
            """Return labels, and values as HTML."""
            path = library.find(name).path
            found = inspect_redacted(library.folders(), path)
            rows = [("Problem", html.escape(found))] if isinstance(found, str) else markup.facts(found)
            return [("File", html.escape(self.relative_path(str(path)))), ("Size", _size(path)), *rows]

        def show(self, name: str) -> list[Any]:
            """Return the values of the dialog's fields."""
            values = self.get_user_metadata(name)
            *shown, _ = super().put_values_into_components(name)
            return [*shown, sidecars.text_in(values, sidecars.NOTES), sidecars.strength_in(values) or 0]

        def save(self, name: str, description: str, notes: str, strength: float) -> None:
            """Write the changed values; the JSON file keeps all others."""
            given = {sidecars.DESCRIPTION: description, sidecars.NOTES: notes, sidecars.STRENGTH: strength}
            before = self.get_user_metadata(name)
            changes = {key: value for key, value in given.items() if value != (before.get(key) or type(value)())}
            if changes:
                _save(self.page, Path(self.page.items[name]["filename"]), changes)

    return HypernetworkEditor


def _save(page: Any, path: Path, changes: dict[str, Any]) -> None:
    try:
        sidecars.save_values(path, changes)
    except HypernetworkError as error:
        raise gradio.Error(well_formed(str(error))) from error
    if (lister := getattr(page, "lister", None)) is not None:
        lister.reset()  # it lists the folders again, since the file may be new


def _size(path: Path) -> str:
    try:
        return size_text(path.stat().st_size)
    except OSError:
        return "Deleted"
