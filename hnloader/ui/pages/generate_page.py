"""Generate: images from a prompt, on the page that has a model of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.files import check_room
from hnloader.prompt import Tag
from hnloader.ui import jobs, markup
from hnloader.ui.comparison_grid import save_numbered
from hnloader.ui.compat import gallery, html, listen, make, update
from hnloader.ui.page_host import ImageRequest
from hnloader.ui.pages import fields
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.library_page import tag_name
from hnloader.ui.pages.progress import buttons, complaint, stop

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Generator, Host

MOST_IMAGES = 16  # at once


@dataclass(frozen=True)
class GeneratePage:
    """The components that the other pages use."""

    prompt: Any
    file: Any


class _Generate:
    """What the page's events do."""

    def __init__(self, host: Host, catalog: Catalog, generator: Generator) -> None:
        self.host = host
        self.catalog = catalog
        self.generator = generator

    def add(self, prompt: str, label: str | None, strength: float) -> tuple[str, str]:
        """The prompt with the chosen hypernetwork's tag at its end."""
        try:
            entries = chosen_files(self.catalog, [label] if label else [])
            if not entries:
                raise HypernetworkError("Choose a hypernetwork first.")
            return with_tag(prompt, Tag(tag_name(entries[0], self.catalog), strength)), ""
        except HypernetworkError as error:
            return prompt, complaint(error)

    def choose_model(self, name: str) -> tuple[Any, str]:
        """Use another model."""
        assert self.host.models is not None
        try:
            self.host.models.choose(name)
        except HypernetworkError as error:
            return update(), complaint(error)
        return update(value=self.host.models.guidance_of(name)), markup.notice(f"The next image is made by {name}.")

    def run(
        self,
        prompt: str,
        negative: str,
        count: float,
        steps: float,
        guidance: float,
        seed: float | None,
        sampler: str,
        width: float | None,
        height: float | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Make images: yields the job's token, progress or notice, the images, their text, and the buttons."""
        idle = (update(interactive=True), update(interactive=False))
        busy = (update(interactive=False), update(interactive=True))
        try:
            request = self._asked(prompt, negative, count, steps, guidance, seed, sampler, width, height)
        except HypernetworkError as error:
            yield None, complaint(error), update(), update(), *idle
            return
        made: list[tuple[Image, Path]] = []
        job = jobs.Job(lambda job: self._work(job, request, int(count), made), self.generator.interrupt)
        yield job.token, markup.progress(0, 1, "Loading the model ..."), update(), update(), *busy
        shown = 0
        for news in job.updates():
            images = [image for image, _ in made] if len(made) > shown else update()
            shown = len(made)
            yield job.token, markup.progress(news.done, news.total, news.text), images, update(), *busy
        try:
            job.result()
            said = markup.notice(_saved(made), "good")
        except Exception as error:
            said = complaint(error)
            if isinstance(error, CancelledError) and made:
                said = markup.notice(f"Cancelled. {_saved(made)}", "info")
        images = [image for image, _ in made] if made else update()
        yield None, said, images, _text(made) if made else update(), *idle

    def _asked(
        self,
        prompt: str,
        negative: str,
        count: float,
        steps: float,
        guidance: float,
        seed: float | None,
        *sampler_and_size: Any,
    ) -> ImageRequest:
        """The first image that the inputs describe. Raises HypernetworkError."""
        if not (1 <= count <= MOST_IMAGES and 1 <= steps <= fields.MOST_STEPS):
            raise HypernetworkError(f"At most {MOST_IMAGES} images of {fields.MOST_STEPS} steps are made at once.")
        check_room(self.host.output(), int(count) * fields.IMAGE_SIZE)
        first = secrets.randbelow(2**32 - int(count)) if seed is None or seed < 0 else fields.whole(seed, "Seed")
        more = fields.asked(*sampler_and_size)
        return ImageRequest(prompt or "", negative or "", first, int(steps), guidance=guidance, **more)

    def _work(self, job: jobs.Job[None], request: ImageRequest, count: int, made: list[tuple[Image, Path]]) -> None:
        for number in range(count):

            def progress(step: int, steps: int, number: int = number) -> None:
                of = f"Image {number + 1} of {count}, " if count > 1 else ""
                job.report(number * steps + step, count * steps, f"{of}step {step} of {steps}")

            job.check()
            one = replace(request, seed=request.seed + number)
            image = self.generator.image(one, progress)
            made.append((image, _save(image, self.host.output(), one.seed)))


def with_tag(prompt: str, tag: Tag) -> str:
    """A prompt with a tag at its end."""
    return f"{prompt.rstrip()} {tag}".lstrip() if prompt else str(tag)


def _save(image: Image, folder: Path, seed: int) -> Path:
    return save_numbered(image, folder, "", seed, str(image.info.get("parameters") or ""))


def _saved(made: list[tuple[Image, Path]]) -> str:
    paths = [str(path) for _, path in made]
    return f"Saved as {paths[0]}" if len(paths) == 1 else f"Saved {len(paths)} images: {paths[0]} to {paths[-1]}"


def _text(made: list[tuple[Image, Path]]) -> str:
    return "\n\n".join(str(image.info.get("parameters", "")) for image, _ in made)


def build(host: Host, catalog: Catalog, generator: Generator, root: Any) -> GeneratePage:
    """Make the page within the open gradio context."""
    page = _Generate(host, catalog, generator)
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            # One line that grows: Enter generates, as long as a prompt is.
            prompt = make(
                "Textbox", label="Prompt", placeholder="Enter generates", lines=1, max_lines=6, elem_id="hnl-prompt"
            )
            negative = make("Textbox", label="Negative prompt", lines=1, max_lines=3, elem_id="hnl-negative")
            run, cancel = buttons("Generate", "hnl-generate")
            with make("Row"):
                file = make("Dropdown", label="Hypernetwork", choices=[], scale=3, min_width=160, elem_id="hnl-file")
                strength = make("Slider", label="Strength", value=1.0, minimum=-2, maximum=2, step=0.05, scale=3)
            add = make("Button", "Add to the prompt", size="sm", elem_id="hnl-add")
            with make("Row"):
                steps = fields.steps("hnl-steps")
                guidance = make(
                    "Slider",
                    label="Guidance",
                    value=generator.default_guidance or 7.0,
                    minimum=1,
                    maximum=20,
                    step=0.5,
                )
            with make("Row"):
                count = make(
                    "Slider", label="Images", value=1, minimum=1, maximum=MOST_IMAGES, step=1, elem_id="hnl-count"
                )
                seed = make(
                    "Number", label="Seed", info="-1 draws a new one", value=-1, precision=0, elem_id="hnl-seed"
                )
            with make("Accordion", "Model, sampler, size", open=host.models is not None):
                names = list(host.models.models()) if host.models is not None else []
                model = make(
                    "Dropdown",
                    label="Model",
                    choices=names,
                    value=names[0] if names else None,
                    visible=bool(names),
                    elem_id="hnl-model",
                )
                sampler, width, height = fields.sampler_and_size(generator)
        with make("Column", scale=7, min_width=360):
            status = html(elem_id="hnl-generate-status")
            images = gallery(label="Images", columns=2, elem_id="hnl-images")
            text = make(
                "Textbox", label="Parameters", lines=3, max_lines=12, interactive=False, elem_id="hnl-parameters"
            )
    token = make("State", None)
    inputs = [prompt, negative, count, steps, guidance, seed, sampler, width, height]
    outputs = [token, status, images, text, run, cancel]
    for event in (run.click, prompt.submit, negative.submit):
        listen(event, page.run, inputs, outputs)
    listen(cancel.click, stop, [token], [], queue=False)
    listen(add.click, page.add, [prompt, file, strength], [prompt, status])
    if names:
        listen(model.change, page.choose_model, [model], [guidance, status])
    listen(root.load, lambda: choices(catalog), [], [file])
    return GeneratePage(prompt, file)
