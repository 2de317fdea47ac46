"""Convert: one file or all of them, to safetensors, to the webuis' .pt, or to LoRA."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hnloader.errors import HypernetworkError
from hnloader.files import check_room
from hnloader.formats.registry import default_format, writable_formats
from hnloader.ui import jobs, markup
from hnloader.ui.compat import html, listen, make, update
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.progress import buttons, complaint, stop

if TYPE_CHECKING:
    from hnloader.conversion.bulk import Converter, OnExisting
    from hnloader.conversion.planning import Plan
    from hnloader.conversion.results import Result
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Host

_CHOSEN, _ALL = "chosen files", "all files of the library"
_BESIDE, _ELSEWHERE = "beside each file", "in a folder of their own"
_LORA = "LoRA"
_EXISTING = {"leave it": "skip", "number the new one": "rename", "replace it": "overwrite"}
# A longer table would make the page slow; what failed stands first.
_MOST_ROWS = 300


@dataclass(frozen=True)
class ConvertPage:
    """What the other pages use: the dropdown of files, and the event after which there are new ones."""

    files: Any
    converted: Any


class _Convert:
    """What the page's events do."""

    def __init__(self, host: Host, catalog: Catalog) -> None:
        self.host = host
        self.catalog = catalog

    def elsewhere(self, target: str) -> Path:
        """The folder for files that are not to lie beside their sources."""
        if target == _LORA and self.host.loras is not None:
            return self.host.loras()
        return self.host.converted() if self.host.converted is not None else self.host.output() / "converted"

    def place_for(self, target: str) -> Any:
        """A LoRA is no hypernetwork: it goes to a folder of its own unless the user says otherwise."""
        return update(value=_ELSEWHERE if target == _LORA else _BESIDE)

    def run(
        self, scope: str, labels: list[str] | None, target: str, place: str, existing: str, report: bool
    ) -> Iterator[tuple[Any, ...]]:
        """Convert: yields the job's token, progress or notice, the table, and the two buttons."""
        idle = (update(interactive=True), update(interactive=False))
        busy = (update(interactive=False), update(interactive=True))
        try:
            plan = self._plan(scope, labels, target, place)
        except Exception as error:
            yield None, complaint(error), "", *idle
            return
        cancel = threading.Event()
        on_existing = cast("OnExisting", _EXISTING.get(existing, "skip"))
        job = jobs.Job(lambda job: self._work(job, plan, target, on_existing, cancel), cancel.set)
        yield job.token, markup.progress(0, 1, "Looking for files ..."), "", *busy
        for news in job.updates():
            yield job.token, markup.progress(news.done, news.total, news.text), update(), *busy
        try:
            results = job.result()
            said = self._said(results, plan, cancel.is_set(), report)
        except Exception as error:
            yield None, complaint(error), "", *idle
            return
        yield None, said, self._table(results), *idle
        self.catalog.refresh()
        self.host.after_change()

    def _plan(self, scope: str, labels: list[str] | None, target: str, place: str) -> Plan:
        from hnloader.conversion.planning import plan as make_plan

        if target not in _targets():
            raise HypernetworkError(f"There is no format {target!r}.")
        chosen = [entry.path for entry in chosen_files(self.catalog, labels)] if scope == _CHOSEN else []
        if scope == _CHOSEN and not chosen:
            raise HypernetworkError("No file is chosen. Choose some, or all files of the library.")
        out = self.elsewhere(target) if place == _ELSEWHERE else None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        paths = chosen or [folder for folder in self.catalog.folders() if folder.is_dir()]
        plan = make_plan(paths, suffix=_targets()[target], out=out)
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
            if not cancel.is_set():  # otherwise what is under way is finished
                job.report(int(100 * (done + part)), 100 * files, f"{done:,} of {len(plan.jobs):,} files{text}")

        tell()
        converter, at_once = self._converter(target, tell, cancel)
        for result in convert_many(plan, converter, jobs=at_once, on_existing=on_existing, cancel=cancel):
            results.append(result)
            tell()
        return results

    def _converter(
        self, target: str, tell: Callable[[str, float], None], cancel: threading.Event
    ) -> tuple[Converter, int]:
        """What converts one file, and how many at once."""
        if target != _LORA:
            from hnloader.conversion.to_format import ToFormat

            return ToFormat(_targets()[target]), min(4, os.cpu_count() or 1)
        if self.host.lora_base is None:
            raise HypernetworkError("LoRA needs diffusers, which is not here.")
        from hnloader.conversion.lora.base_model import open_base
        from hnloader.conversion.lora.bulk_export import LoraExporter

        def progress(done: int, total: int, text: str) -> None:
            if cancel.is_set():
                raise KeyboardInterrupt  # the sign that `bulk` asks for
            tell(f": {text}", done / max(1, total))

        return LoraExporter(open_base(**self.host.lora_base()), progress=progress), 1

    def _said(self, results: Sequence[Result], plan: Plan, cancelled: bool, report: bool) -> str:
        from hnloader.conversion.reports import write_report
        from hnloader.conversion.results import GOOD, counts

        found = counts(results)
        text = ", ".join(f"{number:,} {outcome}" for outcome, number in found.items()) or "There was no file to convert"
        if cancelled:
            left = len(plan.jobs) + len(plan.settled) - len(results)
            text = f"Cancelled: {text}; {left:,} not begun. Convert again to go on."
        if report and results:
            folder = self.host.output()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "conversion-report.csv"
            write_report(results, path)
            text += f". Report: {path}"
        good = sum(result.outcome in GOOD for result in results)
        return markup.notice(text, "bad" if not good else "info" if cancelled or "failed" in found else "good")

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
        details = result.details
        if isinstance(fidelity := details.get("fidelity"), float):  # rounded down: 94.96 % are no 95
            parts.append(f"fidelity {math.floor(1000 * fidelity) / 10:g}%")
        for kind_of_note in ("notes", "warnings"):
            parts += map(str, cast("Sequence[object]", details.get(kind_of_note, ())))
        return [markup.escaped(self._label(result)), outcome, markup.escaped("; ".join(parts), 400)]

    def _label(self, result: Result) -> str:
        """The file's path below the library's folder, as everywhere on the page."""
        for folder in self.catalog.folders():
            if result.source.is_relative_to(folder):
                return result.source.relative_to(folder).as_posix()
        return result.label


def _targets() -> dict[str, str]:
    """Return how results end, by the label of each format."""
    return {one.label: one.suffix for one in writable_formats()} | {_LORA: "-lora.safetensors"}


def build(host: Host, catalog: Catalog, root: Any) -> ConvertPage:
    """Make the page within the open gradio context."""
    page = _Convert(host, catalog)
    targets = [target for target in _targets() if target != _LORA or host.lora_base is not None]
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            scope = make("Radio", label="What", choices=[_CHOSEN, _ALL], value=_CHOSEN, elem_id="hnl-convert-scope")
            files = make("Dropdown", label="Files", choices=[], value=[], multiselect=True, elem_id="hnl-convert-files")
            target = make("Radio", label="To", choices=targets, value=default_format().label, elem_id="hnl-convert-to")
            place = make("Radio", label="Where", choices=[_BESIDE, _ELSEWHERE], value=_BESIDE)
            existing = make("Radio", label="Where a file is there already", choices=list(_EXISTING), value="leave it")
            report = make("Checkbox", label="Save a report (CSV) where images are saved", value=False)
            run, cancel = buttons("Convert", "hnl-convert")
        with make("Column", scale=7, min_width=360):
            status = html(elem_id="hnl-convert-status")
            table = html(elem_id="hnl-convert-table")
    token = make("State", None)
    converted = listen(
        run.click, page.run, [scope, files, target, place, existing, report], [token, status, table, run, cancel]
    )
    listen(cancel.click, stop, [token], [], queue=False)
    listen(scope.change, lambda scope: update(visible=scope == _CHOSEN), [scope], [files])
    listen(target.change, page.place_for, [target], [place])
    listen(root.load, lambda: choices(catalog), [], [files])
    return ConvertPage(files, converted)
