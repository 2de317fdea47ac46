"""Predict: images of a style become a hypernetwork, shown at three strengths."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.files import check_room
from hnloader.grids import labeled_grid
from hnloader.loading import save
from hnloader.prompt import Tag
from hnloader.ui import jobs, markup
from hnloader.ui.compat import files_input, html, image_output, listen, make, reveal, update
from hnloader.ui.page_host import ImageRequest
from hnloader.ui.pages.fields import example_prompt, slider, textbox, whole
from hnloader.ui.pages.progress import complaint, ended, run_and_cancel, stop_with, updates

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui.page_host import Generator, Host, PredictionPlace

__all__ = ["PredictPage", "build"]

_STRENGTHS = (0.0, 0.5, 1.0)
# Bytes to reserve on the disk for a file; the largest are those of SDXL.
_FILE_SIZE = 128 << 20
_FIRST_STEPS = markup.empty(
    "No style yet",
    "Drop 1 to 20 images of one style and press Predict.",
    "The file appears in the library, and the images below show it at three strengths.",
)


@dataclass(frozen=True)
class PredictPage:
    """The components that other pages use.

    Attributes:
        predicted: Called after a file was written.
    """

    predicted: Any


@dataclass
class _Predict:
    """Event handlers."""

    host: Host
    place: PredictionPlace
    generator: Generator

    def run(
        self, images: Sequence[bytes] | None, name: str, prompt: str, seed: float | None, steps: float | None
    ) -> Iterator[tuple[Any, ...]]:
        """Predict and show. Yields token, status, both buttons and the image."""
        try:
            output = self._output(name or "")
            check_room(output.parent, _FILE_SIZE)
            request = ImageRequest(prompt or "", seed=whole(seed, "Seed"), steps=whole(steps, "Sampling steps"))
        except HypernetworkError as error:
            yield ended(complaint(error), update())
            return
        given = images or []
        job = jobs.Job(lambda job: self._work(job, given, output, request), self.generator.interrupt)

        def show(news: jobs.Update | None) -> tuple[Any]:
            return (update() if news else update(visible=False),)

        yield from updates(job, "Loading the model ...", show)
        try:
            notes, grid = job.result()
        except Exception as error:
            yield ended(complaint(error), update())
            return
        self.host.on_change()
        text = " ".join([f"Saved as {output}. Its tag is {Tag(output.stem)}.", *notes])
        yield ended(markup.notice(text, "info" if notes else "good"), update(value=grid, visible=grid is not None))

    def _output(self, name: str) -> Path:
        """Return the file to write. Raises HypernetworkError."""
        stem = name.strip()
        if not stem or Path(stem).name != stem or stem.startswith("."):
            raise HypernetworkError("Output name: expected a name without folders. Enter one, such as ink.")
        output = self.place.library() / f"{stem.removesuffix('.pt')}.pt"
        if output.exists():
            raise HypernetworkError(f"{output}: the file exists. Enter another output name.")
        return output

    def _work(
        self, job: jobs.Job[Any], images: Sequence[bytes], output: Path, request: ImageRequest
    ) -> tuple[Sequence[str], Image | None]:
        """Write the file and make the images; a cancelled job keeps the file."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"image {number}.png" for number in range(1, len(images) + 1)]
            for path, content in zip(paths, images, strict=True):
                path.write_bytes(content)
            found = self.place.predict(paths, output.stem)
        job.check()
        output.parent.mkdir(parents=True, exist_ok=True)
        save(found.hypernetwork, output, overwrite=False)
        made: list[Image] = []
        try:
            for strength in _STRENGTHS:
                part = len(made)

                def progress(step: int, steps: int, part: int = part) -> None:
                    job.report(part * steps + step, len(_STRENGTHS) * steps, "Sampling")

                applied = ((output, Tag(output.stem, strength)),) if strength else ()
                single = ImageRequest(request.prompt, "", request.seed, request.steps, applied)
                made.append(self.generator.image(single, progress))
        except CancelledError:
            return found.notes, None
        return found.notes, labeled_grid([made], columns=[f"strength {each:g}" for each in _STRENGTHS], rows=[""])


def build(host: Host, place: PredictionPlace, generator: Generator) -> PredictPage:
    """Build the page within the open gradio context."""
    handlers = _Predict(host, place, generator)
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            images = files_input(label="Images of one style", elem_id="hnl-predict-images")
            name = textbox("Output name", "hnl-predict-name", placeholder="ink")
            prompt = textbox("Prompt", "hnl-predict-prompt", max_lines=4, value=example_prompt(host))
            with make("Row"):
                seed = make("Number", label="Seed", value=0, precision=0, minimum=0, min_width=90)
                steps = slider("Sampling steps", "hnl-predict-steps", 20, (1, 100, 1))
            run, cancel = run_and_cancel("Predict", "hnl-predict")
        with make("Column", scale=7, min_width=360):
            status = html(_FIRST_STEPS, elem_id="hnl-predict-status")
            image = image_output(label="Strengths", elem_id="hnl-predict-image", visible=False)
    token = make("State", None)
    inputs = [images, name, prompt, seed, steps]
    event = listen(run.click, handlers.run, inputs, [token, status, run, cancel, image])
    reveal(run.click, "hnl-predict-status")
    stop_with(cancel, token)
    return PredictPage(event)
