"""Compare: prompts by hypernetworks by strengths, the same seeds everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.files import check_room
from hnloader.ui import jobs, markup
from hnloader.ui.comparison_grid import Comparison, read_prompts, read_strengths, save_comparison
from hnloader.ui.compat import html, image_output, listen, make, update
from hnloader.ui.page_host import ImageRequest
from hnloader.ui.pages import fields
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.progress import buttons, complaint, stop

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Generator, Host


class _Compare:
    """What the page's events do."""

    def __init__(self, host: Host, catalog: Catalog, generator: Generator) -> None:
        self.host = host
        self.catalog = catalog
        self.generator = generator

    def asked(
        self,
        prompts: str,
        negative: str,
        labels: list[str] | None,
        strengths: str,
        seed: float | None,
        seeds: float | None,
        steps: float | None,
        guidance: float | None,
        *sampler_and_size: Any,
    ) -> Comparison:
        """The comparison that the inputs describe. Raises HypernetworkError."""
        more = fields.asked(*sampler_and_size)
        request = ImageRequest("", negative or "", steps=fields.whole(steps, "Steps"), guidance=guidance, **more)
        files = tuple(entry.path for entry in chosen_files(self.catalog, labels))
        comparison = Comparison(
            read_prompts(prompts or ""),
            files,
            read_strengths(strengths or ""),
            request,
            fields.whole(seed, "Seed"),
            fields.whole(seeds, "Seeds for each prompt"),
        )
        comparison.check()
        if request.steps > fields.MOST_STEPS:
            raise HypernetworkError(f"An image has at most {fields.MOST_STEPS} steps.")
        check_room(self.host.output(), comparison.to_make * fields.IMAGE_SIZE)
        return comparison

    def summary(self, *inputs: Any) -> str:
        """How many images will be made, or what is missing."""
        try:
            comparison = self.asked(*inputs)
        except HypernetworkError as error:
            return f'<div class="hnl-status">{markup.escaped(error)}</div>'
        rows, columns = len(comparison.rows), len(comparison.columns)
        text = f"{comparison.to_make:,} images: {rows} by {columns}"
        return f'<div class="hnl-status">{markup.escaped(text)}</div>'

    def run(self, *inputs: Any) -> Iterator[tuple[Any, ...]]:
        """Make the grid: yields the job's token, progress or notice, the image, and the two buttons."""
        idle = (update(interactive=True), update(interactive=False))
        busy = (update(interactive=False), update(interactive=True))
        try:
            comparison = self.asked(*inputs)
        except HypernetworkError as error:
            yield None, complaint(error), update(), *idle
            return
        job = jobs.Job(lambda job: self._work(job, comparison), self.generator.interrupt)
        yield job.token, markup.progress(0, 1, "Loading the model ..."), None, *busy
        shown = None
        for news in job.updates():
            grid = update() if news.partial is shown else news.partial
            shown = news.partial
            yield job.token, markup.progress(news.done, news.total, news.text), grid, *busy
        try:
            grid, path, complete = job.result()
        except Exception as error:
            yield None, complaint(error), update(), *idle
            return
        text = f"Saved as {path}" if complete else f"Cancelled; the rows that were complete are saved as {path}"
        yield None, markup.notice(text, "good" if complete else "info"), grid, *idle

    def _work(self, job: jobs.Job[Any], comparison: Comparison) -> tuple[Image, Path, bool]:
        """Make and save the grid; when cancelled, of the rows that are complete."""
        rows: list[list[Image]] = []
        grid: Image | None = None

        def report(done: int, total: int, text: str) -> None:
            job.report(done, total, text, grid)

        try:
            for row, complete in comparison.images(self.generator, report):
                if complete:
                    rows.append(row)
                    grid = comparison.grid(rows)
        except CancelledError:
            if not rows:
                raise
        assert grid is not None
        path = save_comparison(grid, self.host.output(), comparison.seed, comparison.infotext())
        grid.info["parameters"] = comparison.infotext()
        return grid, path, len(rows) == len(comparison.rows)


def build(host: Host, catalog: Catalog, generator: Generator, root: Any) -> Any:
    """Make the page within the open gradio context; returns the dropdown of hypernetworks."""
    compare = _Compare(host, catalog, generator)
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            prompts = make(
                "Textbox",
                label="Prompts",
                info="one on each line",
                lines=3,
                max_lines=10,
                elem_id="hnl-compare-prompts",
            )
            negative = make("Textbox", label="Negative prompt", lines=1, max_lines=3)
            files = make(
                "Dropdown", label="Hypernetworks", choices=[], value=[], multiselect=True, elem_id="hnl-compare-files"
            )
            strengths = make(
                "Textbox",
                label="Strengths",
                info="0 is the model alone",
                value="0, 0.5, 1",
                max_lines=1,
                elem_id="hnl-compare-strengths",
            )
            with make("Row"):
                seed = make("Number", label="Seed", value=0, precision=0, minimum=0, min_width=90)
                seeds = make("Number", label="Seeds for each prompt", value=1, precision=0, minimum=1, min_width=90)
            with make("Row"):
                steps = fields.steps("hnl-compare-steps")
                guidance = make(
                    "Slider",
                    label="Guidance",
                    value=generator.default_guidance or 7.0,
                    minimum=1,
                    maximum=20,
                    step=0.5,
                    visible=generator.default_guidance is not None,
                )
            with make("Accordion", "Sampler, size", open=False):
                more = fields.sampler_and_size(generator)
            summary = html()
            run, cancel = buttons("Compare", "hnl-compare")
        with make("Column", scale=7, min_width=360):
            status = html(elem_id="hnl-compare-status")
            image = image_output(label="Comparison", elem_id="hnl-compare-image")
    token = make("State", None)
    inputs = [prompts, negative, files, strengths, seed, seeds, steps, guidance, *more]
    outputs = [token, status, image, run, cancel]
    for event in (run.click, strengths.submit):
        listen(event, compare.run, inputs, outputs)
    for component in (prompts, files, strengths, seed, seeds):
        listen(component.change, compare.summary, inputs, [summary])
    listen(cancel.click, stop, [token], [], queue=False)
    listen(root.load, lambda: choices(catalog), [], [files])
    return files
