"""The Train page: train on a folder of images, in a process that outlives the page."""

from __future__ import annotations

import base64
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.files import expanded
from hnloader.images import OWN_PREVIEWS, read_image
from hnloader.prompt import Tag
from hnloader.texts import as_text, shown, without_folders
from hnloader.ui import jobs, markup
from hnloader.ui.compat import html, image_output, listen, make, update
from hnloader.ui.pages.fields import textbox, whole
from hnloader.ui.pages.library_page import tag_name
from hnloader.ui.pages.progress import complaint, ended, run_and_cancel, stop_with, updates
from hnloader.ui.training_runs import TrainingFiles, TrainingRuns
from hnloader.units import counted

if TYPE_CHECKING:
    from hnloader.training.status import Status
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Host, TrainingPlace

__all__ = ["TrainPage", "build"]

_METHODS = (("hypernetwork", "hypernetwork"), ("embedding", "embedding"), ("LoRA", "lora"))
_PRESETS = ("style", "subject")
_LAST, _BEST = "last step", "lowest validation loss"
_SHEET_RESOLUTION = 512
_MAX_PREVIEW_WIDTH = 1400
_INTERVAL = 0.5  # seconds between two reads of the status
# A closed page is noticed only when something is sent to it.
_MAX_QUIET = 10  # reads without news
_ENDED = {
    "done": ("Finished.", "good"),
    "early_stopped": ("Finished early: the validation loss stopped improving.", "good"),
    "interrupted": ("Stopped. Everything is saved. Press Resume to continue.", "info"),
}


@dataclass(frozen=True)
class TrainPage:
    """The event after which the library has a new file, for the other pages."""

    used: Any


@dataclass(frozen=True)
class _Form:
    """The values of the form."""

    name: str
    images: str
    model: str
    method: str
    preset: str
    steps: float | None
    learning_rate: str
    more: str
    python: str


class _Train:
    """The events of the page."""

    def __init__(self, host: Host, catalog: Catalog, place: TrainingPlace) -> None:
        self.host, self.catalog, self.place = host, catalog, place

    def check(self, images: str) -> tuple[str, Any]:
        """Return a summary of the images with their problems, and a contact sheet."""
        try:
            from hnloader.training.captions import MAX_TOKENS, check_caption_lengths, count_tokens
            from hnloader.training.config import DataConfig
            from hnloader.training.contact_sheet import contact_sheet
            from hnloader.training.dataset import read_folder

            found = read_folder(expanded((images or "").strip()).absolute(), DataConfig())
            check_caption_lengths(found, lambda image, index: image.caption or "", count_tokens, MAX_TOKENS)
            sheet = contact_sheet(found, DataConfig(), _SHEET_RESOLUTION)
        except ImportError as error:
            return markup.notice(f"Checking images requires {error.name}.", "bad"), None
        except Exception as error:
            return self._refusal(error), None
        captions = sum(image.caption is not None for image in found.images)
        text = f"{counted(len(found.images), 'image')} to train on, {captions} with a caption."
        rows = [
            [markup.escaped(problem.path.name), markup.escaped(problem.message, 300)] for problem in found.problems[:50]
        ]
        kind = "info" if any(problem.excluded for problem in found.problems) else "good"
        return markup.notice(text, kind) + (markup.grid(["File", "Problem"], rows) if rows else ""), sheet

    def start(self, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Start a training run and watch it; the values are the fields of `_Form`."""
        form = _Form(*values)
        name = (form.name or "").strip()
        try:
            settings: dict[str, Any] = {
                "images": (form.images or "").strip(),
                "model": (form.model or "").strip(),
                "method": form.method,
                "steps": whole(form.steps, "Steps"),
                "learning_rate": (form.learning_rate or "auto").strip(),
            }
            runs = self._runs(form.python)
            self._require_packages(runs)
            runs.start(name, settings | _settings(form.more), form.preset)
        except Exception as error:
            yield update(), self._refusal(error), *[update()] * 4
            return
        yield from self.watch(name)

    def resume(self, name: str | None, steps: float | None, python: str) -> Iterator[tuple[Any, ...]]:
        """Resume the selected training run and watch it."""
        try:
            runs = self._runs(python)
            if not name:
                raise HypernetworkError("Training runs: none selected. Select one to resume.")
            self._require_packages(runs)
            runs.resume(name, self._new_steps(runs.files(name), whole(steps, "Steps")))
        except Exception as error:
            yield update(), self._refusal(error), *[update()] * 4
            return
        yield from self.watch(name)

    def _new_steps(self, files: TrainingFiles, steps: int) -> int | None:
        """Return the new number of steps of a finished training run; None for an unfinished one."""
        from hnloader.training.status import read_status

        status = read_status(files.run_folder)
        if status is None or status.phase not in ("done", "early_stopped"):
            return None
        if steps <= status.step:
            raise HypernetworkError(
                f"{files.name}: finished at step {status.step:,}. To train it further, set Steps to a higher number."
            )
        return steps

    def stop(self) -> str:
        """Stop the current training run."""
        name = self._runs().stop()
        return markup.notice(
            f"{name} stops after the current step and saves everything." if name else "No training run is active."
        )

    def watch(self, name: str | None = None) -> Iterator[tuple[Any, ...]]:
        """Show a training (default: the running one, else the newest) until it ends.

        Yields:
            The list of training runs, status, details, and the buttons Train, Resume and Stop.
        """
        runs = self._runs()
        name = name or runs.running() or next(iter(runs.names()), None)
        if name is None:
            yield self._empty()
            return
        files, shown, quiet = runs.files(name), None, 0
        while True:
            active = runs.running()
            running = active == name
            newest = (active, _modified(files.run_folder / "status.json"), _modified(files.previews))
            if newest != shown or quiet >= _MAX_QUIET:
                yield (
                    update(choices=runs.names(), value=name),
                    _status(files, running, lambda text: self._without_folders(text, files)),
                    _details(files, lambda text: self._without_folders(text, files)),
                    update(interactive=active is None),
                    update(interactive=active is None),
                    update(interactive=active is not None),
                )
                quiet = 0
            shown, quiet = newest, quiet + 1
            if not running:
                return
            time.sleep(_INTERVAL)

    def use(self, name: str | None, which: str) -> str:
        """Copy the trained file into the library; return a notice."""
        try:
            if not name:
                raise HypernetworkError("Training runs: none selected. Select one first.")
            runs = self._runs()
            method = runs.settings(name).get("method")
            path = runs.use(name, self._folder(method), best=which == _BEST)
        except Exception as error:
            return self._refusal(error)
        self.catalog.refresh()
        self.host.on_change()
        entry = next((each for each in self.catalog.entries() if each.path == path), None)
        tag = ""
        if entry is not None and method != "lora":
            tag = f" In a prompt: {self.catalog.inspect(entry).word or Tag(tag_name(entry, self.catalog))}"
        return markup.notice(f"Copied to the folder {shown(path.parent.name)} as {shown(path.name)}.{tag}", "good")

    def try_out(self, name: str | None, which: str, prompt: str) -> Iterator[tuple[Any, ...]]:
        """Make images with the trained file. Yields token, status, both buttons and the grid."""
        try:
            runs = self._runs()
            if not name:
                raise HypernetworkError("Training runs: none selected. Select one first.")
            self._require_packages(runs)
            if runs.running():
                raise HypernetworkError("A training run is in progress. Wait for it, or stop it.")
            files = runs.files(name)
            file = files.best if which == _BEST else files.output
            if not file.is_file():
                raise HypernetworkError(f"Training run {shown(name)} has no file of the {which} yet.")
            settings = runs.settings(name)
        except Exception as error:
            yield ended(self._refusal(error), update())
            return

        def work(job: jobs.Job[Any]) -> Any:
            from hnloader.training import read_config
            from hnloader.training.trial import try_file

            def progress(done: int, total: int) -> None:
                job.report(done, total, f"Image {done} of {total}")

            return try_file(read_config(None, settings), file, prompt or "", progress=progress)

        job = jobs.Job(work)
        yield from updates(job, "Loading the model ...", lambda news: (update(),))
        try:
            grid = job.result()
        except Exception as error:
            yield ended(self._refusal(error), update())
            return
        yield ended("", update(value=grid, visible=True))

    def _folder(self, method: object) -> Path:
        """Return the folder where the host looks for files of a method."""
        host, place = self.host, self.place
        if method == "lora":
            return (host.loras or host.converted or (lambda: host.output() / "converted"))()
        return place.embeddings() if method == "embedding" and place.embeddings is not None else place.library()

    def _runs(self, python: str = "") -> TrainingRuns:
        named = (python or "").strip() if self.place.may_name_python else ""
        return TrainingRuns(self.place.folder(), named)

    def _require_packages(self, runs: TrainingRuns) -> None:
        if missing := runs.missing():
            raise HypernetworkError(f"{missing} {self._advice()}")

    def _advice(self) -> str:
        command = "With this Python, run in the folder of hnloader: python -m pip install '.[train]'"
        if self.place.may_name_python:
            return f"{command}, or set another Python interpreter under More settings."
        return f"{command}."

    def _refusal(self, error: BaseException) -> str:
        return complaint(error, self._without_folders)

    def _without_folders(self, text: str, files: TrainingFiles | None = None) -> str:
        """Shorten paths: the page can be public, and everybody at it sees the newest training run."""
        places = (self.place.folder, self.place.library, self.place.embeddings)
        folders = [Path(sys.executable).parent, *(place().absolute() for place in places if place is not None)]
        settings = {} if files is None else self._runs().settings(files.name)
        folders += [
            Path(as_text(settings[key], 4096)).parent for key in ("images", "model", "start_from") if settings.get(key)
        ]
        return without_folders(text, (folder for folder in folders if folder.is_absolute() and folder.name))

    def _empty(self) -> tuple[Any, ...]:
        runs = self._runs()
        missing = runs.missing()
        notice = markup.notice(self._without_folders(f"{missing} {self._advice()}") if missing else "", "bad")
        empty = markup.empty("No training runs yet", "Enter a folder with 5 to 50 images, and press Train.")
        idle = update(interactive=True), update(interactive=False), update(interactive=False)
        return update(choices=[], value=None), notice, empty, *idle


def _settings(text: str) -> dict[str, Any]:
    """Return more settings from YAML; keys may be dotted or nested."""
    from hnloader.errors import ConfigError
    from hnloader.training.schema import read_yaml

    if not (text or "").strip():
        return {}
    try:
        found = read_yaml(text)
    except ConfigError as error:
        raise HypernetworkError(f"More settings: {error}") from error
    if not isinstance(found, dict):
        raise HypernetworkError("More settings: expected lines such as `batch_size: 2`.")
    return {str(key): value for key, value in found.items()}


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _status(files: TrainingFiles, running: bool, shortened: Callable[[str], str]) -> str:
    """Return a progress bar, or how the training ended."""
    from hnloader.training.status import ENDED, read_status

    status = read_status(files.run_folder)
    if running:
        if status is None or status.phase != "running":
            return markup.progress(0, 1, "Reading the images and loading the model ...")
        left = "" if status.seconds_left is None else f", {_duration(status.seconds_left)} left"
        text = f"{files.name}: step {status.step:,} of {status.steps:,}{left}"
        return markup.progress(status.step, status.steps, text)
    problem = files.problem() or (status.message if status is not None and status.phase == "failed" else "")
    if problem or status is None or status.phase not in ENDED:
        problem = problem or "The process was killed. Press Resume to continue from the newest saved state."
        return markup.notice(f"{files.name} did not finish: {shortened(problem)}", "bad")
    text, kind = _ENDED[status.phase]
    return markup.notice(f"{files.name}: {text}", kind)


def _details(files: TrainingFiles, shortened: Callable[[str], str]) -> str:
    """Return numbers, curves and previews."""
    from hnloader.training.report import loss_curves
    from hnloader.training.status import read_status

    status = read_status(files.run_folder)
    if status is None:
        return ""
    drawn = f'<div class="hnl-curves">{loss_curves(status.history)}</div>' if len(status.history) > 1 else ""
    table = markup.table(_rows(files, status, shortened))
    previews = _previews(files.strengths, "by strength") + _previews(files.previews, "by step")
    return f'<div class="hnl-details">{table}{drawn}{previews}</div>'


def _rows(files: TrainingFiles, status: Status, shortened: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    yield "Steps", f"{status.step:,} of {status.steps:,}"
    if status.loss is not None:
        yield "Loss", f"{status.loss:.4f}"
    if status.validation_loss is not None and status.best is not None:
        yield "Validation loss", f"{status.validation_loss:.4f}, lowest {status.best[0]:.4f} at step {status.best[1]:,}"
    if status.learning_rate is not None:
        yield "Learning rate", f"{status.learning_rate:.3g}"
    yield "Training time", _duration(status.seconds)
    if status.message:
        yield "Message", markup.escaped(shortened(status.message), 400)
    report = files.run_folder / "report.html"
    if report.is_file():
        yield "Report", f"<code>{markup.escaped(report.relative_to(files.folder.parent.parent).as_posix())}</code>"


def _previews(path: Path, order: str) -> str:
    """Return the tiled previews as a data URL, so that the server needs no file access."""
    try:
        image = read_image(path, OWN_PREVIEWS).image
    except HypernetworkError:
        return ""
    image.thumbnail((_MAX_PREVIEW_WIDTH, _MAX_PREVIEW_WIDTH))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="hnl-previews" alt="preview images {order}" src="data:image/jpeg;base64,{data}">'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def build(host: Host, catalog: Catalog, place: TrainingPlace, root: Any) -> TrainPage:
    """Make the page in the open gradio context."""
    page = _Train(host, catalog, place)
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            fields, check = _form(place)
            with make("Row"):
                start = make("Button", "Train", variant="primary", elem_id="hnl-train", scale=3)
                stop = make("Button", "Stop", variant="stop", elem_id="hnl-train-stop", scale=1, interactive=False)
            with make("Row"):
                selected = make("Dropdown", label="Training runs", choices=[], elem_id="hnl-train-earlier", scale=3)
                resume = make("Button", "Resume", elem_id="hnl-train-resume", scale=1, min_width=80, interactive=False)
            with make("Row"):
                which = make("Radio", label="Weights", choices=[_LAST, _BEST], value=_LAST, scale=3)
                use = make("Button", "Copy to library", elem_id="hnl-train-use", scale=1, min_width=120)
            hint = "Empty: the captions of training images alone"
            prompt = textbox("Prompt to try", "hnl-train-prompt", info=hint)
            attempt, cancel = run_and_cancel("Try", "hnl-train-try")
        with make("Column", scale=7, min_width=360):
            status = html(elem_id="hnl-train-status")
            notice = html(elem_id="hnl-train-notice")
            details = html(elem_id="hnl-train-details")
            tried = html(elem_id="hnl-train-tried")
            grid = image_output(label="Training images and trained file", elem_id="hnl-train-grid", visible=False)
            sheet = image_output(label="Contact sheet", elem_id="hnl-train-sheet")
    token = make("State", None)
    listen(attempt.click, page.try_out, [selected, which, prompt], [token, tried, attempt, cancel, grid])
    stop_with(cancel, token)
    watched = [selected, status, details, start, resume, stop]
    listen(check.click, page.check, [fields["images"]], [notice, sheet])
    listen(start.click, page.start, list(fields.values()), watched)
    listen(resume.click, page.resume, [selected, fields["steps"], fields["python"]], watched)
    listen(stop.click, page.stop, [], [notice], queue=False)
    listen(selected.input, page.watch, [selected], watched)
    listen(root.load, page.watch, [], watched)
    for event in (start.click, resume.click):
        listen(event, lambda: "", [], [notice])
    return TrainPage(listen(use.click, page.use, [selected, which], [notice]))


def _form(place: TrainingPlace) -> tuple[dict[str, Any], Any]:
    """Return the fields of `_Form`, in order, and the button that checks the images."""
    models = list(place.models())
    fields: dict[str, Any] = dict.fromkeys(each.name for each in dataclasses.fields(_Form))
    hint = "5 to 50 images of one style or subject, on the computer that runs this page"
    fields["images"] = textbox("Image folder", "hnl-train-images", info=hint)
    check = make("Button", "Check images", size="sm", elem_id="hnl-train-look")
    fields["name"] = textbox("Output name", "hnl-train-name")
    fields["model"] = make(
        "Dropdown",
        label="Model",
        info="Diffusers folder, checkpoint, or name on the Hugging Face Hub",
        choices=models,
        value=models[0] if models else None,
        allow_custom_value=True,
        elem_id="hnl-train-model",
    )
    with make("Row"):
        fields["method"] = make("Radio", label="Train", choices=list(_METHODS), value="hypernetwork")
        fields["preset"] = make("Radio", label="Preset", choices=list(_PRESETS), value=_PRESETS[0])
    with make("Row"):
        fields["steps"] = make(
            "Number", label="Steps", value=1200, precision=0, minimum=1, min_width=90, elem_id="hnl-train-steps"
        )
        fields["learning_rate"] = textbox("Learning rate", "hnl-train-rate", value="auto", min_width=90)
    with make("Accordion", "More settings", open=False):
        hint = "One per line, as in `hnloader train --init`: batch_size: 2"
        fields["more"] = textbox("Settings", "hnl-train-more", 20, info=hint, lines=3)
        hint = "One with the packages for training (docs/install.md). Empty: the interpreter of this page"
        visible = place.may_name_python
        fields["python"] = textbox("Python interpreter", "hnl-train-python", info=hint, visible=visible)
    return fields, check
