"""`hnloader predict`: predict a hypernetwork from images or texts of a style."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import ConfigOption, DeviceOption, ModelOption, refuse
from hnloader.cli.terminal import clean, fields, note, stderr, stdout

__all__ = ["predict"]


@reports_errors
def predict(
    examples: Annotated[
        list[Path],
        typer.Argument(
            help="A folder with 1 to 20 images or texts of a style, or the files. With --mix, two folders. Texts are "
            "for a language model."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write, such as style.pt or, for texts, style.safetensors.",
            show_default=False,
        ),
    ],
    predictor: Annotated[
        Path | None,
        typer.Option(
            help="File of `hnloader train-predictor` for this model. Default: that of the bundled model.",
            show_default=False,
        ),
    ] = None,
    mix: Annotated[
        float | None,
        typer.Option(help="Mix the styles of two folders: 0 is the first, 1 the second.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    model: ModelOption = None,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Predict a hypernetwork from a few images or texts, without training.

    The file is a usual hypernetwork, for every program that reads one.
    """
    from hnloader.errors import ExistingFileError
    from hnloader.formats.registry import format_to_write
    from hnloader.loading import save
    from hnloader.prediction.predicting import StylePredictor, load_model_of, predictor_for

    first, second = _sources(examples, mix)
    format_to_write(output)
    if os.path.lexists(output) and not overwrite:
        raise ExistingFileError(f"{output}: the file exists. Use --overwrite, or choose another name.")
    stored = predictor_for([first] if second is None else [first, second], model, predictor)
    with stderr().status("Loading the model ..."):
        loaded = StylePredictor(stored, load_model_of(stored, model, device, config))
    start = time.perf_counter()
    found = loaded.predict(first, toward=second, mix=0.5 if mix is None else mix, name=output.stem)
    seconds = time.perf_counter() - start
    for message in found.notes:
        note(message)
    save(found.hypernetwork, output, overwrite=overwrite)
    stderr().print(
        fields(
            [
                ("architecture", f"{found.hypernetwork.architecture}"),
                ("predictor", clean(stored.path.name)),
                ("time", f"{1000 * seconds:,.0f} ms"),
            ]
        )
    )
    stdout().print(Text(clean(output.resolve())), soft_wrap=True)


def _sources(examples: list[Path], mix: float | None) -> tuple[Path | list[Path], Path | None]:
    """Return the examples of the first style and those of the second."""
    if mix is not None:
        if len(examples) != 2:
            refuse("--mix", f"Expected two folders, got {len(examples)}.")
        return examples[0], examples[1]
    if len(examples) == 1:
        return examples[0], None
    folders = [path for path in examples if path.is_dir()]
    if folders:
        refuse("EXAMPLES", f"{folders[0]}: Give one folder, or several files. To mix two styles, add --mix.")
    return examples, None
