"""`hnloader generate`: generate images with hypernetworks."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import (
    ConfigOption,
    DeviceOption,
    DtypeOption,
    EmbeddingDirOption,
    HypernetDirOption,
    ModelOption,
    embedding_folders,
    find_embedding,
    hypernetwork_library,
    load_for_images,
    read_factors,
    read_hypernet,
    read_size,
    refuse,
)
from hnloader.cli.terminal import Show, clean, note, progress_bar, stdout

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.generation import GeneratedImage, Settings, Step
    from hnloader.library import Library

__all__ = ["generate"]

_NUMBERED = re.compile(r"(\d{5})-")
_OTHER_IMAGES = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


def _image_option(text: str, *names: str, panel: str = "Image", **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **{"show_default": False, **settings})


def _complete_sampler(typed: str) -> list[str]:
    from hnloader.pipelines import SAMPLERS

    return [name for name in SAMPLERS if name.startswith(typed)]


@reports_errors
def generate(
    prompt: Annotated[str, typer.Argument(help="Prompt; it may contain <hypernet:name:0.8> tags.", show_default=False)],
    negative: Annotated[str, _image_option("Negative prompt: what to avoid.")] = "",
    count: Annotated[int, _image_option("Number of images.", "--count", "-n", min=1, show_default=True)] = 1,
    seed: Annotated[
        int | None, _image_option("Seed of the first image; each next image adds 1. Default: random.", min=0)
    ] = None,
    steps: Annotated[int | None, _image_option("Sampling steps. Default: 20.", min=1)] = None,
    size: Annotated[
        str | None, _image_option("Size in pixels, e.g. 512x768. Default: the model's.", metavar="WxH")
    ] = None,
    guidance: Annotated[
        float | None, _image_option("CFG scale (guidance). Default: 7, or 3 for the bundled model.")
    ] = None,
    sampler: Annotated[
        str | None,
        _image_option(
            "euler, euler_a, heun, ddim, ddpm, plms, dpm2, dpm2_a, dpm++2m, dpm++2m_karras, unipc, lcm. "
            "Default: the model's.",
            autocompletion=_complete_sampler,
        ),
    ] = None,
    init: Annotated[Path | None, _image_option("Initial image (img2img).", metavar="IMAGE")] = None,
    denoise: Annotated[float, _image_option("Denoising strength for --init, 0 to 1.", show_default=True)] = 0.75,
    hypernet: Annotated[
        list[str] | None,
        _image_option(
            "File or name, e.g. ink.pt:0.8, with options as in a tag: ink:0.8:block=up,start=0.2,end=0.8. "
            "Repeat to chain several.",
            "--hypernet",
            "-H",
            metavar="NAME:STRENGTH",
            panel="Hypernetworks",
        ),
    ] = None,
    hypernet_dir: HypernetDirOption = None,
    sweep: Annotated[
        str | None,
        _image_option(
            "Save one labeled grid: a row for each seed, a column for each factor on the strengths.",
            metavar="0,0.5,1",
            panel="Hypernetworks",
        ),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        _image_option(
            "File or name of a textual-inversion embedding. It acts where a prompt has its word, the file's name. "
            "Those in --embedding-dir need only the word. Repeatable.",
            "--embedding",
            "-E",
            metavar="NAME",
            panel="Embeddings",
        ),
    ] = None,
    embedding_dir: EmbeddingDirOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder, or a .png file for one image.")] = Path(
        "images"
    ),
) -> None:
    """Generate images with a Stable Diffusion model, hypernetworks and embeddings.

    Images are saved as PNG with their generation parameters, as in the webuis.
    """
    from hnloader.embeddings.prompt_words import files_with_words
    from hnloader.files import same_file
    from hnloader.generation import Settings
    from hnloader.generation import generate as make_images
    from hnloader.generation import sweep as make_sweep

    words = [find_embedding(name, embedding_dir) for name in dict.fromkeys(embedding or [])]
    settings = Settings(
        prompt=prompt,
        negative_prompt=negative,
        hypernetworks=tuple(read_hypernet(text) for text in hypernet or []),
        embeddings=tuple(files_with_words(embedding_folders(embedding_dir), f"{prompt}\n{negative}", words)),
        seed=seed,
        count=count,
        sampler=sampler,
        init_image=None if init is None else _open(init),
        denoise=denoise,
        **_given(steps=steps, guidance=_bundled_guidance(model, guidance), **read_size(size)),
    )
    factors = None if sweep is None else read_factors(sweep)
    target = _Target(out, one_file=count == 1 or factors is not None)
    if init is not None and same_file(init, out):
        refuse("--out", f"{out}: This is the --init image. Choose another output file.")
    library = hypernetwork_library(hypernet_dir)
    _check_tags(settings, library)
    loaded = load_for_images(model, device, dtype, config)
    with progress_bar("Sampling") as show:
        advance = _counter(show, 1 if factors is None else len(factors))
        if factors is None:
            for image in make_images(loaded, settings, library, progress=advance):
                target.save(image.image, image)
        else:
            cells = list(make_sweep(loaded, settings, factors, library, progress=advance))
            target.save(_grid(cells, factors, settings), _representative(cells), prefix="sweep-")


class _Target:
    """The output: a folder, in which images are numbered, or one file."""

    def __init__(self, out: Path, *, one_file: bool) -> None:
        suffix = "" if out.is_dir() else out.suffix.lower()
        if suffix in _OTHER_IMAGES:
            refuse("--out", f"{out}: Images are saved as PNG. Name a folder or a .png file.")
        self.file = out if suffix == ".png" else None
        if self.file and not one_file:
            refuse("--out", f"{out}: One file cannot hold --count images. Name a folder.")
        self.folder = out.parent if self.file else out
        if self.folder.exists() and not self.folder.is_dir():
            refuse("--out", f"{self.folder}: Expected a folder.")

    def save(self, image: Image, generated: GeneratedImage, prefix: str = "") -> None:
        from hnloader.errors import ExistingFileError
        from hnloader.files import make_folder
        from hnloader.infotext import save_png

        make_folder(self.folder)
        path = self.file
        if path is not None:
            save_png(image, path, generated.infotext)
        number = self._next_number()
        while path is None:
            # Another process may use the same folder at the same time.
            with contextlib.suppress(ExistingFileError):
                name = f"{prefix}{number:05d}-{generated.seed}.png"
                save_png(image, self.folder / name, generated.infotext, overwrite=False)
                path = self.folder / name
            number += 1
        if generated.censored:
            note(f"{path}: The model's safety checker replaced the image with a black one.")
        # Only the path, so that scripts can read it.
        stdout().print(Text(clean(path)), soft_wrap=True)

    def _next_number(self) -> int:
        numbers = (_NUMBERED.search(path.name) for path in self.folder.glob("*.png"))
        return max((int(match[1]) for match in numbers if match), default=0) + 1


def _bundled_guidance(model: str | None, guidance: float | None) -> float | None:
    """Return the guidance of the bundled model if none was given."""
    if model is not None or guidance is not None:
        return guidance
    from hnloader.demo.sampling import GUIDANCE

    return GUIDANCE


def _given(**options: float | None) -> dict[str, Any]:
    """Return the given options; the others keep the defaults of `Settings`."""
    return {name: value for name, value in options.items() if value is not None}


def _open(path: Path) -> Image:
    from hnloader.images import PHOTOS, read_image

    path.stat()  # a missing file raises the error of the system
    return read_image(path, PHOTOS).image


def _check_tags(settings: Settings, library: Library) -> None:
    """Print notes, and fail for a missing hypernetwork, before the model is loaded."""
    from hnloader.embeddings import load_embedding
    from hnloader.embeddings.prompt_words import has_word
    from hnloader.generation import find_file
    from hnloader.hashes import find_named
    from hnloader.prompt import other_tags, parse_prompt
    from hnloader.texts import shown

    for tag in settings.hypernetworks:
        find_file(tag.name, library)
    for tag in parse_prompt(settings.prompt).tags:
        chosen = find_named(library, tag.name)
        others = {file.path.resolve() for file in library.matches(tag.name)} - {chosen.resolve()}
        if others:
            note(f"{tag.name}: Found {len(others) + 1} files of this name. Using {chosen}.")
    for file in map(Path, settings.embeddings):
        embedding = load_embedding(file)
        if not has_word(embedding, f"{settings.prompt}\n{settings.negative_prompt}"):
            note(f"{file.name}: Its word {shown(embedding.name)} is in no prompt, so it has no effect.")
    for text in other_tags(settings.prompt):
        note(f"{text}: Not a hypernet tag. It stays in the prompt as text.")


def _counter(show: Show, runs: int) -> Callable[[Step], None]:
    """Return a callback that shows the progress of a run, in which each image is made `runs` times."""
    done = 0

    def advance(step: Step) -> None:
        nonlocal done
        done += 1
        text = f"Image {step.image} of {step.images}" if step.images > 1 else "Sampling"
        show(done, step.steps * step.images * runs, text)

    return advance


def _grid(cells: Sequence[tuple[float, GeneratedImage]], factors: Sequence[float], settings: Settings) -> Image:
    """Return the grid of a sweep: a row for each seed, a column for each factor."""
    from hnloader.grids import labeled_grid
    from hnloader.prompt import parse_prompt

    width = len(factors)
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return labeled_grid(
        [[image.image for _, image in row] for row in rows],
        columns=_column_labels(factors, settings),
        rows=[f"seed {row[0][1].seed}" for row in rows],
        caption=clean(parse_prompt(settings.prompt).prompt.strip()),
    )


def _column_labels(factors: Sequence[float], settings: Settings) -> list[str]:
    """Return the strength of each column, or its factor if there are several hypernetworks."""
    from hnloader.prompt import format_number, parse_prompt

    tags = [*parse_prompt(settings.prompt).tags, *settings.hypernetworks]
    if len(tags) > 1:
        return [f"strengths x {format_number(factor)}" for factor in factors]
    name, strength = Path(tags[0].name).stem, tags[0].strength
    return [f"{name} {format_number(round(strength * factor, 6))}" for factor in factors]


def _representative(cells: Sequence[tuple[float, GeneratedImage]]) -> GeneratedImage:
    """Return the image whose parameters the grid gets: the one at full strength if there is one."""
    return next((image for factor, image in cells if factor == 1), cells[-1][1])
