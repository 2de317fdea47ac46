"""Library: the hypernetwork files, what each of them holds, its preview and its notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError, HypernetworkNotFoundError, PromptTagError
from hnloader.images import PHOTOS, STILL, read_image
from hnloader.library import Library
from hnloader.prompt import Tag
from hnloader.texts import well_formed
from hnloader.ui import markup
from hnloader.ui.catalog import ALL, DUPLICATES, SORTS, Catalog, filters
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.compat import html, image_input, listen, make, update
from hnloader.ui.sidecars import read_notes, read_values, save_preview, strength_in

if TYPE_CHECKING:
    from hnloader.ui.page_host import Host

PAGE_SIZE = 24
_TAG_JS = "document.querySelector('#hnl-detail .hnl-tag').textContent"
# Sorting and filtering that need to know what every file holds.


@dataclass(frozen=True)
class LibraryPage:
    """What the other pages use.

    `use` is pressed with the key of the chosen file in `chosen`; `refreshed` is the event after which the folders
    are listed anew; `relisted_after` has them listed anew after another event too, and returns that event.
    """

    chosen: Any
    use: Any
    refreshed: Any
    relisted_after: Callable[[Any], Any]


class _Library:
    """What the page's events do."""

    def __init__(self, host: Host, catalog: Catalog) -> None:
        self.host = host
        self.catalog = catalog

    def load(self) -> Iterator[tuple[Any, ...]]:
        """At the start: the first page at once, then the counts while the other files are looked into."""
        self.catalog.refresh()
        yield *self._shown("", SORTS[0], ALL, 1, None), ""
        for done, total in self._every(200):
            # Only this line: by now the user may be on another page.
            yield *[update()] * 6, _line(f"Looking into files: {done:,} of {total:,}")
        bad = self.catalog.counts().bad
        yield *[update()] * 6, _line(f"{_counted(bad, 'file')} cannot be used. Show: bad files" if bad else "")

    def refresh(self, query: str, sort: str, only: str, chosen: str | None) -> Iterator[tuple[Any, ...]]:
        """List the folders anew."""
        self.catalog.refresh()
        yield from self.search(query, sort, only, chosen)

    def search(self, query: str, sort: str, only: str, chosen: str | None) -> Iterator[tuple[Any, ...]]:
        """Show the first page of what was asked for."""
        if sort in ("most steps", "model family") or only not in (ALL, DUPLICATES):
            for done, total in self._every(100):
                yield _line(f"Looking into files: {done:,} of {total:,}"), *[update()] * 5
        elif only == DUPLICATES:
            yield _line("Comparing the files ..."), *[update()] * 5
        yield self._shown(query, sort, only, 1, chosen)

    def turn(self, query: str, sort: str, only: str, chosen: str | None, page: int, by: int) -> tuple[Any, ...]:
        """Show the next page (`by` 1) or the one before (-1)."""
        return self._shown(query, sort, only, int(page) + by, chosen)

    def choose(self, key: str | None, query: str, sort: str, only: str, page: int) -> tuple[Any, ...]:
        """Show one file."""
        entry = self.catalog.get(key)
        shown = self._shown(query, sort, only, int(page), key)
        if entry is None:
            gone = markup.notice("That file is gone. Press Refresh to list the folders anew.", "bad")
            return *shown, None, update(visible=True), gone, "", "", update(visible=False), None, ""
        notes = read_notes(entry.path)
        usable = entry.info is not None
        tag = tag_text(entry, self.catalog) if usable else ""
        use = update(visible=usable and self._can_use)
        head = markup.headline(entry)
        one = entry.key, update(visible=True), head, self._details(entry), notes, use, None
        return *shown, *one, f'<code class="hnl-tag">{markup.escaped(tag)}</code>' if tag else ""

    def save_notes(self, key: str | None, notes: str) -> str:
        """Save the notes beside the file."""
        entry = self.catalog.get(key)
        if entry is None:
            return markup.notice("That file is gone, so that its notes cannot be saved.", "bad")
        try:
            self.catalog.annotate(entry, notes)
        except HypernetworkError as error:
            return markup.notice(str(error), "bad")
        return markup.notice(f"Saved in {entry.path.with_suffix('.json').name}, beside the file.", "good")

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
        self.host.after_change()
        said = markup.notice(f"Saved as {target.name}, beside the file.", "good")
        return *self._shown(query, sort, only, int(page), key), markup.headline(entry), said

    @property
    def _can_use(self) -> bool:
        return self.host.use is not None or ("generate" in self.host.pages and self.host.generator is not None)

    def _every(self, interval: int) -> Iterator[tuple[int, int]]:
        """Look into every file; yields (done, total) now and then, and not at all where all are known."""
        if all(entry.looked_into for entry in self.catalog.entries()):
            return
        for done, total in self.catalog.look_into_all():
            if done % interval == 0 or done == total:
                yield done, total

    def _details(self, entry: Entry) -> str:
        try:
            return markup.details(entry, self.catalog.twins(entry), self.catalog.sha256(entry))
        except OSError as error:
            return markup.notice(f"{entry.path}: {error.strerror or error}", "bad")

    def _shown(self, query: str, sort: str, only: str, page: int, chosen: str | None) -> tuple[Any, ...]:
        """Status, cards, page number, its label, and whether there are pages before and after it."""
        found = self.catalog.search(query or "", sort, only)
        pages = max(1, -(-len(found) // PAGE_SIZE))
        page = min(max(1, page), pages)
        part = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        shown = markup.cards([self.catalog.look_into(entry) for entry in part], chosen)
        label = f'<div class="hnl-page">page {page:,} of {pages:,}</div>' if pages > 1 else ""
        files = len(self.catalog.entries())
        status = _line(
            _counted(files, "file") if len(found) == files else f"{len(found):,} of {_counted(files, 'file')}"
        )
        earlier, later = (update(interactive=possible, visible=pages > 1) for possible in (page > 1, page < pages))
        return status, shown if part else self._empty(query), page, label, earlier, later

    def _empty(self, query: str) -> str:
        if self.catalog.entries():
            return markup.empty("Nothing found", ["No file fits this search.", "Clear it, or show all files."])
        folders = self.catalog.folders()
        lines = [self.host.empty or "Put .pt, .safetensors or .hns hypernetwork files into one of these folders:"]
        lines += [str(folder) for folder in folders] + ["Then press Refresh."]
        return markup.empty("No hypernetworks yet", lines)


def build(host: Host, catalog: Catalog, root: Any) -> LibraryPage:
    """Make the page within the open gradio context; `root` is the `Blocks` whose loading shows the first page."""
    library = _Library(host, catalog)
    with make("Row"):
        search = make(
            "Textbox",
            label="Search",
            placeholder="name, folder, model, checkpoint, notes",
            elem_id="hnl-search",
            scale=4,
            lines=1,
            max_lines=1,
        )
        sort = make("Dropdown", label="Sort by", choices=list(SORTS), value=SORTS[0], scale=1, min_width=140)
        only = make("Dropdown", label="Show", choices=list(filters()), value=ALL, scale=1, min_width=140)
        refresh = make("Button", "Refresh", scale=0, min_width=110, elem_id="hnl-refresh")
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
                earlier = make("Button", "‹ Previous", interactive=False, visible=False, size="sm", min_width=90)
                label = html()
                later = make(
                    "Button", "Next ›", interactive=False, visible=False, size="sm", min_width=90, elem_id="hnl-next"
                )
        with make("Column", scale=4, min_width=320, visible=False, elem_id="hnl-detail") as panel:
            headline = html()
            tag = html()
            label_of_use = "Use in Generate" if host.use is None else host.use.label
            use = make("Button", label_of_use, variant="primary", visible=False, elem_id="hnl-use")
            details = html()
            notes = make("Textbox", label="Notes", lines=3, max_lines=12, elem_id="hnl-notes")
            save = make("Button", "Save notes", size="sm")
            with make("Accordion", "Change the preview image", open=False):
                image = image_input(label="Image", height=220)
                keep = make("Button", "Save as preview", size="sm")
            said = html(elem_id="hnl-library-said")
    picked = make("Textbox", visible=False)
    pick = make("Button", "choose", elem_id=markup.PICK_BUTTON, elem_classes=["hnl-hidden"])

    asked = [search, sort, only]
    shown = [status, cards, page, label, earlier, later]
    for event in (search.change, sort.change, only.change):
        listen(event, library.search, [*asked, chosen], shown)
    refreshed = listen(refresh.click, library.refresh, [*asked, chosen], shown)
    for button, by in ((earlier, -1), (later, 1)):
        listen(button.click, _turning(library, by), [*asked, chosen, page], shown)
    of_one = [chosen, panel, headline, details, notes, use, image, tag]
    listen(pick.click, library.choose, [picked, *asked, page], [*shown, *of_one], js=_with_picked(len(asked) + 1))
    listen(save.click, library.save_notes, [chosen, notes], [said])
    listen(keep.click, library.save_preview, [chosen, image, *asked, page], [*shown, headline, said])
    listen(pick.click, lambda: "", [], [said])
    if host.use is not None:
        # In the browser alone: the prompt is the host's, and its page knows it by name only.
        listen(use.click, None, js=f"() => {{ ({host.use.js})({_TAG_JS}); return []; }}")
    listen(root.load, library.load, [], [*shown, state])

    def relisted_after(event: Any) -> Any:
        return listen(event.then, library.refresh, [*asked, chosen], shown)

    return LibraryPage(chosen, use, refreshed, relisted_after)


def _turning(library: _Library, by: int) -> Any:
    def turn(query: str, sort: str, only: str, chosen: str | None, page: int) -> tuple[Any, ...]:
        return library.turn(query, sort, only, chosen, page, by)

    return turn


def _with_picked(others: int) -> str:
    """JavaScript that puts the key of the card that was pressed before the other inputs."""
    names = ", ".join(f"a{number}" for number in range(others))
    return f"(picked, {names}) => [window.hnlPicked, {names}]"


def tag_text(entry: Entry, catalog: Catalog) -> str:
    """How a prompt names the file, at its preferred strength if it has one, or why it cannot."""
    try:
        return well_formed(str(Tag(tag_name(entry, catalog), strength_in(read_values(entry.path)) or 1.0)))
    except PromptTagError as error:
        return str(error)


def tag_name(entry: Entry, catalog: Catalog) -> str:
    """The shortest name by which a prompt finds this file."""
    try:
        return Library(catalog.folders()).name_of(entry.path)
    except HypernetworkNotFoundError:  # removed since it was listed
        return entry.file.relative.as_posix()


def _line(text: str) -> str:
    return f'<div class="hnl-status" role="status">{markup.escaped(text)}</div>' if text else ""


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
