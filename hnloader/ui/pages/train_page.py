"""Train: a folder of images becomes a hypernetwork or an embedding, in a process that outlives the page."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.files import expanded
from hnloader.images import OWN_PREVIEWS, read_image
from hnloader.prompt import Tag
from hnloader.ui import markup
from hnloader.ui.compat import html, image_output, listen, make, update
from hnloader.ui.pages.fields import whole
from hnloader.ui.pages.library_page import tag_name
from hnloader.ui.pages.progress import complaint
from hnloader.ui.trainings import Trainings

if TYPE_CHECKING:
    from hnloader.training.status import Status
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Host, TrainingPlace
    from hnloader.ui.trainings import TrainingFiles

_METHODS = ("hypernetwork", "embedding")
_PRESETS = ("style", "subject")
_LAST, _BEST = "the last step", "the lowest held-out loss"
_LOOK_SIDE = 512
_WIDEST_PREVIEW = 1400
_EVERY = 0.5  # seconds between two looks at the training that is watched
# A page that was closed is noticed when something is sent to it.
_QUIET = 10  # looks without news
_ENDED = {
    "done": ("Finished.", "good"),
    "no longer better": ("Finished: the held-out loss was no longer better.", "good"),
    "interrupted": ("Stopped; everything is saved. Go on continues it.", "info"),
}


@dataclass(frozen=True)
class TrainPage:
    """What the other pages use: the event after which the library has a new file."""

    used: Any


class _Train:
    """What the page's events do."""

    def __init__(self, host: Host, catalog: Catalog, place: TrainingPlace) -> None:
        self.host, self.catalog, self.place = host, catalog, place

    def look(self, images: str) -> tuple[str, Any]:
        """What a training would see of the folder: a line, what is wrong, and a contact sheet."""
        try:
            from hnloader.training.config import DataConfig
            from hnloader.training.dataset import TOKENS, count_tokens, note_long_captions, read_folder
            from hnloader.training.sheet import contact_sheet

            found = read_folder(expanded((images or "").strip()).absolute(), DataConfig())
            note_long_captions(found, lambda image, index: image.caption or "", count_tokens, TOKENS)
            sheet = contact_sheet(found, DataConfig(), _LOOK_SIDE)
        except ImportError as error:
            return markup.notice(f"Looking at images needs {error.name}.", "bad"), None
        except Exception as error:
            return complaint(error), None
        captions = sum(image.caption is not None for image in found.images)
        said = f"{len(found.images)} images to train on, {captions} with captions of their own."
        rows = [
            [markup.escaped(problem.path.name), markup.escaped(problem.what, 300)] for problem in found.problems[:50]
        ]
        kind = "info" if any(problem.fatal for problem in found.problems) else "good"
        return markup.notice(said, kind) + (markup.grid(["File", "What was found"], rows) if rows else ""), sheet

    def start(
        self,
        name: str,
        images: str,
        model: str,
        method: str,
        preset: str,
        steps: float | None,
        rate: str,
        more: str,
        python: str,
    ) -> Iterator[tuple[Any, ...]]:
        """Begin a training, and watch it."""
        try:
            settings: dict[str, Any] = {
                "images": (images or "").strip(),
                "model": (model or "").strip(),
                "method": method,
            }
            settings |= {"steps": whole(steps, "Steps"), "learning_rate": (rate or "auto").strip()}
            trainings = self._trainings(python)
            self._check(trainings)
            trainings.start((name or "").strip(), settings | _settings(more), preset)
        except Exception as error:
            yield self._refused(error)
            return
        yield from self.watch((name or "").strip())

    def resume(self, name: str | None, steps: float | None, python: str) -> Iterator[tuple[Any, ...]]:
        """Go on with the training that is chosen, and watch it."""
        try:
            trainings = self._trainings(python)
            if not name:
                raise HypernetworkError("Choose a training to go on with.")
            self._check(trainings)
            trainings.resume(name, self._more_steps(trainings.files(name), whole(steps, "Steps")))
        except Exception as error:
            yield self._refused(error)
            return
        yield from self.watch(name)

    def _more_steps(self, files: TrainingFiles, steps: int) -> int | None:
        """None where it goes on to the steps that it was told; of a finished one, the new end."""
        from hnloader.training.status import read_status

        status = read_status(files.states)
        if status is None or status.phase not in ("done", "no longer better"):
            return None
        if steps <= status.step:
            raise HypernetworkError(
                f"{files.name} is finished at step {status.step:,}. To train it on, set Steps to more than that."
            )
        return steps

    def stop(self) -> str:
        """Ask the one that runs to end."""
        name = self._trainings().stop()
        text = f"{name} ends after its present step, with everything saved." if name else "No training is running."
        return markup.notice(text)

    def watch(self, name: str | None = None) -> Iterator[tuple[Any, ...]]:
        """Show a training (if none is chosen, the one that runs, else the newest) until it ends.

        Yields the list of trainings, status, details, and the buttons Start, Go on and Stop.
        """
        trainings = self._trainings()
        name = name or trainings.running() or next(iter(trainings.names()), None)
        if name is None:
            yield self._nothing()
            return
        files, shown, quiet = trainings.files(name), None, 0
        while True:
            active = trainings.running()
            running = active == name
            newest = (active, _stamp(files.states / "status.json"), _stamp(files.previews))
            if newest != shown or quiet >= _QUIET:
                yield (
                    update(choices=trainings.names(), value=name),
                    _status(files, running),
                    _details(files),
                    update(interactive=active is None),
                    update(interactive=active is None),
                    update(interactive=active is not None),
                )
                quiet = 0
            shown, quiet = newest, quiet + 1
            if not running:
                return
            time.sleep(_EVERY)

    def use(self, name: str | None, which: str) -> str:
        """Copy what came out into the library; what to tell."""
        try:
            if not name:
                raise HypernetworkError("Choose a training first.")
            trainings = self._trainings()
            embedding = trainings.settings(name).get("method") == "embedding"
            chosen = self.place.embeddings if embedding and self.place.embeddings is not None else self.place.library
            path = trainings.use(name, chosen(), best=which == _BEST)
        except Exception as error:
            return complaint(error)
        self.catalog.refresh()
        self.host.on_change()
        entry = next((each for each in self.catalog.entries() if each.path == path), None)
        tag = "" if embedding or entry is None else f" In a prompt: {Tag(tag_name(entry, self.catalog))}"
        return markup.notice(f"Copied to {path}.{tag}", "good")

    # -- small things

    def _trainings(self, python: str = "") -> Trainings:
        named = (python or "").strip() if self.place.may_name_python else ""
        return Trainings(self.place.folder(), named)

    def _check(self, trainings: Trainings) -> None:
        if lacking := trainings.missing():
            raise HypernetworkError(f"{lacking} {self._advice(trainings.python)}")

    def _advice(self, python: str) -> str:
        text = f"Training needs them: {python} -m pip install 'hnloader[train]'"
        if self.place.may_name_python:
            return f"{text}; or name another Python, which has them, under 'Program'."
        return f"{text}."

    def _refused(self, error: BaseException) -> tuple[Any, ...]:
        return update(), complaint(error), *[update()] * 4

    def _nothing(self) -> tuple[Any, ...]:
        lacking = self._trainings().missing()
        said = f"{lacking} {self._advice(self._trainings().python)}" if lacking else ""
        empty = markup.empty("No training yet", "Name a folder with 5 to 50 images, and press Start.")
        idle = update(interactive=True), update(interactive=False), update(interactive=False)
        return update(choices=[], value=None), markup.notice(said, "bad"), empty, *idle


def _settings(text: str) -> dict[str, Any]:
    """More settings, as YAML: keys as in a configuration, dotted or nested."""
    from hnloader.errors import ConfigError
    from hnloader.training.schema import read_yaml

    if not (text or "").strip():
        return {}
    try:
        found = read_yaml(text)
    except ConfigError as error:
        raise HypernetworkError(f"More settings: this {error}") from error
    if not isinstance(found, dict):
        raise HypernetworkError("More settings: lines such as `batch_size: 2` were expected.")
    return {str(key): value for key, value in found.items()}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _status(files: TrainingFiles, running: bool) -> str:
    """How far it is, or how it ended."""
    from hnloader.training.status import ENDED, read_status

    status = read_status(files.states)
    if running:
        if status is None or status.phase != "running":
            return markup.progress(0, 1, "Reading the images and loading the model ...")
        left = "" if status.left is None else f", {_duration(status.left)} left"
        return markup.progress(
            status.step, status.steps, f"{files.name}: step {status.step:,} of {status.steps:,}{left}"
        )
    said = files.problem() or (status.message if status is not None and status.phase == "failed" else "")
    if said or status is None or status.phase not in ENDED:
        told = said or "it was ended from outside; Go on continues it from the state that was saved last."
        return markup.notice(f"{files.name} did not finish: {told}", "bad")
    text, kind = _ENDED[status.phase]
    return markup.notice(f"{files.name}: {text}", kind)


def _details(files: TrainingFiles) -> str:
    """Figures, curves and previews."""
    from hnloader.training.html import curves
    from hnloader.training.status import read_status

    status = read_status(files.states)
    if status is None:
        return ""
    lines = {
        "training": [(each["step"], each["loss"]) for each in status.history if "loss" in each],
        "held out": [(each["step"], each["held_out"]) for each in status.history if "held_out" in each],
    }
    drawn = f'<div class="hnl-curves">{curves(lines, "steps")}</div>' if len(status.history) > 1 else ""
    return f'<div class="hnl-details">{markup.table(_rows(files, status))}{drawn}{_previews(files.previews)}</div>'


def _rows(files: TrainingFiles, status: Status) -> Iterator[tuple[str, str]]:
    yield "Steps", f"{status.step:,} of {status.steps:,}"
    if status.loss is not None:
        yield "Loss", f"{status.loss:.4f}"
    if status.held_out is not None and status.best is not None:
        yield "Held-out loss", f"{status.held_out:.4f}, lowest {status.best[0]:.4f} at step {status.best[1]:,}"
    if status.rate is not None:
        yield "Learning rate", f"{status.rate:.3g}"
    yield "Trained for", _duration(status.seconds)
    if status.message:
        yield "Note", markup.escaped(status.message, 400)
    if (files.states / "report.html").is_file():
        yield "Report", f"<code>{markup.escaped(files.states / 'report.html')}</code>"


def _previews(path: Path) -> str:
    """The tiled previews within the page itself, so that the server need not serve files."""
    try:
        image = read_image(path, OWN_PREVIEWS).image
    except HypernetworkError:
        return ""
    image.thumbnail((_WIDEST_PREVIEW, _WIDEST_PREVIEW))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="hnl-previews" alt="previews over the steps" src="data:image/jpeg;base64,{data}">'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def build(host: Host, catalog: Catalog, place: TrainingPlace, root: Any) -> TrainPage:
    """Make the page within the open gradio context."""
    page = _Train(host, catalog, place)
    models = list(place.models())
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            images = make(
                "Textbox",
                label="Folder with the images",
                info="5 to 50 of one style or subject, on the computer that runs this",
                max_lines=1,
                elem_id="hnl-train-images",
            )
            look = make("Button", "Look at the images", size="sm", elem_id="hnl-train-look")
            name = make("Textbox", label="Name of what comes out", max_lines=1, elem_id="hnl-train-name")
            model = make(
                "Dropdown",
                label="Model",
                info="a diffusers folder, a checkpoint, or a name on the hub",
                choices=models,
                value=models[0] if models else None,
                allow_custom_value=True,
                elem_id="hnl-train-model",
            )
            with make("Row"):
                method = make("Radio", label="What", choices=list(_METHODS), value=_METHODS[0])
                preset = make("Radio", label="Of a", choices=list(_PRESETS), value=_PRESETS[0])
            with make("Row"):
                steps = make(
                    "Number", label="Steps", value=1500, precision=0, minimum=1, min_width=90, elem_id="hnl-train-steps"
                )
                rate = make("Textbox", label="Learning rate", value="auto", max_lines=1, min_width=90)
            with make("Accordion", "More settings", open=False):
                more = make(
                    "Textbox",
                    label="Settings",
                    info="one on each line, as `hnloader train --init` shows them: batch_size: 2",
                    lines=3,
                    max_lines=20,
                    elem_id="hnl-train-more",
                )
                python = make(
                    "Textbox",
                    label="Program",
                    info="a Python that has hnloader[train]; empty for the one that runs this page",
                    max_lines=1,
                    visible=place.may_name_python,
                    elem_id="hnl-train-python",
                )
            with make("Row"):
                start = make("Button", "Start", variant="primary", elem_id="hnl-train", scale=3)
                end = make("Button", "Stop", variant="stop", elem_id="hnl-train-stop", scale=1, interactive=False)
            with make("Row"):
                earlier = make("Dropdown", label="Trainings", choices=[], elem_id="hnl-train-earlier", scale=3)
                again = make("Button", "Go on", elem_id="hnl-train-resume", scale=1, min_width=80, interactive=False)
            with make("Row"):
                which = make("Radio", label="Weights of", choices=[_LAST, _BEST], value=_LAST, scale=3)
                use = make("Button", "Copy to the library", elem_id="hnl-train-use", scale=1, min_width=120)
        with make("Column", scale=7, min_width=360):
            status = html(elem_id="hnl-train-status")
            said = html(elem_id="hnl-train-said")
            details = html(elem_id="hnl-train-details")
            sheet = image_output(label="Images", elem_id="hnl-train-sheet")
    watched = [earlier, status, details, start, again, end]
    listen(look.click, page.look, [images], [said, sheet])
    listen(start.click, page.start, [name, images, model, method, preset, steps, rate, more, python], watched)
    listen(again.click, page.resume, [earlier, steps, python], watched)
    listen(end.click, page.stop, [], [said], queue=False)
    listen(earlier.input, page.watch, [earlier], watched)
    listen(root.load, page.watch, [], watched)
    for event in (start.click, again.click):
        listen(event, lambda: "", [], [said])
    used = listen(use.click, page.use, [earlier, which], [said])
    return TrainPage(used)
