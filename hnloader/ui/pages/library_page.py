"""Library: the hypernetwork files with their contents, previews and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError, HypernetworkNotFoundError, PromptTagError
from hnloader.formats.registry import suffixes
from hnloader.images import PHOTOS, STILL, read_image
from hnloader.library import Library
from hnloader.prompt import Tag
from hnloader.texts import well_formed
from hnloader.ui import markup
from hnloader.ui.catalog import ALL, BAD, DUPLICATES, SORTS, Catalog, filters
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.compat import html, image_input, listen, make, reveal, update
from hnloader.ui.pages.fields import textbox
from hnloader.ui.sidecars import notes_path, read_notes, read_values, save_preview, strength_in
from hnloader.units import counted

if TYPE_CHECKING:
    from hnloader.ui.page_host import Host

__all__ = ["PAGE_SIZE", "LibraryPage", "build", "tag_name", "tag_text"]

PAGE_SIZE = 24
_TAG_JS = "document.querySelector('#hnl-detail .hnl-tag').textContent"
# Puts the pressed card's key in the place of the first input.
_PICKED_JS = "(ignored, ...others) => [window.hnlPicked, ...others]"


@dataclass(frozen=True)
class LibraryPage:
    """Components and events that other pages use.

    Attributes:
        chosen: State with the key of the chosen file.
        use: Button that sends the chosen file's tag.
        refreshed: Event after the folders were listed again.
        refresh_after: Lists the folders again after another event, and returns that event.
    """

    chosen: Any
    use: Any
    refreshed: Any
    refresh_after: Callable[[Any], Any]


@dataclass
class _Library:
    """Event handlers. The list's outputs are status, cards, page number, its label, and Previous and Next."""

    host: Host
    catalog: Catalog

    def load(self) -> tuple[Any, ...]:
        """Show the first page."""
        self.catalog.refresh()
        return self._list("", SORTS[0], ALL, 1, None)

    def inspect(self) -> Iterator[str]:
        """Inspect all files, then report errors or where to put the user's own files."""
        yield from self._inspecting(200)
        bad, folders, entries = self.catalog.counts().bad, self.catalog.folders(), self.catalog.entries()
        text = f"{counted(bad, 'file')} cannot be used. To list them, set Show to '{BAD}'." if bad else ""
        if entries and not bad and all(entry.file.folder != folders[0] for entry in entries):
            text = f"Put your own files into {folders[0].absolute()}, then press Refresh."
        yield markup.status(text)

    def refresh(self, query: str, sort: str, only: str, chosen: str | None) -> Iterator[tuple[Any, ...]]:
        """List the folders again."""
        self.catalog.refresh()
        yield from self.search(query, sort, only, chosen)

    def search(self, query: str, sort: str, only: str, chosen: str | None) -> Iterator[tuple[Any, ...]]:
        """Show the first page of the files found."""
        if sort in ("most steps", "model family") or only not in (ALL, DUPLICATES):
            for text in self._inspecting(100):
                yield text, *[update()] * 5
        elif only == DUPLICATES:
            yield markup.status("Comparing the files ..."), *[update()] * 5
        yield self._list(query, sort, only, 1, chosen)

    def turn(self, by: int, query: str, sort: str, only: str, chosen: str | None, page: int) -> tuple[Any, ...]:
        """Show the next page (`by` 1) or the previous one (-1)."""
        return self._list(query, sort, only, int(page) + by, chosen)

    def choose(self, key: str | None, query: str, sort: str, only: str, page: int) -> tuple[Any, ...]:
        """Show one file."""
        entry = self.catalog.get(key)
        shown = self._list(query, sort, only, int(page), key)
        if entry is None:
            gone = markup.notice("This file no longer exists. Press Refresh.", "bad")
            return *shown, None, update(visible=True), gone, "", "", update(visible=False), None, ""
        tag = tag_text(entry, self.catalog) if entry.info is not None else ""
        tag = entry.word or tag
        generates = "generate" in self.host.pages and self.host.generator is not None
        can_use = self.host.tag_button is not None or generates
        return (
            *shown,
            entry.key,
            update(visible=True),
            markup.headline(entry),
            self._details(entry),
            read_notes(entry.path),
            update(visible=(entry.info is not None and can_use) or (entry.embedding is not None and generates)),
            None,
            f'<code class="hnl-tag">{markup.escaped(tag)}</code>' if tag else "",
        )

    def save_notes(self, key: str | None, notes: str) -> str:
        """Save the notes beside the file."""
        entry = self.catalog.get(key)
        if entry is None:
            return markup.notice("This file no longer exists. Its notes cannot be saved.", "bad")
        try:
            self.catalog.save_notes(entry, notes)
        except HypernetworkError as error:
            return markup.notice(str(error), "bad")
        return markup.notice(f"Saved in {notes_path(entry.path).name}, next to the file.", "good")

    def save_preview(
        self, key: str | None, image: bytes | None, query: str, sort: str, only: str, page: int
    ) -> tuple[Any, ...]:
        """Save an image as the file's preview."""
        unchanged = [update()] * 7
        entry = self.catalog.get(key)
        if entry is None or image is None:
            return *unchanged, markup.notice("Choose a file and drop an image first.", "bad")
        try:
            target = save_preview(entry.path, read_image(bytes(image), {**PHOTOS, **STILL}).image)
        except HypernetworkError as error:
            return *unchanged, markup.notice(str(error), "bad")
        self.host.on_change()
        saved = markup.notice(f"Saved as {target.name}, next to the file.", "good")
        return *self._list(query, sort, only, int(page), key), markup.headline(entry), saved

    def _inspecting(self, interval: int) -> Iterator[str]:
        """Inspect every file and yield the progress now and then, nothing if all are inspected."""
        if all(entry.inspected for entry in self.catalog.entries()):
            return
        for done, total in self.catalog.inspect_all():
            if done % interval == 0 or done == total:
                yield markup.status(f"Inspecting files: {done:,} of {total:,}")

    def _details(self, entry: Entry) -> str:
        try:
            return markup.details(entry, self.catalog.copies(entry), self.catalog.sha256(entry))
        except OSError as error:
            return markup.notice(f"{entry.path}: {error.strerror or error}", "bad")

    def _list(self, query: str, sort: str, only: str, page: int, chosen: str | None) -> tuple[Any, ...]:
        found = self.catalog.search(query or "", sort, only)
        pages = max(1, -(-len(found) // PAGE_SIZE))
        page = min(max(1, page), pages)
        part = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        cards = markup.cards([self.catalog.inspect(entry) for entry in part], chosen) if part else self._empty()
        label = f'<div class="hnl-page">page {page:,} of {pages:,}</div>' if pages > 1 else ""
        files = len(self.catalog.entries())
        count = counted(files, "file") if len(found) == files else f"{len(found):,} of {counted(files, 'file')}"
        turns = (update(interactive=possible, visible=pages > 1) for possible in (page > 1, page < pages))
        return markup.status(count), cards, page, label, *turns

    def _empty(self) -> str:
        if self.catalog.entries():
            return markup.empty("Nothing found", "Try fewer words, or show all files.")
        folders = [str(folder.absolute()) for folder in self.catalog.folders()]
        kinds = f"hypernetworks ({', '.join(suffixes())}) or embeddings"
        hint = f"Put {kinds} into one of these folders, then press Refresh:"
        return markup.empty("No hypernetworks yet", hint, *folders)


def build(host: Host, catalog: Catalog, root: Any) -> LibraryPage:
    """Build the page within the open gradio context; `root` is the `Blocks` that loads it."""
    handlers = _Library(host, catalog)
    search, sort, only, refresh = _search_fields()
    if host.tag_button is not None and host.tag_button.hint:
        html(markup.status(host.tag_button.hint))
    with make("Row"):
        with make("Column", scale=1, min_width=150):
            status = html()
        with make("Column", scale=5, min_width=300):
            state = html(elem_id="hnl-library-state")
    page, chosen = make("State", 1), make("State", None)
    with make("Row", equal_height=False):
        with make("Column", scale=7, min_width=360):
            cards = html(elem_id="hnl-library")
            with make("Row"):
                turn = {"interactive": False, "visible": False, "size": "sm", "min_width": 90}
                earlier = make("Button", "‹ Previous", **turn)
                label = html()
                later = make("Button", "Next ›", elem_id="hnl-next", **turn)
        with make("Column", scale=4, min_width=320, visible=False, elem_id="hnl-detail") as panel:
            file = _FileFields(host)

    query = [search, sort, only]
    shown = [status, cards, page, label, earlier, later]
    for event in (search.change, sort.change, only.change):
        listen(event, handlers.search, [*query, chosen], shown)
    refreshed = listen(refresh.click, handlers.refresh, [*query, chosen], shown)
    for button, by in ((earlier, -1), (later, 1)):
        listen(button.click, partial(handlers.turn, by), [*query, chosen, page], shown)
    picked = make("Textbox", visible=False)
    pick = make("Button", "choose", elem_id=markup.PICK_BUTTON, elem_classes=["hnl-hidden"])
    of_file = [chosen, panel, file.headline, file.details, file.notes, file.use, file.image, file.tag]
    chose = listen(pick.click, handlers.choose, [picked, *query, page], [*shown, *of_file], js=_PICKED_JS)
    reveal(chose.then, "hnl-detail")
    listen(pick.click, lambda: "", [], [file.result])
    listen(file.save.click, handlers.save_notes, [chosen, file.notes], [file.result])
    previewed = [*shown, file.headline, file.result]
    listen(file.keep.click, handlers.save_preview, [chosen, file.image, *query, page], previewed)
    if host.tag_button is not None:
        # In the browser alone: only the host's page knows the host's prompt.
        listen(file.use.click, None, js=f"() => {{ ({host.tag_button.js})({_TAG_JS}); return []; }}")
    for listed in (listen(root.load, handlers.load, [], shown), refreshed):
        listen(listed.then, handlers.inspect, [], [state])
    return LibraryPage(
        chosen, file.use, refreshed, lambda event: listen(event.then, handlers.refresh, [*query, chosen], shown)
    )


def _search_fields() -> tuple[Any, Any, Any, Any]:
    with make("Row"):
        hint = "name, folder, model, checkpoint, notes"
        search = textbox("Search", "hnl-search", placeholder=hint, scale=4, min_width=280)
        sort = make("Dropdown", label="Sort by", choices=list(SORTS), value=SORTS[0], scale=1, min_width=140)
        only = make("Dropdown", label="Show", choices=list(filters()), value=ALL, scale=1, min_width=140)
        refresh = make("Button", "Refresh", scale=0, min_width=110, elem_id="hnl-refresh")
    return search, sort, only, refresh


class _FileFields:
    """Components that show one file."""

    def __init__(self, host: Host) -> None:
        self.headline = html()
        self.tag = html()
        label = "Use in Generate" if host.tag_button is None else host.tag_button.label
        self.use = make("Button", label, variant="primary", visible=False, elem_id="hnl-use")
        self.details = html()
        self.notes = textbox("Notes", "hnl-notes", lines=3, max_lines=12)
        self.save = make("Button", "Save notes", size="sm")
        with make("Accordion", "Replace preview", open=False):
            self.image = image_input(label="Image", height=220)
            self.keep = make("Button", "Save as preview", size="sm")
        self.result = html(elem_id="hnl-library-said")


def tag_text(entry: Entry, catalog: Catalog) -> str:
    """Return the file's tag at its preferred strength, or the reason why a prompt cannot name it."""
    try:
        return well_formed(str(Tag(tag_name(entry, catalog), strength_in(read_values(entry.path)) or 1.0)))
    except PromptTagError as error:
        return str(error)


def tag_name(entry: Entry, catalog: Catalog) -> str:
    """Return the shortest name by which a prompt finds this file."""
    try:
        return Library(catalog.folders()).name_of(entry.path)
    except HypernetworkNotFoundError:  # removed meanwhile
        return entry.file.relative.as_posix()
