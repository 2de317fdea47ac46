"""Generate: images from a prompt, on the page that has its own model."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError, SettingsError
from hnloader.files import check_room
from hnloader.prompt import Tag
from hnloader.ui import jobs, markup
from hnloader.ui.compat import gallery, html, listen, make, reveal, update
from hnloader.ui.page_host import ImageRequest
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.fields import IMAGE_SIZE, ImageValues, SettingFields, example_prompt, slider, textbox, whole
from hnloader.ui.pages.library_page import tag_name
from hnloader.ui.pages.progress import complaint, ended, run_and_cancel, stop_with, updates
from hnloader.ui.saving import save_numbered

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Generator, Host

__all__ = ["MOST_IMAGES", "GeneratePage", "build", "with_tag"]

MOST_IMAGES = 16  # at once
_FIRST_STEPS = markup.empty(
    "No images yet",
    "Press Generate to make one from the example prompt.",
    "Then select a file, press Add to prompt, and generate again to see what it changes.",
)


@dataclass(frozen=True)
class GeneratePage:
    """Components that the other pages use."""

    prompt: Any
    file: Any


@dataclass
class _Generate:
    """Event handlers."""

    host: Host
    catalog: Catalog
    generator: Generator

    def add(self, prompt: str, label: str | None, strength: float) -> tuple[str, Any]:
        """Add the selected hypernetwork's tag to the prompt, or an embedding's word."""
        try:
            entries = chosen_files(self.catalog, [label] if label else [], embeddings=True)
            if not entries:
                raise SettingsError("Hypernetwork or embedding: none selected. Select one first.")
            return with_tag(prompt, entries[0].word or Tag(tag_name(entries[0], self.catalog), strength)), update()
        except HypernetworkError as error:
            return prompt, complaint(error)

    def choose_model(self, name: str, prompt: str) -> tuple[Any, Any, str]:
        """Use another model. Its example replaces another model's in the prompt."""
        models = self.host.models
        assert models is not None
        try:
            models.choose(name)
        except HypernetworkError as error:
            return update(), update(), complaint(error)
        defaults = models.defaults(name)
        is_example = prompt in {models.defaults(each).prompt for each in models.models()}
        shown = defaults.prompt if is_example else update()
        return update(value=defaults.guidance), shown, markup.notice(f"The next image uses {name}.")

    def run(self, prompt: str, count: float, seed: float | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Make images. Yields token, status, both buttons, the images and their parameters."""
        made: list[tuple[Image, Path]] = []
        try:
            if not 1 <= count <= MOST_IMAGES:
                raise SettingsError(f"Images: expected 1 to {MOST_IMAGES}, got {count}.")
            check_room(self.host.output(), int(count) * IMAGE_SIZE)
            first = secrets.randbelow(2**32 - int(count)) if seed is None or seed < 0 else whole(seed, "Seed")
            request = ImageValues(*values).request(prompt or "", first)
        except HypernetworkError as error:
            yield ended(complaint(error), update(), update())
            return
        job = jobs.Job(lambda job: self._work(job, request, int(count), made), self.generator.interrupt)
        shown = 0

        def show(_: object) -> tuple[Any, Any]:
            nonlocal shown
            before, shown = shown, len(made)
            return update() if before == shown else _images(made), update()

        yield from updates(job, "Loading the model ...", show)
        try:
            job.result()
            status = markup.notice(_saved(made), "good")
        except Exception as error:
            status = complaint(error)
            if isinstance(error, CancelledError) and made:
                status = markup.notice(f"Cancelled. {_saved(made)}", "info")
        yield ended(status, *((_images(made), _parameters(made)) if made else (update(), update())))

    def _work(self, job: jobs.Job[None], request: ImageRequest, count: int, made: list[tuple[Image, Path]]) -> None:
        for number in range(count):

            def progress(step: int, steps: int, number: int = number) -> None:
                image = f"Image {number + 1} of {count}, " if count > 1 else ""
                job.report(number * steps + step, count * steps, f"{image}step {step} of {steps}")

            job.check()
            seed = request.seed + number
            image = self.generator.image(replace(request, seed=seed), progress)
            infotext = str(image.info.get("parameters") or "")
            made.append((image, save_numbered(image, self.host.output(), "", seed, infotext)))


def with_tag(prompt: str, tag: Tag | str) -> str:
    """Return the prompt with a tag or a word at its end."""
    return f"{prompt.rstrip()} {tag}".lstrip() if prompt else str(tag)


def _images(made: list[tuple[Image, Path]]) -> Any:
    return update(value=[image for image, _ in made], visible=True)


def _saved(made: list[tuple[Image, Path]]) -> str:
    first, last = made[0][1], made[-1][1]
    return f"Saved as {first}." if len(made) == 1 else f"Saved {len(made)} images: {first} to {last}."


def _parameters(made: list[tuple[Image, Path]]) -> Any:
    text = "\n\n".join(str(image.info.get("parameters", "")) for image, _ in made)
    return update(value=text, visible=True)


def build(host: Host, catalog: Catalog, generator: Generator, root: Any) -> GeneratePage:
    """Build the page within the open gradio context."""
    handlers = _Generate(host, catalog, generator)
    settings = SettingFields(generator, "hnl")
    names = list(host.models.models()) if host.models is not None else []
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            # One line that grows, so that Enter generates.
            hint = "Describe the image"
            prompt = textbox("Prompt", "hnl-prompt", max_lines=6, placeholder=hint, value=example_prompt(host))
            settings.negative_prompt()
            run, cancel = run_and_cancel("Generate", "hnl-generate")
            with make("Row"):
                label = "Hypernetwork or embedding"
                file = make("Dropdown", label=label, choices=[], scale=3, min_width=160, elem_id="hnl-file")
                strength = slider("Strength", "hnl-strength", 1.0, (-2, 2, 0.05), scale=3)
            add = make("Button", "Add to prompt", size="sm", elem_id="hnl-add")
            settings.sampling()
            with make("Row"):
                count = slider("Images", "hnl-count", 1, (1, MOST_IMAGES, 1))
                seed = make("Number", label="Seed", info="-1: random", value=-1, precision=0, elem_id="hnl-seed")
            with make("Accordion", "Model, sampler, size", open=len(names) > 1):
                first = {"value": names[0] if names else None, "visible": bool(names)}
                model = make("Dropdown", label="Model", choices=names, elem_id="hnl-model", **first)
                settings.sampler_and_size()
        with make("Column", scale=7, min_width=360):
            status = html(_FIRST_STEPS, elem_id="hnl-generate-status")
            images = gallery(label="Images", columns=2, elem_id="hnl-images", visible=False)
            hidden = {"interactive": False, "visible": False}
            text = textbox("Generation parameters", "hnl-parameters", lines=3, max_lines=12, **hidden)
    token = make("State", None)
    for event in (run.click, prompt.submit, settings.negative.submit):
        outputs = [token, status, run, cancel, images, text]
        listen(event, handlers.run, [prompt, count, seed, *settings.inputs], outputs)
        reveal(event, "hnl-generate-status")
    stop_with(cancel, token)
    listen(add.click, handlers.add, [prompt, file, strength], [prompt, status])
    if names:
        listen(model.change, handlers.choose_model, [model, prompt], [settings.guidance, prompt, status])
    listen(root.load, lambda: choices(catalog, embeddings=True), [], [file])
    return GeneratePage(prompt, file)
