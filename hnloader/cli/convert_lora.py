"""`hnloader convert --to lora` and `--to lycoris`: what these options mean, and what is shown of the results."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from hnloader.cli.terminal import Show, clean, note, progress_bar, size_text, stderr, stdout

if TYPE_CHECKING:
    from hnloader.conversion.lora.files import ToLora
    from hnloader.conversion.results import Result

KINDS = ("lora", "lycoris")
PANEL = "To LoRA and LyCORIS"
_MOST_DIGITS = 9  # of a rank


@dataclass(frozen=True)
class LoraOptions:
    """The options of `hnloader convert` that are for LoRA and LyCORIS alone; None where one was not given."""

    base: str | None
    rank: str | None
    fidelity: float | None
    strength: str | None
    chain: bool
    prompts: Path | None
    images: int | None
    steps: int | None
    seed: int | None
    guidance: float | None
    names: str | None
    bias: str | None
    compare: Path | None
    config: Path | None
    device: str | None

    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        return [f"--{name}" for name, value in vars(self).items() if value not in (None, False)]


def refuse_lora_options(options: LoraOptions) -> None:
    """End with a usage error where an option was given that another target format has no use for."""
    if options.given():
        _refuse(options.given()[0], "is for --to lora and --to lycoris.")


def check_lora_usage(options: LoraOptions, kind: str, out: Path | None, files: Sequence[Path]) -> None:
    """What can be told to be wrong before the model is opened."""
    if options.base is None:
        _refuse("--base", f"is needed: a {'LoRA' if kind == 'lora' else 'LyCORIS file'} is made for a model.")
    for option, value in (("--rank", options.rank), ("--fidelity", options.fidelity)):
        if kind == "lycoris" and value is not None:
            _refuse(option, "is for --to lora; LyCORIS files hold full differences.")
    if kind == "lora" and options.bias is not None:
        _refuse("--bias", "is for --to lycoris; a LoRA has no bias.")
    if options.chain and not all(path.is_file() for path in files):
        _refuse("--chain", f"needs the files by name: {next(path for path in files if not path.is_file())} is none.")
    several = len(files) > 1 or not files[0].is_file()
    if options.chain and (out is None or out.suffix.lower() != ".safetensors"):
        _refuse("--out", "has to name a .safetensors file for --chain, which makes one file of several.")
    if options.compare is not None:
        if options.compare.suffix.lower() != ".png":
            _refuse("--compare", f"{options.compare}: images are written as .png.")
        if several and not options.chain:
            _refuse("--compare", "is for one file, or for several with --chain.")
    strengths = read_strengths(options.strength)
    if len(strengths) > 1 and not (options.chain and len(strengths) == len(files)):
        _refuse("--strength", "is one number, or with --chain one for each file: 0.8,0.5.")


def make_converter(options: LoraOptions, kind: str, dtype: str | None, progress: LoraProgress) -> ToLora:
    """What converts, with the model opened. Raises ModelError; usage errors of single options."""
    import torch

    from hnloader.conversion.lora.base import open_base
    from hnloader.conversion.lora.files import ToLora

    assert options.base is not None
    chosen: dict[str, Any] = {
        "kind": kind,
        "rank": _rank(options.rank),
        "fidelity": _fidelity(options.fidelity),
        "prompts": options.prompts,
        "images": options.images,
        "steps": options.steps,
        "seed": options.seed,
        "guidance": options.guidance,
        "dtype": None if dtype is None else getattr(torch, dtype),
        "names": _one_of("--names", options.names, ("diffusers", "original")),
        "bias": _one_of("--bias", options.bias, ("output", "projection")),
        "compare_to": options.compare,
    }
    with stderr().status("Opening the model ..."):
        base = open_base(options.base, config=options.config, device=options.device or "auto", note=note)
    given = {name: value for name, value in chosen.items() if value is not None}
    return ToLora(base, strength=read_strengths(options.strength)[0], note=note, progress=progress, **given)


class LoraProgress:
    """A bar for what happens within one file. Asking to stop stops in the middle of it, with nothing written."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._show: Show = lambda done, total, text: None

    def __call__(self, done: int, total: int, text: str) -> None:
        """`done` of `total` of what `text` says. Raises KeyboardInterrupt."""
        if self._cancelled():
            raise KeyboardInterrupt
        self._show(done, total, text)

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """Show it."""
        with progress_bar("Converting") as self._show:
            yield


def convert_chain(
    converter: ToLora, files: Sequence[Path], strength: str | None, target: Path, existing: str
) -> Result:
    """One file of several hypernetworks, in the order in which they were named."""
    from hnloader.conversion.planning import numbered
    from hnloader.conversion.results import Result

    label = " + ".join(path.name for path in files)
    if os.path.lexists(target):
        if existing == "skip":
            return Result(files[0], label, "skipped", target, f"{target} is there already")
        if existing == "rename":
            target = next(path for path in numbered(target) if not os.path.lexists(path))
    if existing != "overwrite":
        converter = converter.keeping()
    strengths = read_strengths(strength)
    strengths = strengths if len(strengths) > 1 else strengths * len(files)
    details = converter.convert_chain(list(zip(files, strengths, strict=True)), target)
    size = sum(path.stat().st_size for path in files)
    return Result(files[0], label, "converted", target, size=size, details=details)


def read_strengths(text: str | None) -> list[float]:
    """The numbers of `--strength`; [1.0] where it was not given."""
    try:
        found = [1.0] if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        _refuse("--strength", f"{text!r} is no number; write 0.8, or with --chain one for each file: 0.8,0.5.")
    return found


def show_exports(results: Iterable[Result]) -> None:
    """The errors of each written file, block by block, and what is to be known about it."""
    for result in results:
        if result.outcome == "converted" and "errors" in result.details:
            show_export(result.target, result.details)


def show_export(target: Path | None, details: Mapping[str, Any]) -> None:
    """The errors of one file by block."""
    assert target is not None
    stdout().print(Text(clean(target), "bold"), soft_wrap=True)
    stdout().print(_facts(target, details), soft_wrap=True)
    stdout().print(_error_table(details["errors"]))
    images = details.get("images")
    if images:
        stdout().print(
            f"Images differ from the hypernetwork's by {images['converted']:.1f} of 255; "
            f"those without it by {images['without']:.1f}.",
            soft_wrap=True,
        )
    stdout().print(Text(f"Errors: from {details['statistics']}.", "dim"), soft_wrap=True)
    for warning in details["warnings"]:
        stderr().print(Text("Warning: ", "bold yellow") + Text(clean(warning)), soft_wrap=True)


def _facts(target: Path, details: Mapping[str, Any]) -> Text:
    ranks = sorted(details["ranks"].values())
    rank = f"rank {ranks[0]}" if len(set(ranks)) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
    size = size_text(target.stat().st_size)
    facts = ["LoRA" if details["kind"] == "lora" else "LyCORIS", f"for {clean(details['base'])}", rank, size]
    if details["exact"]:
        facts.append("exact but for rounding")
    else:
        facts.append(f"fidelity {details['fidelity']:.3f}")
    return Text(", ".join(filter(None, facts)))


def _error_table(errors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Error of")
    for title in ("keys' change", "values' change", "keys", "values"):
        table.add_column(title, justify="right")
    for block, sides in errors.items():
        numbers = [_percent(sides, side, what) for what in ("of_change", "of_whole") for side in ("k", "v")]
        table.add_row(block, *numbers, style="bold" if block == "overall" else None)
    return table


def _percent(sides: Mapping[str, Mapping[str, float]], side: str, what: str) -> str:
    if side not in sides:
        return ""
    percent = 100 * sides[side][what]
    return f"{percent:.1f} %" if percent >= 0.05 or percent == 0 else f"{percent:.0e} %"


# -- reading options


def _rank(text: str | None) -> int | str | None:
    if text is None or text in ("auto", "full"):
        return text
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < 1:
        _refuse("--rank", f"{text!r} is no rank; write a whole number from 1, auto, or full.")
    return int(text)


def _fidelity(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        _refuse("--fidelity", f"{value:g} is not above 0 and below 1; write e.g. 0.95.")
    return value


def _one_of(option: str, given: str | None, allowed: Sequence[str]) -> str | None:
    if given is not None and given not in allowed:
        _refuse(option, f"{given!r} is none of {', '.join(allowed)}.")
    return given


def _refuse(option: str, message: str) -> NoReturn:
    raise typer.BadParameter(message, param_hint=f"'{option}'")
