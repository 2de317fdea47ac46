"""Making images with a diffusers model and hypernetworks.

    model = load_model("path/or/hub-name")
    settings = Settings(prompt="a red circle <hypernet:ink:0.8>", seed=1, count=4)
    for image in generate(model, settings, Library(["hypernetworks"])):
        image.image.save(f"{image.seed}.png")

Every image of a run has its own seed (seed, seed + 1, ...) and is made alone: any of them can be made again
by its own seed, to the same pixels on the same machine.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnloader.errors import HypernetworkNotFoundError, ModelError, SettingsError
from hnloader.files import expanded
from hnloader.hashes import find_named
from hnloader.infotext import Infotext
from hnloader.library import Library
from hnloader.pipelines import Model, find_sampler, make_scheduler, quiet, sampler_label
from hnloader.prompt import Tag, format_number, is_finite, parse_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.attention import Application
    from hnloader.network import Hypernetwork

LARGEST_SEED = 2**32 - 1
MOST_STEPS = 10_000

Progress = Callable[["Step"], None]


@dataclass(frozen=True)
class Settings:
    """What to make.

    Attributes:
        prompt: may hold `<hypernet:...>` tags (see `hnloader.prompt`).
        hypernetworks: applied after those in the prompt, in this order. A name here may be the path of a
            file; in the prompt it is only ever looked up in the library.
        seed: of the first image, 0 to 2**32 - 1; None draws one.
        count: number of images.
        steps: sampling steps.
        guidance: classifier-free guidance (CFG) scale; 1 turns it off.
        width, height: pixels; None is the model's own size.
        sampler: a key of `hnloader.pipelines.SAMPLERS`; None is the model's own scheduler.
        init_image: starts from this image (img2img), scaled and cropped to the size.
        denoise: how much of `init_image` is made anew, above 0 and up to 1.
    """

    prompt: str
    negative_prompt: str = ""
    hypernetworks: tuple[Tag, ...] = ()
    seed: int | None = None
    count: int = 1
    steps: int = 20
    guidance: float = 7.0
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    init_image: Image | None = None
    denoise: float = 0.75


@dataclass(frozen=True)
class Step:
    """How far a run is: `image` of `images` (from 1), `step` of `steps` of that image (from 1)."""

    image: int
    images: int
    step: int
    steps: int


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image, its seed and parameters. `censored`: the model's safety checker blacked it out."""

    image: Image
    seed: int
    infotext: Infotext
    censored: bool = False


@dataclass(frozen=True)
class Applied:
    """A hypernetwork as it is applied: what was asked for and the file, with its sha256's first 10 digits."""

    tag: Tag
    path: Path
    hypernetwork: Hypernetwork
    hash: str

    @property
    def name(self) -> str:
        """The file's stem, as a tag can write it."""
        return self.path.stem.replace(">", "_")

    def application(self) -> Application:
        """What `hnloader.attach` takes."""
        from hnloader.attention import Application

        tag = self.tag
        strength = {part.block: part.weight * tag.strength for part in tag.blocks} or tag.strength
        return Application(self.hypernetwork, strength, start=tag.start, end=tag.end, k=tag.k, v=tag.v)


def generate(
    model: Model, settings: Settings, library: Library | None = None, *, progress: Progress | None = None
) -> Iterator[GeneratedImage]:
    """Make `settings.count` images, one after the other.

    `progress` is called after every sampling step. To stop between images, close the iterator; to stop
    within one, raise from `progress`. Between images and after either, the model is as it was before.

    Raises HypernetworkError and its subclasses: a hypernetwork is not found, damaged, or fits no layer of the
    model; a setting is out of range.
    """
    run = _Run.prepare(model, settings, library or Library([]))
    for index in range(settings.count):
        yield run.image(index, run.applied, progress)


def sweep(
    model: Model,
    settings: Settings,
    factors: Sequence[float],
    library: Library | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[float, GeneratedImage]]:
    """The images of `generate` at several strengths: for each seed, each factor times every strength.

    Yields (factor, image) seed by seed, in the order of `factors`. Raises what `generate` raises.
    """
    run = _Run.prepare(model, settings, library or Library([]))
    if not run.applied:
        raise SettingsError("A sweep over strengths needs a hypernetwork.")
    for index in range(settings.count):
        for factor in factors:
            applied = [replace(one, tag=replace(one.tag, strength=one.tag.strength * factor)) for one in run.applied]
            yield factor, run.image(index, applied, progress)


def load_hypernetworks(tags: Sequence[Tag], library: Library, *, paths: bool = False) -> list[Applied]:
    """Find and load what tags name, each file once. With `paths`, a name may also be the path of a file.

    Raises HypernetworkError.
    """
    from hnloader.inspection import inspect
    from hnloader.loading import load

    folders = library.folders  # a .hns file names others
    loaded: dict[Path, tuple[Hypernetwork, str]] = {}
    applied = []
    for tag in tags:
        path = find_file(tag.name, library) if paths else find_named(library, tag.name)
        if path not in loaded:
            loaded[path] = load(path, folders=folders), inspect(path, folders).short_hash
        applied.append(Applied(tag, path, *loaded[path]))
    return applied


def find_file(name: str, library: Library) -> Path:
    """The file of a hypernetwork named by path or by name. Raises HypernetworkNotFoundError."""
    path = expanded(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise HypernetworkNotFoundError(f"{name} is a folder, not a hypernetwork file.")
    if path.is_absolute() or path.parts[:1] == ("..",) or name.startswith(("./", ".\\", "~")):
        raise HypernetworkNotFoundError(f"There is no file {name}.")
    return find_named(library, name)


@dataclass(frozen=True)
class _Run:
    """A run's settings with everything in them decided."""

    model: Model
    pipeline: Any  # text to image or image to image
    settings: Settings
    prompt: str  # without tags
    applied: list[Applied]
    seed: int
    width: int
    height: int
    scheduler: Any

    @staticmethod
    def prepare(model: Model, settings: Settings, library: Library) -> _Run:
        _check(settings)
        width, height = _size(model.pipeline, settings)
        parsed = parse_prompt(settings.prompt)
        applied = load_hypernetworks(parsed.tags, library)
        applied += load_hypernetworks(settings.hypernetworks, library, paths=True)
        seed = secrets.randbelow(LARGEST_SEED - settings.count + 2) if settings.seed is None else settings.seed
        pipeline, scheduler = model.pipeline, model.pipeline.scheduler
        if settings.init_image is not None:
            pipeline = _image_to_image(pipeline)
            settings = replace(settings, init_image=_fitted(settings.init_image, width, height))
        if settings.sampler is not None:
            scheduler = make_scheduler(find_sampler(settings.sampler), scheduler.config)
        return _Run(model, pipeline, settings, parsed.prompt, applied, seed, width, height, scheduler)

    def image(self, index: int, applied: Sequence[Applied], progress: Progress | None) -> GeneratedImage:
        """Make one image, and leave the model as it was."""
        seed = self.seed + index
        with _scheduled(self.pipeline, self.scheduler), _attached(self.pipeline, applied):
            result = self.pipeline(**self._inputs(seed), callback_on_step_end=self._callback(index, progress))
        censored = any(getattr(result, "nsfw_content_detected", None) or ())
        return GeneratedImage(result.images[0], seed, self._infotext(seed, applied), censored)

    def _inputs(self, seed: int) -> dict[str, Any]:
        settings = self.settings
        inputs = {
            "prompt": self.prompt,
            "negative_prompt": settings.negative_prompt,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            # On the CPU wherever the model is, so that a seed gives the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(seed),
            "callback_on_step_end_tensor_inputs": [],
        }
        if settings.init_image is None:
            return inputs | {"width": self.width, "height": self.height}
        return inputs | {"image": settings.init_image, "strength": settings.denoise}

    def _callback(self, index: int, progress: Progress | None) -> Callable[..., dict[str, Any]]:
        def after_step(pipeline: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            if progress is not None:
                progress(Step(index + 1, self.settings.count, step + 1, pipeline.num_timesteps))
            return tensors

        return after_step

    def _infotext(self, seed: int, applied: Sequence[Applied]) -> Infotext:
        settings = self.settings
        values = {
            "Steps": str(settings.steps),
            "Sampler": sampler_label(self.scheduler),
            "CFG scale": format_number(settings.guidance),
            "Seed": str(seed),
            "Size": f"{self.width}x{self.height}",
        }
        if self.model.hash:
            values["Model hash"] = self.model.hash
        values["Model"] = self.model.name
        if settings.init_image is not None:
            values["Denoising strength"] = format_number(settings.denoise)
        if applied:
            values["Hypernet hashes"] = ", ".join(dict.fromkeys(f"{one.name}: {one.hash}" for one in applied))
        values["Version"] = f"hnloader {_version()}"
        # At the end and in their order: a webui that reads this applies the same ones to the same words.
        words = [self.prompt.strip(), *(str(replace(one.tag, name=one.name)) for one in applied)]
        return Infotext(" ".join(filter(None, words)), settings.negative_prompt, values)


def _check(settings: Settings) -> None:
    seed = settings.seed or 0
    problems = {
        "count is at least 1": settings.count < 1,
        "steps is at least 1": settings.steps < 1,
        f"steps is at most {MOST_STEPS:,}": settings.steps > MOST_STEPS,
        "denoise is above 0 and at most 1": not 0 < settings.denoise <= 1,
        f"seeds are 0 to {LARGEST_SEED}": seed < 0 or seed + settings.count - 1 > LARGEST_SEED,
        "guidance is a finite number": not is_finite(settings.guidance),
    }
    for rule, broken in problems.items():
        if broken:
            raise SettingsError(f"This run is impossible: {rule}.")
    if settings.init_image is not None and int(settings.steps * settings.denoise) < 1:
        raise SettingsError(
            f"With denoise {format_number(settings.denoise)}, {settings.steps} steps leave none to do. "
            f"Take {math.ceil(1 / settings.denoise)} steps or more."
        )


def _size(pipeline: Any, settings: Settings) -> tuple[int, int]:
    """Width and height in pixels. Raises SettingsError where the model cannot make that size."""
    grain = pipeline.vae_scale_factor
    native = pipeline.unet.config.sample_size
    high, wide = (native, native) if isinstance(native, int) else native
    width, height = settings.width or wide * grain, settings.height or high * grain
    for what, pixels in (("width", width), ("height", height)):
        # Diffusers' pipelines ask for multiples of 8 whatever the factor of their VAE is.
        multiple = max(8, grain)
        if pixels < multiple or pixels % multiple:
            raise SettingsError(f"The {what} is {pixels}; this model makes multiples of {multiple}.")
    return width, height


def _image_to_image(pipeline: Any) -> Any:
    from diffusers import AutoPipelineForImage2Image

    try:
        with quiet():
            changed = AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError as error:
        raise ModelError(f"A {type(pipeline).__name__} cannot start from an image.") from error
    changed.set_progress_bar_config(disable=True)
    return changed


def _fitted(image: Image, width: int, height: int) -> Image:
    from PIL import ImageOps
    from PIL.Image import Resampling

    upright = ImageOps.exif_transpose(image).convert("RGB")
    return ImageOps.fit(upright, (width, height), method=Resampling.LANCZOS)


@contextlib.contextmanager
def _scheduled(pipeline: Any, scheduler: Any) -> Iterator[None]:
    before = pipeline.scheduler
    pipeline.scheduler = scheduler
    try:
        yield
    finally:
        pipeline.scheduler = before


def _attached(pipeline: Any, applied: Sequence[Applied]) -> contextlib.AbstractContextManager[object]:
    if not applied:
        return contextlib.nullcontext()
    from hnloader.attention import attach

    return attach(pipeline, [one.application() for one in applied])


def _version() -> str:
    from hnloader._version import __version__

    return __version__
