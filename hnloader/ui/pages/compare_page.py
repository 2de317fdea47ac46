"""Compare: prompts by hypernetworks by strengths, and embeddings, with the same seeds everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.files import check_room
from hnloader.ui import jobs, markup
from hnloader.ui.comparison_grid import Comparison, read_prompts, read_strengths
from hnloader.ui.compat import html, image_output, listen, make, reveal, update
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.fields import IMAGE_SIZE, ImageValues, SettingFields, example_prompt, textbox, whole
from hnloader.ui.pages.progress import complaint, ended, run_and_cancel, stop_with, updates
from hnloader.ui.saving import save_numbered
from hnloader.units import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Generator, Host

__all__ = ["build"]

_FIRST_STEPS = markup.empty(
    "Nothing to compare yet",
    "Select one or more files and press Compare.",
    "If the list is empty, the Library tab shows where to put your files.",
)


@dataclass
class _Compare:
    """Event handlers. Their inputs are the parameters of `comparison`."""

    host: Host
    catalog: Catalog
    generator: Generator

    def comparison(
        self,
        prompts: str,
        labels: list[str] | None,
        strengths: str,
        seed: float | None,
        seeds: float | None,
        *values: Any,
    ) -> Comparison:
        """Return the comparison that the inputs describe. Raises HypernetworkError."""
        entries = chosen_files(self.catalog, labels, embeddings=self.generator.applies_embeddings)
        comparison = Comparison(
            read_prompts(prompts or ""),
            tuple(entry.path for entry in entries if not entry.word),
            read_strengths(strengths or ""),
            ImageValues(*values).request(),
            tuple((entry.path, entry.word) for entry in entries if entry.word),
            whole(seed, "Seed"),
            whole(seeds, "Seeds per prompt"),
        )
        comparison.check()
        check_room(self.host.output(), comparison.to_make * IMAGE_SIZE)
        return comparison

    def summary(self, *inputs: Any) -> str:
        """Return the number of images, or the value to correct first."""
        try:
            comparison = self.comparison(*inputs)
        except HypernetworkError as error:
            return markup.status(str(error))
        return markup.status(
            f"{counted(comparison.to_make, 'image')}: {len(comparison.rows)} by {len(comparison.columns)}"
        )

    def run(self, *inputs: Any) -> Iterator[tuple[Any, ...]]:
        """Make the grid. Yields token, status, both buttons and the image."""
        try:
            comparison = self.comparison(*inputs)
        except HypernetworkError as error:
            yield ended(complaint(error), update())
            return
        job = jobs.Job(lambda job: self._work(job, comparison), self.generator.interrupt)
        shown: object = None

        def show(news: jobs.Update | None) -> tuple[Any]:
            nonlocal shown
            if news is None:
                return (update(value=None),)
            unchanged, shown = news.partial is shown, news.partial
            return (update() if unchanged else update(value=news.partial, visible=True),)

        yield from updates(job, "Loading the model ...", show)
        try:
            grid, path, complete = job.result()
        except Exception as error:
            yield ended(complaint(error), update())
            return
        text = f"Saved as {path}." if complete else f"Cancelled. The complete rows are saved as {path}."
        yield ended(markup.notice(text, "good" if complete else "info"), update(value=grid, visible=True))

    def _work(self, job: jobs.Job[Any], comparison: Comparison) -> tuple[Image, Path, bool]:
        """Make and save the grid, or after cancelling its complete rows."""
        rows: list[list[Image]] = []
        grid: Image | None = None

        def report(done: int, total: int, text: str) -> None:
            job.report(done, total, text, grid)

        try:
            for row in comparison.make_rows(self.generator, report):
                rows.append(row)
                grid = comparison.grid(rows)
        except CancelledError:
            if not rows:
                raise
        assert grid is not None
        path = save_numbered(grid, self.host.output(), "compare-", comparison.seed, comparison.infotext())
        grid.info["parameters"] = comparison.infotext()
        return grid, path, len(rows) == len(comparison.rows)


def build(host: Host, catalog: Catalog, generator: Generator, root: Any) -> Any:
    """Build the page within the open gradio context. Returns the dropdown of files."""
    embeddings = generator.applies_embeddings
    handlers = _Compare(host, catalog, generator)
    settings = SettingFields(generator, "hnl-compare")
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            hints = {"info": "One per line", "placeholder": "Describe the image", "value": example_prompt(host)}
            prompts = textbox("Prompts", "hnl-compare-prompts", lines=3, max_lines=10, **hints)
            settings.negative_prompt()
            several = {"value": [], "multiselect": True, "elem_id": "hnl-compare-files"}
            label = "Hypernetworks or embeddings" if embeddings else "Hypernetworks"
            files = make("Dropdown", label=label, choices=[], **several)
            hint = "0: without hypernetworks" + (". Embeddings have no strength." if embeddings else "")
            strengths = textbox("Strengths", "hnl-compare-strengths", info=hint, value="0, 0.5, 1")
            with make("Row"):
                seed = make("Number", label="Seed", value=0, precision=0, minimum=0, min_width=90)
                seeds = make("Number", label="Seeds per prompt", value=1, precision=0, minimum=1, min_width=90)
            settings.sampling()
            with make("Accordion", "Sampler, size", open=False):
                settings.sampler_and_size()
            summary = html()
            run, cancel = run_and_cancel("Compare", "hnl-compare")
        with make("Column", scale=7, min_width=360):
            status = html(_FIRST_STEPS, elem_id="hnl-compare-status")
            image = image_output(label="Comparison", elem_id="hnl-compare-image", visible=False)
    token = make("State", None)
    inputs = [prompts, files, strengths, seed, seeds, *settings.inputs]
    for event in (run.click, strengths.submit):
        listen(event, handlers.run, inputs, [token, status, run, cancel, image])
        reveal(event, "hnl-compare-status")
    for component in (prompts, files, strengths, seed, seeds):
        listen(component.change, handlers.summary, inputs, [summary])
    stop_with(cancel, token)
    listen(root.load, lambda: choices(catalog, embeddings=embeddings), [], [files])
    return files
