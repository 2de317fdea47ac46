"""Write tables in Markdown, targets with their verdicts, results as JSON, and sections of the documentation."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hnloader.files import replacing
from lab.benchmarks._measure import Spread


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table with padded cells. The first `words` columns are aligned to the left."""
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [
        [cell.ljust(width) if column < words else cell.rjust(width) for column, (cell, width) in enumerate(pairs)]
        for pairs in [list(zip(row, widths, strict=True)) for row in cells]
    ]
    rule = ["-" * width if column < words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def with_spread(spread: Spread, digits: int = 2) -> str:
    """Return the median with its quartiles, such as `1.13 (1.11-1.15)`."""
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def duration(seconds: float) -> str:
    """Return seconds as text in s, ms or us."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def megabytes(count: float) -> str:
    """Return bytes as text in MB of 10^6 bytes."""
    return f"{count / 1e6:.1f} MB"


@dataclass(frozen=True)
class Target:
    """A figure with an upper limit.

    Attributes:
        what: Name of the figure.
        where: Model on which it was measured.
        measured: Its value.
        limit: Highest acceptable value.
        bound: Lowest value that the arithmetic allows, if known.
        unit: Unit of the values; empty for ratios.
    """

    what: str
    where: str
    measured: Spread
    limit: float
    bound: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool:
        """Return True if the median is at or below the limit."""
        return self.measured.median <= self.limit

    @property
    def verdict(self) -> str:
        """Return `ok`, or the distance from the limit and the reason."""
        if self.met:
            return "ok"
        text = f"missed by {self.measured.median - self.limit:.3g}{self.unit}"
        if self.measured.low <= self.limit:
            text += ", within the spread"
        if self.bound is not None and self.bound > self.limit:
            text += ", which the arithmetic does not allow"
        return text

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "measured": self.measured.to_json(), "met": self.met}


def target_table(targets: Sequence[Target]) -> str:
    """Return a table with a row for each target. Neighbors on the same model share its name."""
    rows = []
    where = ""
    for target in targets:
        rows.append(
            [
                "" if target.where == where else target.where,
                target.what,
                with_spread(target.measured, 3) + target.unit,
                f"{target.limit:g}{target.unit}",
                "" if target.bound is None else f"{target.bound:.3f}",
                target.verdict,
            ]
        )
        where = target.where
    headers = ["measured on", "target", "measured (quartiles)", "at most", "least possible", "verdict"]
    return table(headers, rows, words=2)


def machine(threads: int | None = None) -> str:
    """Describe the machine in one line; `threads` overrides the number of torch's threads."""
    parts = [_processor(), f"{threads or torch.get_num_threads()} thread(s)", f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    else:
        parts.append("no GPU")
    return ", ".join(parts)


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def save_json(folder: Path | None, name: str, content: object) -> None:
    """Write `name.json` into the folder of results, if there is one."""
    if folder is not None:
        write(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def put_between(text: str, name: str, content: str) -> str:
    """Return `text` with `content` between the lines `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        ValueError: One of the lines is missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected {begin} and then {end}.")
    return f"{before}{begin}\n{content.strip()}\n{end}{after}"
