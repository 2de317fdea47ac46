"""Convert: selected files or the whole library, to safetensors, to the webuis' .pt, or to LoRA."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hnloader.embeddings.embedding_files import all_suffixes, counts
from hnloader.errors import MissingExtraError, SettingsError, install_advice
from hnloader.files import check_room
from hnloader.formats.registry import default_format, writable_formats
from hnloader.ui import jobs, markup
from hnloader.ui.compat import html, listen, make, reveal, update
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.progress import complaint, ended, run_and_cancel, stop_with, updates
from hnloader.units import counted

if TYPE_CHECKING:
    from hnloader.conversion.bulk import Converter, OnExisting
    from hnloader.conversion.planning import Plan
    from hnloader.conversion.results import Result
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Host

__all__ = ["ConvertPage", "build"]

_CHOSEN, _ALL = "selected files", "all files in the library"
_BESIDE, _ELSEWHERE = "same folder", "separate folder"
_LORA = "LoRA"
_EXISTING = ("skip", "rename", "overwrite")
# A longer table would make the page slow. Failures come first.
_MOST_ROWS = 300
_FIRST_STEPS = markup.empty(
    "Nothing converted yet",
    "Select files and press Convert. The originals are kept.",
    "If the list is empty, the Library tab shows where to put your files.",
)


@dataclass(frozen=True)
class ConvertPage:
    """Used by other pages: the dropdown of files, and the event after a conversion."""

    files: Any
    converted: Any


@dataclass
class _Convert:
    """Event handlers."""

    host: Host
    catalog: Catalog

    def run(
        self, scope: str, labels: list[str] | None, target: str, place: str, existing: str, report: bool
    ) -> Iterator[tuple[Any, ...]]:
        """Convert. Yields token, status, both buttons and the table."""
        try:
            plan = self._plan(scope, labels, target, place)
        except Exception as error:
            yield ended(complaint(error), "")
            return
        cancel = threading.Event()
        on_existing = cast("OnExisting", existing if existing in _EXISTING else "skip")
        job = jobs.Job(lambda job: self._work(job, plan, target, on_existing, cancel), cancel.set)
        yield from updates(job, "Looking for files ...", lambda news: ("" if news is None else update(),))
        try:
            results = job.result()
            status = self._status(results, plan, cancel.is_set(), report)
        except Exception as error:
            yield ended(complaint(error), "")
            return
        yield ended(status, self._table(results))
        self.catalog.refresh()
        self.host.on_change()

    def _elsewhere(self, target: str) -> Path:
        if target == _LORA and self.host.loras is not None:
            return self.host.loras()
        return self.host.converted() if self.host.converted is not None else self.host.output() / "converted"

    def _plan(self, scope: str, labels: list[str] | None, target: str, place: str) -> Plan:
        from hnloader.conversion.planning import plan as make_plan

        if target not in _targets():
            raise SettingsError(f"Format: expected one of {', '.join(_targets())}, got {target!r}.")
        embeddings = target != _LORA
        found = chosen_files(self.catalog, labels, embeddings=embeddings) if scope == _CHOSEN else []
        chosen = [entry.path for entry in found]
        if scope == _CHOSEN and not chosen:
            raise SettingsError("Files: none selected. Select some, or choose all files in the library.")
        out = self._elsewhere(target) if place == _ELSEWHERE else None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        paths = chosen or [folder for folder in self.catalog.folders() if folder.is_dir()]
        sources = all_suffixes(weights_only=True) if embeddings else ()
        plan = make_plan(paths, suffix=_targets()[target], sources=sources, out=out, accepts=counts)
        for folder in (out,) if out is not None else {job.target.parent for job in plan.jobs}:
            check_room(folder, plan.size)
        return plan

    def _work(
        self, job: jobs.Job[Any], plan: Plan, target: str, on_existing: OnExisting, cancel: threading.Event
    ) -> list[Result]:
        from hnloader.conversion.bulk import convert_many

        results: list[Result] = []
        files = max(1, len(plan.jobs))

        def tell(text: str = "", part: float = 0.0) -> None:
            done = max(0, len(results) - len(plan.settled))
            if not cancel.is_set():  # files in progress are finished after cancelling
                job.report(
                    int(100 * (done + part)), 100 * files, f"{done:,} of {counted(len(plan.jobs), 'file')}{text}"
                )

        tell()
        converter, at_once = self._converter(target, tell, cancel)
        for result in convert_many(plan, converter, jobs=at_once, on_existing=on_existing, cancel=cancel):
            results.append(result)
            tell()
        return results

    def _converter(
        self, target: str, tell: Callable[[str, float], None], cancel: threading.Event
    ) -> tuple[Converter, int]:
        """Return the converter of one file, and how many files to convert at once."""
        if target != _LORA:
            from hnloader.conversion.to_format import ToFormat

            return ToFormat(_targets()[target]), min(4, os.cpu_count() or 1)
        if self.host.lora_base is None:
            raise MissingExtraError(f"Converting to LoRA requires diffusers. {install_advice('diffusers')}.")
        from hnloader.conversion.lora.base_model import open_base
        from hnloader.conversion.lora.bulk_export import LoraExporter

        def progress(done: int, total: int, text: str) -> None:
            if cancel.is_set():
                raise KeyboardInterrupt  # how `bulk` is cancelled
            tell(f": {text}", done / max(1, total))

        return LoraExporter(open_base(**self.host.lora_base()), progress=progress), 1

    def _status(self, results: Sequence[Result], plan: Plan, cancelled: bool, report: bool) -> str:
        from hnloader.conversion.reports import write_report
        from hnloader.conversion.results import GOOD, counts

        found = counts(results)
        text = ", ".join(f"{number:,} {outcome}" for outcome, number in found.items()) or "Found no files to convert"
        if cancelled:
            left = len(plan.jobs) + len(plan.settled) - len(results)
            text = f"Cancelled: {text}, {left:,} left. Press Convert to resume"
        if report and results:
            folder = self.host.output()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "conversion-report.csv"
            write_report(results, path)
            text += f". Report: {path}"
        good = sum(result.outcome in GOOD for result in results)
        return markup.notice(f"{text}.", "bad" if not good else "info" if cancelled or "failed" in found else "good")

    def _table(self, results: Sequence[Result]) -> str:
        if not results:
            return ""
        ordered = sorted(results, key=lambda result: (result.outcome != "failed", result.outcome, result.label))
        rows = [self._row(result) for result in ordered[:_MOST_ROWS]]
        more = len(results) - len(rows)
        rows += [["", "", f"and {more:,} more"]] if more else []
        return markup.grid(["File", "Outcome", "Result"], rows)

    def _row(self, result: Result) -> list[str]:
        kind = {"failed": "hnl-bad", "skipped": "hnl-dim"}.get(result.outcome, "hnl-good")
        outcome = f'<span class="hnl-badge {kind}">{markup.escaped(result.outcome)}</span>'
        parts = [result.target.name] if result.target is not None and result.outcome != "failed" else []
        parts += [result.brief_reason] if result.reason else []
        if isinstance(fidelity := result.details.get("fidelity"), float):  # rounded down: 94.96 % is below 95 %
            parts.append(f"fidelity {math.floor(1000 * fidelity) / 10:g}%")
        for key in ("notes", "warnings"):
            parts += map(str, cast("Sequence[object]", result.details.get(key, ())))
        folders = [folder for folder in self.catalog.folders() if result.source.is_relative_to(folder)]
        label = result.source.relative_to(folders[0]).as_posix() if folders else result.label
        return [markup.escaped(label), outcome, markup.escaped("; ".join(parts), 400)]


def _targets() -> dict[str, str]:
    """Return how results end, by the label of each format."""
    return {one.label: one.suffix for one in writable_formats()} | {_LORA: "-lora.safetensors"}


def build(host: Host, catalog: Catalog, root: Any) -> ConvertPage:
    """Build the page within the open gradio context."""
    handlers = _Convert(host, catalog)
    default = default_format().label
    targets = [target for target in _targets() if target != _LORA or host.lora_base is not None]
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            scope = make("Radio", label="Convert", choices=[_CHOSEN, _ALL], value=_CHOSEN, elem_id="hnl-convert-scope")
            files = make("Dropdown", label="Files", choices=[], value=[], multiselect=True, elem_id="hnl-convert-files")
            target = make("Radio", label="Format", choices=targets, value=default, elem_id="hnl-convert-to")
            place = make("Radio", label="Save to", choices=[_BESIDE, _ELSEWHERE], value=_BESIDE)
            existing = make("Radio", label="If the file exists", choices=list(_EXISTING), value=_EXISTING[0])
            report = make("Checkbox", label="Save a report (CSV) in the image folder", value=False)
            run, cancel = run_and_cancel("Convert", "hnl-convert")
        with make("Column", scale=7, min_width=360):
            status = html(_FIRST_STEPS, elem_id="hnl-convert-status")
            table = html(elem_id="hnl-convert-table")
    token = make("State", None)
    inputs = [scope, files, target, place, existing, report]
    converted = listen(run.click, handlers.run, inputs, [token, status, run, cancel, table])
    reveal(run.click, "hnl-convert-status")
    stop_with(cancel, token)
    listen(scope.change, lambda scope: update(visible=scope == _CHOSEN), [scope], [files])
    # A LoRA is not a hypernetwork: keep it out of the library by default.
    listen(target.change, lambda target: update(value=_ELSEWHERE if target == _LORA else _BESIDE), [target], [place])
    listen(root.load, lambda: choices(catalog, embeddings=True), [], [files])
    return ConvertPage(files, converted)
