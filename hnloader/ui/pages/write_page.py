"""Write: texts from a language model, with and without a hypernetwork."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError, SettingsError
from hnloader.prompt import is_finite
from hnloader.ui import jobs, markup
from hnloader.ui.compat import html, listen, make, update
from hnloader.ui.page_host import TextRequest
from hnloader.ui.pages.choices import choices, chosen_files
from hnloader.ui.pages.fields import slider, textbox, whole
from hnloader.ui.pages.progress import complaint, ended, run_and_cancel, stop_with, updates

if TYPE_CHECKING:
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Writer

__all__ = ["MOST_TOKENS", "build"]

MOST_TOKENS = 2000
_MOST_CHARACTERS = 20_000  # of a prompt
_MOST_STRENGTH = 10.0


@dataclass(frozen=True)
class _Write:
    """Event handlers."""

    catalog: Catalog
    writer: Writer

    def run(self, prompt: str, compare: bool, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Write a text, and with `compare` first without the hypernetwork. Yields token, status, buttons and texts."""
        try:
            request = self._request(prompt or "", *values)
        except HypernetworkError as error:
            yield ended(complaint(error), update(), update())
            return
        requests = [replace(request, hypernetworks=())] if compare and request.hypernetworks else []
        requests.append(request)
        job = jobs.Job(lambda job: self._work(job, requests))
        shown = ["", ""]

        def show(news: jobs.Update | None) -> tuple[Any, Any]:
            if news is not None and isinstance(news.partial, list):
                shown[:] = news.partial
            return shown[0], update(value=shown[1], visible=len(requests) > 1)

        yield from updates(job, "Loading the model ...", show)
        try:
            shown[:] = job.result()
            status = markup.notice(f"Written with seed {request.seed}.", "good")
        except Exception as error:
            status = complaint(error)
            if isinstance(error, CancelledError):
                status = markup.notice("Cancelled.", "info")
        yield ended(status, *show(None))

    def _request(
        self, prompt: str, model: str, file: str | None, strength: float, *numbers: float | None
    ) -> TextRequest:
        tokens, temperature, seed = numbers
        if len(prompt) > _MOST_CHARACTERS:
            raise SettingsError(f"Prompt: expected at most {_MOST_CHARACTERS:,} characters, got {len(prompt):,}.")
        length = whole(tokens, "Tokens")
        if not 1 <= length <= MOST_TOKENS:
            raise SettingsError(f"Tokens: expected 1 to {MOST_TOKENS:,}, got {length:,}.")
        if not is_finite(temperature or 0) or not 0 <= (temperature or 0) <= 10:
            raise SettingsError(f"Temperature: expected 0 to 10, got {temperature}.")
        if not is_finite(strength) or abs(strength) > _MOST_STRENGTH:
            raise SettingsError(f"Strength: expected -10 to 10, got {strength}.")
        entries = chosen_files(self.catalog, [file] if file else [])
        return TextRequest(
            prompt,
            model,
            tuple((entry.path, float(strength)) for entry in entries),
            length,
            float(temperature or 0),
            secrets.randbelow(2**32) if seed is None or seed < 0 else whole(seed, "Seed"),
        )

    def _work(self, job: jobs.Job[list[str]], requests: Sequence[TextRequest]) -> list[str]:
        """Return the text of the last request, and that of the first of two."""
        texts = [request.prompt for request in requests]
        total = requests[0].max_tokens
        for number, request in enumerate(requests):
            parts: list[str] = []
            which = f"Text {number + 1} of {len(requests)}" if len(requests) > 1 else "Writing"

            def on_text(part: str, number: int = number, parts: list[str] = parts, which: str = which) -> None:
                parts.append(part)
                texts[number] = requests[number].prompt + "".join(parts)
                job.report(min(len(parts), total), total, which, _pair(texts, number))

            job.check()
            self.writer.write(request, on_text)
        return _pair(texts, len(requests) - 1)


def _pair(texts: Sequence[str], number: int) -> list[str]:
    """Return the text with the hypernetwork, empty before it begins, and that without."""
    if len(texts) == 1:
        return [texts[0], ""]
    return [texts[1] if number else "", texts[0]]


def build(catalog: Catalog, writer: Writer, root: Any) -> Any:
    """Build the page within the open gradio context, and return its dropdown of files."""
    handlers = _Write(catalog, writer)
    names = list(writer.models())
    with make("Row", equal_height=False):
        with make("Column", scale=4, min_width=340):
            hint = "The beginning of the text"
            prompt = textbox(
                "Prompt", "hnl-write-prompt", lines=3, max_lines=12, placeholder=hint, value=writer.example
            )
            run, cancel = run_and_cancel("Write", "hnl-write")
            with make("Row"):
                file = make(
                    "Dropdown", label="Hypernetwork", choices=[], scale=3, min_width=160, elem_id="hnl-write-file"
                )
                strength = slider("Strength", "hnl-write-strength", 1.0, (-2, 2, 0.05), scale=3)
            compare = make("Checkbox", label="Compare with the model alone", value=True, elem_id="hnl-write-compare")
            with make("Row"):
                tokens = slider("Tokens", "hnl-write-tokens", 100, (10, MOST_TOKENS, 10))
                temperature = slider("Temperature", "hnl-write-temperature", 0.8, (0, 2, 0.05))
            with make("Row"):
                model = make("Dropdown", label="Model", choices=names, value=names[0], elem_id="hnl-write-model")
                seed = make("Number", label="Seed", info="-1: random", value=-1, precision=0, elem_id="hnl-write-seed")
        with make("Column", scale=7, min_width=360):
            status = html("", elem_id="hnl-write-status")
            fixed = {"interactive": False, "lines": 8, "max_lines": 30}
            text = textbox("Text", "hnl-write-text", **fixed)
            plain = textbox("Model alone", "hnl-write-plain", visible=False, **fixed)
    token = make("State", None)
    inputs = [prompt, compare, model, file, strength, tokens, temperature, seed]
    listen(run.click, handlers.run, inputs, [token, status, run, cancel, text, plain])
    stop_with(cancel, token)
    listen(root.load, lambda: choices(catalog), [], [file])
    return file
