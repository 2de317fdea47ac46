"""Options that several verbs share, and the functions that read their values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hnloader.cli.terminal import clean, stderr

if TYPE_CHECKING:
    from hnloader.library import Library
    from hnloader.pipelines import Model
    from hnloader.prompt import Tag

__all__ = [
    "ConfigOption",
    "DeviceOption",
    "DtypeOption",
    "EmbeddingDirOption",
    "HypernetDirOption",
    "JsonOption",
    "ModelOption",
    "embedding_folders",
    "find_embedding",
    "hypernetwork_library",
    "load_for_images",
    "read_factors",
    "read_hypernet",
    "read_size",
    "refuse",
]

_DEFAULT_FOLDER = Path("hypernetworks")
_MODEL_PANEL = "Model"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Diffusers folder, Hugging Face Hub name (owner/model), or .safetensors or .ckpt checkpoint. "
        "Default: the bundled model.",
        rich_help_panel=_MODEL_PANEL,
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FOLDER",
        help="For checkpoints: diffusers folder with the model configuration, so that nothing is downloaded.",
        rich_help_panel=_MODEL_PANEL,
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_MODEL_PANEL)
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="auto, float16, bfloat16, float32.", rich_help_panel=_MODEL_PANEL)
]
HypernetDirOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--hypernet-dir",
        metavar="FOLDER",
        envvar="HNLOADER_HYPERNET_DIR",
        help="Folder with hypernetworks; repeatable. Default: ./hypernetworks and the bundled ones.",
        show_default=False,
    ),
]
EmbeddingDirOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--embedding-dir",
        metavar="FOLDER",
        envvar="HNLOADER_EMBEDDING_DIR",
        help="Folder with embeddings; repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def refuse(option: str, message: str) -> NoReturn:
    """Exit with a usage error about an option."""
    raise typer.BadParameter(clean(message), param_hint=f"'{option}'")


def read_size(text: str | None) -> dict[str, int]:
    """Return `width` and `height` in pixels from a `--size` value; nothing for None."""
    if text is None:
        return {}
    match = re.fullmatch(r"(\d{1,5})(?:[x*×](\d{1,5}))?", text.strip().lower())
    if match is None:
        refuse("--size", f"Expected width x height in pixels such as 512x768, got {text!r}.")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def read_factors(text: str) -> list[float]:
    """Return the factors of a `--sweep` value."""
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(map(math.isfinite, factors)):
        refuse("--sweep", f"Expected numbers such as 0,0.5,1, got {text!r}.")
    return factors


def read_hypernet(text: str) -> Tag:
    """Return the tag of a `--hypernet` value `name:strength:options`, whose name may be a path.

    Paths may contain colons: the longest prefix that is an existing file is the name.
    """
    from hnloader.errors import PromptTagError
    from hnloader.prompt import parse_tag

    colons = [index for index, letter in enumerate(text) if letter == ":"]
    try:
        for end in [len(text), *reversed(colons)]:
            if _is_file(text[:end]):
                quoted = text[:end].replace('"', '""')
                return parse_tag(f'"{quoted}"{text[end:]}')
        return parse_tag(text)
    except PromptTagError as error:
        refuse("--hypernet", str(error))


def hypernetwork_library(folders: Sequence[Path] | None, *, texts: bool = False) -> Library:
    """Return the folders of `--hypernet-dir`, or the default folders, as a library; `texts` for language models."""
    from hnloader.demo import hypernetwork_paths, text_hypernetwork_paths
    from hnloader.library import Library

    for folder in folders or ():
        if not folder.is_dir():
            refuse("--hypernet-dir", f"{folder}: Expected a folder.")
    paths = text_hypernetwork_paths() if texts else hypernetwork_paths()
    bundled = [path.parent for path in paths.values()]
    searched = folders or [*([_DEFAULT_FOLDER] if _DEFAULT_FOLDER.is_dir() else []), *bundled]
    return Library(searched, hint="To search another folder, add --hypernet-dir FOLDER.")


def find_embedding(name: str, folders: Sequence[Path] | None) -> Path:
    """Return the file of an `--embedding` value: its path, or a name in the folders of `--embedding-dir`."""
    from hnloader.embeddings.embedding_files import embedding_named
    from hnloader.texts import shown

    if _is_file(name):
        return Path(name).expanduser()
    found = embedding_named(name, embedding_folders(folders))
    if found is None:
        searched = ", ".join(map(str, folders or ())) or "no --embedding-dir"
        refuse("--embedding", f"{shown(name)}: Found no such file, and no embedding of this name ({searched}).")
    return found


def embedding_folders(folders: Sequence[Path] | None) -> Sequence[Path]:
    """Return the folders of `--embedding-dir`; exit with a usage error for one that is something else."""
    for folder in folders or ():
        if not folder.is_dir():
            refuse("--embedding-dir", f"{folder}: Expected a folder.")
    return folders or ()


def load_for_images(model: str | None, device: str, dtype: str, config: Path | None) -> Model:
    """Load the model of `--model`, or the bundled one."""
    from hnloader.demo import pipeline_folder
    from hnloader.pipelines import load_model

    with stderr().status("Loading the model ..."):
        return load_model(model or pipeline_folder(), device=device, dtype=dtype, config=config)


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, or a NUL character
        return False
