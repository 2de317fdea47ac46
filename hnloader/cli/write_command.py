"""`hnloader write`: write text with a language model and hypernetworks."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import (
    DeviceOption,
    DtypeOption,
    HypernetDirOption,
    hypernetwork_library,
    read_factors,
    read_hypernet,
    refuse,
)
from hnloader.cli.terminal import clean, note, printable, stderr

if TYPE_CHECKING:
    from hnloader.generation import Applied
    from hnloader.language_models import LanguageModel
    from hnloader.prompt import Tag
    from hnloader.writing import WritingSettings

__all__ = ["write"]

_STDIN = "-"
_LARGEST_SEED = 2**32 - 1


def _text_option(text: str, *names: str, panel: str = "Text", **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **settings)


@reports_errors
def write(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Folder of transformers, .gguf file, or Hugging Face Hub name (owner/model). Default: the bundled "
            "model, which tells little stories.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[int, _text_option("The most tokens to write.", min=1, max=100_000)] = 100,
    seed: Annotated[int | None, _text_option("Seed. Default: random.", min=0, show_default=False)] = None,
    temperature: Annotated[
        float, _text_option("Low values give likely words; 0 always takes the most likely one.", min=0, max=10)
    ] = 0.8,
    chat: Annotated[
        bool, _text_option("Send the prompt as a message to a chat model, and print its answer.", "--chat")
    ] = False,
    hypernet: Annotated[
        list[str] | None,
        _text_option(
            "File or name, e.g. style.safetensors:0.8, with options as in a tag: style:0.8:k=0.5. "
            "Repeat to chain several.",
            "--hypernet",
            "-H",
            metavar="NAME:STRENGTH",
            panel="Hypernetworks",
            show_default=False,
        ),
    ] = None,
    hypernet_dir: HypernetDirOption = None,
    sweep: Annotated[
        str | None,
        _text_option(
            "Write one text for each factor on the strengths, below headings.",
            metavar="0,0.5,1",
            panel="Hypernetworks",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Write text with a language model and hypernetworks.

    The text goes to stdout while it is written, after the prompt.
    """
    from hnloader.demo import language_model_folder
    from hnloader.generation import find_file, load_hypernetworks
    from hnloader.language_models import load_language_model
    from hnloader.writing import WritingSettings, chat_prompt

    tags = [read_hypernet(text) for text in hypernet or []]
    factors = None if sweep is None else read_factors(sweep)
    _check(tags, factors)
    library = hypernetwork_library(hypernet_dir, texts=True)
    for tag in tags:  # before the model is loaded
        find_file(tag.name, library)
    given = _read_stdin() if prompt == _STDIN else prompt
    with stderr().status("Loading the model ..."):
        language = load_language_model(model or language_model_folder(), device=device, dtype=dtype)
        applied = load_hypernetworks(tags, library, paths=True)
    if seed is None:
        seed = secrets.randbelow(_LARGEST_SEED)
        note(f"Seed {seed}.")
    text = chat_prompt(language, given) if chat else given
    settings = WritingSettings(max_tokens, temperature, seed)
    for index, factor in enumerate(factors or [1.0]):
        scaled = [replace(one, tag=replace(one.tag, strength=one.tag.strength * factor)) for one in applied]
        heading = "" if factors is None else ("\n" if index else "") + f"--- {_label(scaled)} ---\n"
        _write(language, text, settings, scaled, before=heading + ("" if chat else given))
        _print("\n")


def _write(
    language: LanguageModel, prompt: str, settings: WritingSettings, applied: Sequence[Applied], before: str
) -> None:
    from hnloader.attention import attach
    from hnloader.writing import write_text

    applications = [one.application() for one in applied]
    attached: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if applications:
        attached = attach(language.model, applications)
    with attached:
        _print(before)  # after a hypernetwork for another model was refused
        write_text(language, prompt, settings, _print)


def _print(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _check(tags: Sequence[Tag], factors: Sequence[float] | None) -> None:
    for tag in tags:
        if (tag.start, tag.end) != (0.0, 1.0):
            refuse("--hypernet", f"{tag.name}: start and end are for images. Leave them out.")
    if factors is not None and not tags:
        refuse("--sweep", "Expected a hypernetwork. Add --hypernet.")


def _label(applied: Sequence[Applied]) -> str:
    from hnloader.prompt import format_number

    return clean(", ".join(f"{Path(one.tag.name).stem} {format_number(round(one.tag.strength, 6))}" for one in applied))


def _read_stdin() -> str:
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return text.removesuffix("\n").removesuffix("\r")
