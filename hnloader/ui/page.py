"""The pages as tabs, for any host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradio.context import Context

from hnloader.prompt import Tag
from hnloader.ui import markup
from hnloader.ui.catalog import Catalog
from hnloader.ui.compat import html, listen, make, update
from hnloader.ui.pages import compare_page, convert_page, generate_page, library_page, train_page
from hnloader.ui.pages.choices import choices
from hnloader.ui.pages.generate_page import with_tag

if TYPE_CHECKING:
    from hnloader.ui.page_host import Host


def build_page(host: Host) -> None:
    """Make the tabs within the open `gradio.Blocks`."""
    root = Context.root_block
    if root is None:
        raise RuntimeError("build(host) is called within `with gradio.Blocks():`")
    catalog = Catalog(host.folders, host.cache)
    files: list[Any] = []
    pages: dict[str, Any] = {}
    html(markup.style(), elem_id="hnl-style")
    with make("Column", elem_id="hnl-root"), make("Tabs", elem_id="hnl-tabs") as tabs:
        for name in host.pages:
            generator = host.generator
            if generator is None and name in ("compare", "generate"):
                continue
            if host.training is None and name == "train":
                continue
            with make("Tab", name.capitalize(), id=name, elem_id=f"hnl-tab-{name}"):
                if name == "library":
                    pages[name] = library_page.build(host, catalog, root)
                elif name == "compare" and generator is not None:
                    files.append(compare_page.build(host, catalog, generator, root))
                elif name == "convert":
                    pages[name] = convert_page.build(host, catalog, root)
                    files.append(pages[name].files)
                elif name == "train" and host.training is not None:
                    pages[name] = train_page.build(host, catalog, host.training, root)
                elif name == "generate" and generator is not None:
                    pages[name] = generate_page.build(host, catalog, generator, root)
                    files.append(pages[name].file)
    shown = pages.get("library")
    if shown is None:
        return
    changes = [shown.refreshed] + ([pages["convert"].converted] if "convert" in pages else [])
    if "train" in pages:
        changes.append(shown.relisted_after(pages["train"].used))
    for change in changes if files else ():
        listen(change.then, lambda: _choices(catalog, len(files)), [], files)
    if "generate" in pages and host.use is None:
        prompt = pages["generate"].prompt
        listen(shown.use.click, lambda text, key: _use(catalog, text, key), [prompt, shown.chosen], [prompt, tabs])


def _choices(catalog: Catalog, dropdowns: int) -> Any:
    found = [choices(catalog) for _ in range(dropdowns)]
    return found if dropdowns > 1 else found[0]


def _use(catalog: Catalog, prompt: str, key: str | None) -> tuple[Any, Any]:
    """Put the chosen file's tag into the prompt and turn to Generate."""
    entry = catalog.get(key)
    text = update() if entry is None else with_tag(prompt or "", Tag(library_page.tag_name(entry, catalog)))
    return text, update(selected="generate")
