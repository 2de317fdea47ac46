"""The pages as tabs, for any host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradio.context import Context

from hnloader.prompt import Tag
from hnloader.ui import markup
from hnloader.ui.catalog import Catalog
from hnloader.ui.compat import html, listen, make, update
from hnloader.ui.pages import (
    compare_page,
    convert_page,
    generate_page,
    library_page,
    predict_page,
    train_page,
    write_page,
)
from hnloader.ui.pages.choices import choices

if TYPE_CHECKING:
    from hnloader.ui.page_host import Host

__all__ = ["build_page"]


def build_page(host: Host) -> None:
    """Build the tabs within the open `gradio.Blocks`."""
    root = Context.root_block
    if root is None:
        raise RuntimeError("No gradio.Blocks is open. Call build(host) within `with gradio.Blocks():`.")
    catalog = host.catalog or Catalog(host.folders)
    files: dict[Any, bool] = {}  # dropdowns of files, with or without embeddings
    pages: dict[str, Any] = {}
    html(markup.style(), elem_id="hnl-style")
    with (
        make("Column", elem_id="hnl-root"),
        make("Tabs", elem_id="hnl-tabs", overflow_behavior="wrap") as tabs,
    ):
        for name in host.pages:
            generator = host.generator
            if (
                (generator is None and name in ("compare", "generate", "predict"))
                or (host.training is None and name == "train")
                or (host.prediction is None and name == "predict")
                or (host.writer is None and name == "write")
            ):
                continue
            with make("Tab", name.capitalize(), id=name, elem_id=f"hnl-tab-{name}"):
                if name == "library":
                    pages[name] = library_page.build(host, catalog, root)
                elif name == "compare" and generator is not None:
                    files[compare_page.build(host, catalog, generator, root)] = generator.applies_embeddings
                elif name == "convert":
                    pages[name] = convert_page.build(host, catalog, root)
                    files[pages[name].files] = True
                elif name == "train" and host.training is not None:
                    pages[name] = train_page.build(host, catalog, host.training, root)
                elif name == "predict" and host.prediction is not None and generator is not None:
                    pages[name] = predict_page.build(host, host.prediction, generator)
                elif name == "write" and host.writer is not None:
                    files[write_page.build(catalog, host.writer, root)] = False
                elif name == "generate" and generator is not None:
                    pages[name] = generate_page.build(host, catalog, generator, root)
                    files[pages[name].file] = True
    library = pages.get("library")
    if library is None:
        return
    changes = [library.refreshed] + ([pages["convert"].converted] if "convert" in pages else [])
    if "predict" in pages:
        changes.append(library.refresh_after(pages["predict"].predicted))
    if "train" in pages:
        changes.append(library.refresh_after(pages["train"].used))
    for change in changes if files else ():
        listen(change.then, lambda: _choices(catalog, list(files.values())), [], list(files))
    if "generate" in pages and host.tag_button is None:
        prompt = pages["generate"].prompt
        listen(library.use.click, lambda text, key: _use(catalog, text, key), [prompt, library.chosen], [prompt, tabs])


def _choices(catalog: Catalog, dropdowns: Sequence[bool]) -> Any:
    found = [choices(catalog, embeddings=embeddings) for embeddings in dropdowns]
    return found if len(found) > 1 else found[0]


def _use(catalog: Catalog, prompt: str, key: str | None) -> tuple[Any, Any]:
    """Add the chosen file's tag to the prompt and switch to Generate."""
    entry = catalog.get(key)
    if entry is None:
        return update(), update(selected="generate")
    tag = entry.word or Tag(library_page.tag_name(entry, catalog))
    return generate_page.with_tag(prompt or "", tag), update(selected="generate")
