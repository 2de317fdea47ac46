"""`hnloader generate`: images from a prompt, with hypernetworks."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import Show, clean, note, progress_bar, stderr, stdout

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.generation import GeneratedImage, Settings, Step
    from hnloader.library import Library
    from hnloader.pipelines import Model
    from hnloader.prompt import Tag

_NUMBERED = re.compile(r"(\d{5})-")
_DEFAULT_FOLDER = Path("hypernetworks")
_OTHER_IMAGES = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}

_IMAGE = "What to make"
_STYLE = "Hypernetworks"
_MODEL = "Model"


def _complete_sampler(typed: str) -> list[str]:
    from hnloader.pipelines import SAMPLERS

    return [name for name in SAMPLERS if name.startswith(typed)]


@reports_errors
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to paint. May hold <hypernet:name:0.8> tags.", show_default=False)
    ],
    negative: Annotated[
        str, typer.Option(help="What to keep out of the image.", rich_help_panel=_IMAGE, show_default=False)
    ] = "",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of images.", rich_help_panel=_IMAGE)] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Seed of the first image; the next ones have seed+1, ... Default: a new one.",
            rich_help_panel=_IMAGE,
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Sampling steps. Default: 20.", rich_help_panel=_IMAGE, show_default=False),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Pixels, e.g. 512x768. Default: the model's.",
            rich_help_panel=_IMAGE,
            show_default=False,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How closely to follow the prompt (CFG scale). Default: 7; 3 for the bundled model.",
            rich_help_panel=_IMAGE,
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="euler, euler_a, heun, ddim, ddpm, plms, dpm2, dpm2_a, dpm++2m, dpm++2m_karras, unipc, lcm. "
            "Default: the model's.",
            rich_help_panel=_IMAGE,
            show_default=False,
            autocompletion=_complete_sampler,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE", help="Start from this image (img2img).", rich_help_panel=_IMAGE, show_default=False
        ),
    ] = None,
    denoise: Annotated[
        float, typer.Option(help="How much of the --init image to make anew, 0 to 1.", rich_help_panel=_IMAGE)
    ] = 0.75,
    hypernet: Annotated[
        list[str] | None,
        typer.Option(
            "--hypernet",
            "-H",
            metavar="NAME:STRENGTH",
            help="A file or a name, e.g. ink.pt:0.8. Options as in a tag: ink:0.8:block=up,start=0.2,end=0.8. "
            "Repeat it to chain several.",
            rich_help_panel=_STYLE,
            show_default=False,
        ),
    ] = None,
    hypernet_dir: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            envvar="HNLOADER_HYPERNET_DIR",
            help="Where names are looked up. Default: ./hypernetworks and the bundled ones.",
            rich_help_panel=_STYLE,
            show_default=False,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="0,0.5,1",
            help="One labeled grid: a row for each seed, a column for each factor on the strengths.",
            rich_help_panel=_STYLE,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A diffusers folder, a hub name (owner/model), or a .safetensors or .ckpt checkpoint. "
            "Default: the small bundled one.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For a checkpoint without network access: a diffusers folder of the same kind of model.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_MODEL)] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float16, bfloat16, float32.", rich_help_panel=_MODEL)] = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder, or a .png file for a single image.")] = Path(
        "images"
    ),
) -> None:
    """Make images with a Stable Diffusion model and hypernetworks.

    Each image is a PNG file with its parameters inside, as the webuis write and read them.
    """
    from hnloader.files import same_file
    from hnloader.generation import Settings
    from hnloader.generation import generate as make_images
    from hnloader.generation import sweep as make_sweep

    settings = Settings(
        prompt=prompt,
        negative_prompt=negative,
        hypernetworks=tuple(read_hypernet(text) for text in hypernet or []),
        seed=seed,
        count=count,
        sampler=sampler,
        init_image=None if init is None else _open(init),
        denoise=denoise,
        **_given(steps=steps, guidance=_bundled_guidance(model, guidance), **read_size(size)),
    )
    factors = None if sweep is None else _read_factors(sweep)
    target = _Target(out, one_file=count == 1 or factors is not None)
    if init is not None and same_file(init, out):
        _refuse("--out", f"{out} is the image to start from. Name another file.")
    library = hypernetwork_library(hypernet_dir)
    _announce(settings, library)
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
    """Where images go: a folder, in which they are numbered on, or one file."""

    def __init__(self, out: Path, *, one_file: bool) -> None:
        suffix = "" if out.is_dir() else out.suffix.lower()
        if suffix in _OTHER_IMAGES:
            _refuse("--out", f"{out}: images are PNG files; name a folder or a .png file.")
        self.file = out if suffix == ".png" else None
        if self.file and not one_file:
            _refuse("--out", f"{out} is one file, and --count asks for several. Name a folder.")
        self.folder = out.parent if self.file else out
        if self.folder.exists() and not self.folder.is_dir():
            _refuse("--out", f"{self.folder} is not a folder.")

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
            # Another program may number its images in the same folder at the same time.
            with contextlib.suppress(ExistingFileError):
                name = f"{prefix}{number:05d}-{generated.seed}.png"
                save_png(image, self.folder / name, generated.infotext, overwrite=False)
                path = self.folder / name
            number += 1
        if generated.censored:
            note(f"{path} is black, because the model's safety checker rejected what it shows.")
        # The path alone, so that a script can read it.
        stdout().print(Text(clean(path)), soft_wrap=True)

    def _next_number(self) -> int:
        numbers = (_NUMBERED.search(path.name) for path in self.folder.glob("*.png"))
        return max((int(match[1]) for match in numbers if match), default=0) + 1


def _refuse(option: str, message: str) -> NoReturn:
    """End with the usage error of an option."""
    raise typer.BadParameter(clean(message), param_hint=option)


def _bundled_guidance(model: str | None, guidance: float | None) -> float | None:
    """The bundled model's own guidance where none was given."""
    if model is not None or guidance is not None:
        return guidance
    from hnloader.demo.sampling import GUIDANCE

    return GUIDANCE


def _given(**options: float | None) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of `Settings`."""
    return {name: value for name, value in options.items() if value is not None}


def read_size(text: str | None) -> dict[str, int]:
    """Read a `--size` value: `width` and `height` in pixels, nothing for None."""
    if text is None:
        return {}
    match = re.fullmatch(r"(\d{1,5})(?:[x*×](\d{1,5}))?", text.strip().lower())
    if match is None:
        _refuse("--size", f"{text!r} is no size; write width x height in pixels, e.g. 512x768.")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def _read_factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(map(math.isfinite, factors)):
        _refuse("--sweep", f"{text!r} is no list of numbers; write e.g. 0,0.5,1.")
    return factors


def read_hypernet(text: str) -> Tag:
    """Read a `--hypernet` value: `name:strength:options` as in a tag, where the name may be a file's path.

    A path may hold colons: the longest beginning that is a file is the name.
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
        _refuse("--hypernet", str(error))


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, or a NUL in it
        return False


def _open(path: Path) -> Image:
    from hnloader.images import PHOTOS, read_image

    path.stat()  # a path that leads nowhere: the system's own words
    return read_image(path, PHOTOS).image


def hypernetwork_library(folders: Sequence[Path] | None) -> Library:
    """The folders of `--hypernet-dir`, or the default ones, as a library."""
    from hnloader.demo import hypernetwork_paths
    from hnloader.library import Library

    for folder in folders or ():
        if not folder.is_dir():
            _refuse("--hypernet-dir", f"{folder} is not a folder.")
    bundled = [path.parent for path in hypernetwork_paths().values()]
    return Library(folders or [*([_DEFAULT_FOLDER] if _DEFAULT_FOLDER.is_dir() else []), *bundled])


def _announce(settings: Settings, library: Library) -> None:
    """Say what is odd, and fail for a missing hypernetwork, before the model is loaded."""
    from hnloader.generation import find_file
    from hnloader.hashes import find_named
    from hnloader.prompt import other_tags, parse_prompt

    for tag in settings.hypernetworks:
        find_file(tag.name, library)
    for tag in parse_prompt(settings.prompt).tags:
        chosen = find_named(library, tag.name)
        others = {file.path.resolve() for file in library.matches(tag.name)} - {chosen.resolve()}
        if others:
            note(f"{len(others) + 1} files are called {tag.name}; taking {chosen}.")
    for text in other_tags(settings.prompt):
        note(f"{text} is no hypernet tag and stays in the prompt as words.")


def load_for_images(model: str | None, device: str, dtype: str, config: Path | None) -> Model:
    """The model of `--model`, or the bundled one."""
    from hnloader.demo import pipeline_folder
    from hnloader.pipelines import load_model

    with stderr().status("Loading the model ..."):
        return load_model(model or pipeline_folder(), device=device, dtype=dtype, config=config)


def _counter(show: Show, runs: int) -> Callable[[Step], None]:
    """Progress of a whole run, in which each image is made `runs` times."""
    done = 0

    def advance(step: Step) -> None:
        nonlocal done
        done += 1
        text = f"Image {step.image} of {step.images}" if step.images > 1 else "Sampling"
        show(done, step.steps * step.images * runs, text)

    return advance


def _grid(cells: Sequence[tuple[float, GeneratedImage]], factors: Sequence[float], settings: Settings) -> Image:
    """The images of a sweep, a row for each seed and a column for each factor."""
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
    """What each column's strength is; of several hypernetworks, the factor on their strengths."""
    from hnloader.prompt import format_number, parse_prompt

    tags = [*parse_prompt(settings.prompt).tags, *settings.hypernetworks]
    if len(tags) > 1:
        return [f"strengths x {format_number(factor)}" for factor in factors]
    name, strength = Path(tags[0].name).stem, tags[0].strength
    return [f"{name} {format_number(round(strength * factor, 6))}" for factor in factors]


def _representative(cells: Sequence[tuple[float, GeneratedImage]]) -> GeneratedImage:
    """The image whose parameters stand in the grid: at full strength where there is one."""
    return next((image for factor, image in cells if factor == 1), cells[-1][1])
