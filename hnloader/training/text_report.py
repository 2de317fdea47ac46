"""Previews of texts over the steps, and the parts of a training report about texts."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hnloader.files import read_regular, replacing
from hnloader.training import html

_NAME = re.compile(r"step-(\d{8})\.json")
# A long training run is thinned out to about this number of steps.
_MAX_STEPS = 20


def save_previews(folder: Path, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """Write the texts of a step, and all steps in previews.txt; raise HypernetworkError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    with replacing(folder / f"step-{step:08d}.json") as temporary:
        temporary.write_text(json.dumps(made, ensure_ascii=False, indent=1), encoding="utf-8")
    lines = [f"step {at:,}\n\n{prompt}{text}\n\n" for at, prompt, text in _previews(folder)]
    with replacing(folder / "previews.txt") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def previews_section(folder: Path) -> Iterator[str]:
    """Yield the section with the texts by prompt and step, if there are any."""
    rows = [(prompt, f"{step:,}", text) for step, prompt, text in _previews(folder)]
    if rows:
        yield html.section("Previews", html.table(rows, ("prompt", "step", "text")))


def texts_section(counts: Mapping[str, int], problems: Sequence[tuple[str, str]]) -> str:
    """Return the section about the texts and their problems."""
    return html.section("Texts", html.table(counts.items()), html.table(problems) if problems else "")


def _previews(folder: Path) -> list[tuple[int, str, str]]:
    """Return step, prompt and text of all previews, by prompt and then by step."""
    steps = sorted(int(match[1]) for path in folder.glob("step-*.json") if (match := _NAME.fullmatch(path.name)))
    stride = max(-(-len(steps) // _MAX_STEPS), 1)
    found: dict[str, list[tuple[int, str, str]]] = {}
    for step in (step for index, step in enumerate(steps) if index % stride == 0 or step == steps[-1]):
        # Other programs can write to the folder.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            entries: Any = json.loads(read_regular(folder / f"step-{step:08d}.json"))
            for entry in entries:
                prompt, text = str(entry["prompt"]), str(entry["text"])
                found.setdefault(prompt, []).append((step, prompt, text))
    return [each for previews in found.values() for each in previews]
