"""`hnloader ui`: open the browser UI."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import ConfigOption, DeviceOption, DtypeOption, refuse
from hnloader.cli.terminal import clean, note, stderr, stdout

if TYPE_CHECKING:
    from hnloader.ui.diffusers_generator import DiffusersGenerator
    from hnloader.ui.language_writer import LanguageWriter
    from hnloader.ui.page_host import Host

__all__ = ["ui"]

_DEFAULT_FOLDER = Path("hypernetworks")


@reports_errors
def ui(
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--folder",
            "-f",
            envvar="HNLOADER_HYPERNET_DIR",
            help="Folder with hypernetworks; repeatable. Default: ./hypernetworks and the bundled ones.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Diffusers folder, Hugging Face Hub name (owner/model), .safetensors or .ckpt checkpoint, or a folder "
            "of these; or a language model, for the page Write; repeatable. You can choose among them on the page. "
            "Default: the bundled model.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images.")] = Path("images"),
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to listen on. Default: 7870, or the next free port.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. --auth is required unless only this computer can reach it.")
    ] = ("127.0.0.1"),
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:PASSWORD",
            envvar="HNLOADER_UI_AUTH",
            help="Username and password that the browser asks for.",
            show_default=False,
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    predictor: Annotated[
        Path | None,
        typer.Option(help="For Predict: a file of `hnloader train-predictor` for the models.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Open a page in the browser to generate, browse, compare, convert and train.

    By default only this computer can reach it. Press Ctrl-C to stop.
    """
    from hnloader.language_models import is_language_model
    from hnloader.library import Library
    from hnloader.ui.diffusers_generator import DiffusersGenerator
    from hnloader.ui.language_writer import LanguageWriter
    from hnloader.ui.standalone import check_address, is_local, start

    credentials = _credentials(auth)
    check_address(host, credentials)
    given, folders = [name for one in model or () for name in _models(one)], _folders(folder)
    texts = [name for name in given if is_language_model(name)]
    models = [name for name in given if name not in texts]
    generator = DiffusersGenerator(
        models, lambda: Library(folders), device=device, dtype=dtype, config=config, predictor=predictor
    )
    writer = LanguageWriter(texts, device=device, dtype=dtype)
    page = _host(folders, generator, models, out, local=is_local(host), writer=writer)
    with stderr().status("Starting ..."):
        server = start(page, address=host, port=port, auth=credentials)
    stdout().print(Text(clean(server.url)), soft_wrap=True)
    stderr().print("Press Ctrl-C to stop.")
    if browser:
        import webbrowser

        webbrowser.open(server.url)
    try:
        threading.Event().wait()
    finally:
        server.close()


def _host(
    folders: list[Path],
    generator: DiffusersGenerator,
    models: list[str],
    out: Path,
    *,
    local: bool,
    writer: LanguageWriter,
) -> Host:
    from hnloader.demo import pipeline_folder
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.index import cache_folder
    from hnloader.ui.page_host import Host, PredictionPlace, TrainingPlace

    return Host(
        folders=lambda: folders,
        output=lambda: out,
        generator=generator,
        writer=writer,
        models=generator,
        lora_base=generator.lora_base,
        training=TrainingPlace(
            folder=lambda: out / "trainings",
            library=lambda: folders[0],
            models=lambda: models or [str(pipeline_folder())],
            may_name_python=local,
        ),
        prediction=PredictionPlace(generator.predict, lambda: folders[0]),
        pages=("generate", "write", "library", "compare", "convert", "train", "predict"),
        catalog=Catalog(lambda: folders, cache_folder()),
    )


def _folders(given: list[Path] | None) -> list[Path]:
    """Return the folders to show. The first one holds the user's own files and may not exist yet."""
    from hnloader.demo import hypernetwork_paths, text_hypernetwork_paths

    for folder in given or ():
        if not folder.is_dir():
            refuse("--folder", f"{folder}: Expected a folder.")
    bundled = (*hypernetwork_paths().values(), *text_hypernetwork_paths().values())
    return given or [_DEFAULT_FOLDER, *dict.fromkeys(path.parent for path in bundled)]


def _models(name: str) -> list[str]:
    """Return the models that a `--model` names: itself, or those in a folder of models."""
    from hnloader.files import expanded
    from hnloader.language_models import is_language_model
    from hnloader.pipelines import CHECKPOINT_SUFFIXES, check_source

    path = expanded(name)
    if is_language_model(name):
        return [str(path)]
    if path.is_dir() and not (path / "model_index.json").is_file():
        found = [each for each in sorted(path.iterdir()) if each.suffix.lower() in CHECKPOINT_SUFFIXES]
        found += [each for each in sorted(path.iterdir()) if (each / "model_index.json").is_file()]
        if not found:
            note(f"{path}: Found no models.")
        return [str(each) for each in found]
    check_source(name)
    return [str(path) if path.exists() else name]


def _credentials(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        refuse("--auth", "Expected NAME:PASSWORD; neither may be empty.")
    return name, password
