"""`hnloader predict`: predict a hypernetwork from images of a style."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import ConfigOption, DeviceOption, ModelOption, load_for_images, refuse
from hnloader.cli.terminal import clean, fields, note, stderr, stdout

__all__ = ["predict"]


@reports_errors
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(help="A folder with 1 to 20 images of a style, or the images. With --mix, two folders."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, such as style.pt.", show_default=False)
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
    """Predict a hypernetwork from a few images, without training.

    The file is a usual hypernetwork, for every program that reads one.
    """
    from hnloader.demo import predictor_path
    from hnloader.errors import ExistingFileError
    from hnloader.formats.registry import format_to_write
    from hnloader.loading import save
    from hnloader.prediction.predicting import StylePredictor
    from hnloader.prediction.predictor_file import load_predictor

    first, second = _sources(images, mix)
    format_to_write(output)
    if os.path.lexists(output) and not overwrite:
        raise ExistingFileError(f"{output}: the file exists. Use --overwrite, or choose another name.")
    stored = load_predictor(predictor_path() if predictor is None else predictor)
    loaded = StylePredictor(stored, load_for_images(model, device, "float32", config))
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


def _sources(images: list[Path], mix: float | None) -> tuple[Path | list[Path], Path | None]:
    """Return the images of the first style and those of the second."""
    if mix is not None:
        if len(images) != 2:
            refuse("--mix", f"Expected two folders, got {len(images)}.")
        return images[0], images[1]
    if len(images) == 1:
        return images[0], None
    folders = [path for path in images if path.is_dir()]
    if folders:
        refuse("IMAGES", f"{folders[0]}: Give one folder, or several files. To mix two styles, add --mix.")
    return images, None
