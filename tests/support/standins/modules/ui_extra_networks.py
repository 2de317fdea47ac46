"""Pages of cards in the stand-in host: as 1.10 and Forge make them, and as 1.7 does (`OldExtraNetworksPage`)."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

from modules import extra_networks, shared, ui_extra_networks_user_metadata

extra_pages: list[Any] = []
allowed_dirs: set[str] = set()
PREVIEWS = ("png", "jpg", "jpeg", "webp", "gif")


def register_page(page: Any) -> None:
    extra_pages.append(page)
    allowed_dirs.clear()
    allowed_dirs.update(folder for each in extra_pages for folder in each.allowed_directories_for_previews())


def initialize() -> None:
    extra_pages.clear()


def register_default_pages(*, forge: bool) -> None:
    """Forge has left the page of hypernetworks out."""
    for title in ("Textual Inversion", *(() if forge else ("Hypernetworks",)), "Checkpoints"):
        register_page(DefaultPage(title))


def get_metadata(page: str, item: str) -> dict[str, str]:
    """Return what the route of this name answers to the button of a card."""
    found = next((each for each in extra_pages if each.name == page), None)
    metadata = None if found is None else found.metadata.get(item)
    return {} if metadata is None else {"metadata": json.dumps({key: metadata[key] for key in metadata}, indent=4)}


def get_single_card(page: str, tabname: str, name: str) -> str:
    """Return what the route of this name answers after an edit."""
    found = next(each for each in extra_pages if each.name == page)
    item = found.create_item(name, enable_filter=False)
    found.items[name] = item
    found.read_user_metadata(item) if found.old else found.read_user_metadata(item, use_cache=False)
    return found.card(tabname, item)


class Lister:
    """Lists each folder once, until a reset. A missing folder is an error."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, os.stat_result]] = {}

    def find(self, path: str) -> os.stat_result | None:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = {entry.name: entry.stat() for entry in os.scandir(folder)}
        return self.folders[folder].get(name)

    def exists(self, path: str) -> bool:
        return self.find(path) is not None

    def reset(self) -> None:
        self.folders.clear()


class _Page:
    """The common part of both versions of pages."""

    old = False

    def __init__(self, title: str) -> None:
        self.title, self.name = title, title.lower()
        self.allow_prompt, self.allow_negative_prompt = True, False
        self.metadata: Any = {}
        self.items: dict[str, dict[str, Any]] = {}

    def refresh(self) -> None: ...

    def list_items(self) -> Any:
        raise NotImplementedError

    def create_item(self, name: str, index: int | None = None) -> Any:
        raise NotImplementedError

    def allowed_directories_for_previews(self) -> list[str]:
        return []

    def search_terms_from_path(self, filename: str) -> str:
        for folder in map(os.path.abspath, self.allowed_directories_for_previews()):
            if filename.startswith(folder):
                return os.path.relpath(filename, Path(folder).parent)
        return ""

    def get_sort_keys(self, path: str) -> dict[str, Any]:
        return {"name": Path(path).name.lower(), "path": path.lower(), "date_modified": int(Path(path).stat().st_mtime)}

    def find_description(self, path: str) -> str | None:
        text = Path(f"{path}.txt")
        return text.read_text() if text.is_file() else None

    def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
        return ui_extra_networks_user_metadata.UserMetadataEditor(ui, tabname, self)

    def _make_items(self) -> None:
        self.metadata = {}
        self.items = {item["name"]: item for item in self.list_items()}
        for item in self.items.values():
            if item.get("metadata"):
                self.metadata[item["name"]] = item["metadata"]
            if "user_metadata" not in item:
                self.read_user_metadata(item)

    def _onclick(self, tabname: str, item: dict[str, Any]) -> str:
        return html.escape(f"cardClicked('{tabname}', {item['prompt']}, '', false);")


class ExtraNetworksPage(_Page):
    """As in 1.10 and Forge."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.extra_networks_tabname = self.name.replace(" ", "_")
        self.lister = Lister()
        self.btn_copy_path_tpl = 'data-clipboard-text="{filename}"'

    def read_user_metadata(self, item: dict[str, Any], use_cache: bool = True) -> None:
        metadata = extra_networks.get_user_metadata(item["filename"])
        item["user_metadata"], item["description"] = metadata, metadata.get("description", item.get("description"))

    def create_html(self, tabname: str, *, empty: bool = False) -> str:
        self.lister.reset()
        if empty:
            return "Loading..."
        self._make_items()
        return "".join(self.card(tabname, item) for item in self.items.values()) + self._tree()

    def card(self, tabname: str, item: dict[str, Any]) -> str:
        preview = f'<img src="{html.escape(item["preview"])}">' if item.get("preview") else ""
        button = "<i>metadata</i>" if item.get("metadata") else ""
        terms = "".join(f"<span hidden>{term}</span>" for term in item.get("search_terms", []))
        name, text = html.escape(item["name"]), html.escape(item.get("description") or "")
        clicked = self._onclick(tabname, item)
        copy = self.btn_copy_path_tpl.format(filename=item["filename"])
        return f'<div class="card" data-name="{name}" onclick="{clicked}" {copy}>{preview}{button}{terms}{text}</div>'

    def _tree(self) -> str:
        """Names are HTML in the tree."""
        rows = (f'<li data-hash="{item["shorthash"]}">{item["name"]}</li>' for item in self.items.values())
        return f"<ul>{''.join(rows)}</ul>"


class OldExtraNetworksPage(_Page):
    """As in 1.7: descriptions are HTML, and folders are listed again each time."""

    old = True

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.id_page = self.name.replace(" ", "_")

    def read_user_metadata(self, item: dict[str, Any]) -> None:
        metadata = extra_networks.get_user_metadata(item["filename"])
        item["user_metadata"], item["description"] = metadata, metadata.get("description", item.get("description"))

    def create_html(self, tabname: str) -> str:
        self._make_items()
        return "".join(self.card(tabname, item) for item in self.items.values())

    def card(self, tabname: str, item: dict[str, Any]) -> str:
        preview = f'<img src="{html.escape(item["preview"])}">' if item.get("preview") else ""
        button = "<i>metadata</i>" if item.get("metadata") else ""
        term, name, text = item.get("search_term", ""), html.escape(item["name"]), item.get("description") or ""
        shown = f"{preview}{button}<span hidden>{term}</span>{text}"
        return f'<div class="card" data-name="{name}" onclick="{self._onclick(tabname, item)}">{shown}</div>'


class DefaultPage(ExtraNetworksPage):
    """One of the host's own; that of the hypernetworks lists `shared.hypernetworks`."""

    def list_items(self) -> Any:
        for name, path in shared.hypernetworks.items() if self.title == "Hypernetworks" else ():
            yield {"name": name, "filename": path, "shorthash": None, "prompt": json.dumps(f"<hypernet:{name}:1>")}
