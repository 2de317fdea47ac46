"""The dialog of a card in the stand-in host."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

import gradio


class UserMetadataEditor:
    def __init__(self, ui: Any, tabname: str, page: Any) -> None:
        self.ui, self.tabname, self.page = ui, tabname, page
        self.id_part = f"{tabname}_{page.id_page if page.old else page.extra_networks_tabname}_edit_user_metadata"

    def create_ui(self) -> None:
        with gradio.Group(visible=False, elem_id=self.id_part) as self.box:
            self.edit_name_input = gradio.Textbox("", visible=False, elem_id=f"{self.id_part}_name")
            self.button_edit = gradio.Button("Edit user metadata", visible=False, elem_id=f"{self.id_part}_button")
            self.create_editor()

    def create_default_editor_elems(self) -> None:
        self.edit_name, self.html_filedata, self.html_preview = gradio.HTML(), gradio.HTML(), gradio.HTML()
        self.edit_description = gradio.Textbox(label="Description")

    def create_default_buttons(self) -> None:
        self.button_cancel, self.button_save = gradio.Button("Cancel"), gradio.Button("Save")

    def setup_save_handler(self, button: Any, func: Any, components: list[Any]) -> None:
        button.click(fn=func, inputs=[self.edit_name_input, *components], outputs=[])

    def relative_path(self, path: str) -> str:
        for folder in map(os.path.abspath, self.page.allowed_directories_for_previews()):
            if path.startswith(folder):
                return os.path.relpath(path, folder)
        return Path(path).name

    def get_card_html(self, name: str) -> str:
        item = self.page.items[name]
        preview = item.get("preview") or self.page.find_preview(str(Path(item["filename"]).with_suffix("")))
        return f'<img src="{html.escape(preview)}">' if preview else ""

    def put_values_into_components(self, name: str) -> tuple[Any, ...]:
        """Values of the table are HTML."""
        metadata = self.get_user_metadata(name)
        rows = "".join(f"<tr><th>{label}</th><td>{text}</td></tr>" for label, text in self.get_metadata_table(name))
        table = f"<table>{rows}</table>"
        return (
            html.escape(name),
            metadata.get("description", ""),
            table,
            self.get_card_html(name),
            metadata.get("notes", ""),
        )
