"""Generate images with a diffusers model and hypernetworks.

    model = load_model("path/or/hub-name")
    settings = Settings(prompt="a red circle <hypernet:ink:0.8>", seed=1, count=4)
    for image in generate(model, settings, Library(["hypernetworks"])):
        image.image.save(f"{image.seed}.png")

The images of a run have the seeds seed, seed + 1, ... and each is generated separately. So each can be generated again
by its own seed, with the same pixels on the same machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnloader._version import __version__
from hnloader.embeddings import load_embedding
from hnloader.embeddings.prompt_words import PromptWords, has_word
from hnloader.errors import HypernetworkNotFoundError, ModelError, SettingsError
from hnloader.files import expanded, sha256_of
from hnloader.formats.registry import suffixes
from hnloader.hashes import find_named
from hnloader.infotext import EMBEDDING_HASHES, Infotext
from hnloader.library import Library
from hnloader.pipelines import Model, find_sampler, make_scheduler, quiet, sampler_label
from hnloader.prompt import Tag, format_number, is_finite, parse_prompt
from hnloader.texts import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.attention import Application
    from hnloader.network import Hypernetwork

__all__ = ["GeneratedImage", "Settings", "Step", "generate", "sweep"]

LARGEST_SEED = 2**32 - 1
# Digits of an embedding's sha256 that the webuis write.
_EMBEDDING_DIGITS = 12
MOST_STEPS = 10_000

Progress = Callable[["Step"], None]


@dataclass(frozen=True)
class Settings:
    """Settings of the images to generate.

    Args:
        prompt: The prompt. It may hold `<hypernet:...>` tags; see `hnloader.prompt`.
        negative_prompt: The negative prompt. Default: empty.
        hypernetworks: Hypernetworks to apply after those in the prompt, in this order. Their names may be paths of
            files; names in the prompt are looked up in the library only. Default: none.
        embeddings: Files of textual-inversion embeddings. Each acts where the prompts have its word: the stem of the
            file. Default: none.
        seed: Seed of the first image, 0 to 2**32 - 1. Default: a random seed.
        count: Number of images. Default: 1.
        steps: Number of sampling steps. Default: 20.
        guidance: Scale of classifier-free guidance (CFG); 1 turns it off. Default: 7.
        width: Width in pixels. Default: the model's own.
        height: Height in pixels. Default: the model's own.
        sampler: Key of `hnloader.pipelines.SAMPLERS`, such as `euler_a`. Default: the model's own scheduler.
        init_image: Image to start from (img2img), scaled and cropped to the size. Default: noise.
        denoise: Share of `init_image` that changes, above 0 and up to 1. Default: 0.75.

    Example:
        >>> from hnloader.generation import Settings
        >>> Settings("a castle <hypernet:outline:0.8>", seed=1).steps
        20
    """

    prompt: str
    negative_prompt: str = ""
    hypernetworks: tuple[Tag, ...] = ()
    embeddings: tuple[str | os.PathLike[str], ...] = ()
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
    """The progress of a run.

    Args:
        image: Number of the image, from 1.
        images: Number of all images.
        step: Number of the sampling step, from 1.
        steps: Number of all steps of the image.

    Example:
        >>> from hnloader.generation import Step
        >>> Step(image=1, images=4, step=20, steps=20).step
        20
    """

    image: int
    images: int
    step: int
    steps: int


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image.

    Args:
        image: The image.
        seed: Its seed.
        infotext: Its prompt and settings, as the webuis write them into images.
        censored: True if the model's safety checker made it black. Default: False.

    Example:
        >>> from hnloader.demo import pipeline_folder
        >>> from hnloader.generation import Settings, generate
        >>> from hnloader.pipelines import load_model
        >>> model = load_model(pipeline_folder(), device="cpu")
        >>> made = next(generate(model, Settings("a red circle", seed=7, steps=1)))
        >>> made.seed, made.infotext.settings["Steps"]
        (7, '1')
    """

    image: Image
    seed: int
    infotext: Infotext
    censored: bool = False


@dataclass(frozen=True)
class Applied:
    """A hypernetwork in a run: its tag, its file, and the first 10 digits of the file's sha256."""

    tag: Tag
    path: Path
    hypernetwork: Hypernetwork
    hash: str

    @property
    def name(self) -> str:
        """The file's stem, without the `>` that a tag cannot hold."""
        return self.path.stem.replace(">", "_")

    def application(self) -> Application:
        """Return the argument for `hnloader.attach`. Raises SettingsError for a strength out of range."""
        from hnloader.attention import Application

        tag = self.tag
        strength = {part.block: part.weight * tag.strength for part in tag.blocks} or tag.strength
        try:
            return Application(self.hypernetwork, strength, start=tag.start, end=tag.end, k=tag.k, v=tag.v)
        except ValueError as error:
            raise SettingsError(f"{tag.name}: {error}") from None


def generate(
    model: Model, settings: Settings, library: Library | None = None, *, progress: Progress | None = None
) -> Iterator[GeneratedImage]:
    """Generate `settings.count` images, one after the other.

    Between images the model is unchanged. To stop between images, close the iterator. To stop within an image, raise an
    exception from `progress`.

    Args:
        model: The model.
        settings: The settings.
        library: The library that finds the hypernetworks in the prompt. Default: an empty library.
        progress: Function to call after every sampling step. Default: none.

    Returns:
        An iterator of the images.

    Raises:
        HypernetworkError: A hypernetwork is unknown, damaged, or matches no layer of the model.
        SettingsError: A setting is out of range.

    Example:
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.generation import Settings, generate
        >>> from hnloader.library import Library
        >>> from hnloader.pipelines import load_model
        >>> model = load_model(pipeline_folder(), device="cpu")
        >>> library = Library([hypernetwork_paths()["outline"].parent])
        >>> settings = Settings("a large red circle <hypernet:outline:0.8>", seed=1, count=2, steps=1)
        >>> [(made.seed, made.image.size) for made in generate(model, settings, library)]
        [(1, (64, 64)), (2, (64, 64))]
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
    """Generate the images of `generate` at several strengths: each factor times every strength.

    Args:
        model: The model.
        settings: The settings, with at least one hypernetwork.
        factors: Factors on the strengths.
        library: The library that finds the hypernetworks in the prompt. Default: an empty library.
        progress: Function to call after every sampling step. Default: none.

    Returns:
        An iterator of (factor, image), seed by seed, in the order of `factors`.

    Raises:
        HypernetworkError: A hypernetwork is unknown, damaged, or matches no layer of the model.
        SettingsError: A setting is out of range, or the settings name no hypernetwork.

    Example:
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.generation import Settings, sweep
        >>> from hnloader.library import Library
        >>> from hnloader.pipelines import load_model
        >>> model = load_model(pipeline_folder(), device="cpu")
        >>> library = Library([hypernetwork_paths()["outline"].parent])
        >>> settings = Settings("a large red circle <hypernet:outline>", seed=1, steps=1)
        >>> [factor for factor, made in sweep(model, settings, [0.5, 1], library)]
        [0.5, 1]
    """
    run = _Run.prepare(model, settings, library or Library([]))
    if not run.applied:
        raise SettingsError("Sweep over strengths: the settings name no hypernetwork. Add one.")
    for index in range(settings.count):
        for factor in factors:
            applied = [replace(one, tag=replace(one.tag, strength=one.tag.strength * factor)) for one in run.applied]
            yield factor, run.image(index, applied, progress)


def load_hypernetworks(tags: Sequence[Tag], library: Library, *, paths: bool = False) -> list[Applied]:
    """Find and load the hypernetworks of tags, each file once. With `paths`, a name may be the path of a file."""
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
    """Return the file of a hypernetwork by its path or name, or raise HypernetworkNotFoundError."""
    path = expanded(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise HypernetworkNotFoundError(f"{name}: found a folder. Give a hypernetwork file.")
    if path.is_absolute() or path.parts[:1] == ("..",) or name.startswith(("./", ".\\", "~")):
        raise HypernetworkNotFoundError(f"{name}: the file does not exist. Check the path.")
    try:
        return find_named(library, name)
    except HypernetworkNotFoundError as error:
        if len(path.parts) > 1 or path.suffix.lower() in suffixes():
            raise HypernetworkNotFoundError(f"Path {shown(name)}: the file does not exist. {error}") from error
        raise


@dataclass(frozen=True)
class _Embeddings:
    """The embeddings of a run: their words, and `name: hash` of those whose word the prompts have."""

    words: PromptWords
    hashes: list[str]

    @staticmethod
    def load(pipeline: Any, settings: Settings, prompt: str) -> _Embeddings:
        files = [expanded(file) for file in settings.embeddings]
        embeddings = [load_embedding(file) for file in files]
        text = f"{prompt}\n{settings.negative_prompt}"
        hashes = [
            f"{embedding.name}: {sha256_of(file)[:_EMBEDDING_DIGITS]}"
            for file, embedding in zip(files, embeddings, strict=True)
            if has_word(embedding, text)
        ]
        return _Embeddings(PromptWords(pipeline, embeddings), hashes)


@dataclass(frozen=True)
class _Run:
    """The settings of a run, with all defaults filled in."""

    model: Model
    pipeline: Any  # text to image or image to image
    settings: Settings
    prompt: str  # without tags
    applied: list[Applied]
    embeddings: _Embeddings
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
        embeddings = _Embeddings.load(pipeline, settings, parsed.prompt)
        return _Run(model, pipeline, settings, parsed.prompt, applied, embeddings, seed, width, height, scheduler)

    def image(self, index: int, applied: Sequence[Applied], progress: Progress | None) -> GeneratedImage:
        """Generate one image, and restore the model."""
        seed = self.seed + index
        words = self.embeddings.words
        with _scheduled(self.pipeline, self.scheduler), _attached(self.pipeline, applied), words.added():
            result = self.pipeline(**self._inputs(seed), callback_on_step_end=self._callback(index, progress))
        censored = any(getattr(result, "nsfw_content_detected", None) or ())
        return GeneratedImage(result.images[0], seed, self._infotext(seed, applied), censored)

    def _inputs(self, seed: int) -> dict[str, Any]:
        settings = self.settings
        prompts = {"prompt": self.prompt, "negative_prompt": settings.negative_prompt}
        inputs: dict[str, Any] = {
            **(self.embeddings.words.inputs(prompts) if settings.embeddings else prompts),
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            # On the CPU, so that a seed gives the same noise on every device.
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
        if self.embeddings.hashes:
            values[EMBEDDING_HASHES] = ", ".join(self.embeddings.hashes)
        values["Version"] = f"hnloader {__version__}"
        # At the end and in order: a webui that reads this applies the same hypernetworks to the same words.
        words = [self.prompt.strip(), *(str(replace(one.tag, name=one.name)) for one in applied)]
        return Infotext(" ".join(filter(None, words)), settings.negative_prompt, values)


def _check(settings: Settings) -> None:
    seed = settings.seed or 0
    problems = {
        f"Count: found {settings.count}. Use at least 1.": settings.count < 1,
        f"Steps: found {settings.steps}. Use 1 to {MOST_STEPS:,}.": not 1 <= settings.steps <= MOST_STEPS,
        f"Denoise: found {settings.denoise}. Use a number above 0 and at most 1.": not 0 < settings.denoise <= 1,
        f"Seed: found {seed} for {settings.count} images. Use seeds from 0 to {LARGEST_SEED}.": (
            seed < 0 or seed + settings.count - 1 > LARGEST_SEED
        ),
        f"Guidance: found {settings.guidance}. Use a finite number.": not is_finite(settings.guidance),
    }
    for problem, found in problems.items():
        if found:
            raise SettingsError(problem)
    if settings.init_image is not None and int(settings.steps * settings.denoise) < 1:
        raise SettingsError(
            f"Steps: {settings.steps} steps with denoise {format_number(settings.denoise)} leave no step. "
            f"Use at least {math.ceil(1 / settings.denoise)} steps."
        )


def _size(pipeline: Any, settings: Settings) -> tuple[int, int]:
    """Return width and height in pixels, or raise SettingsError if the model cannot make that size."""
    grain = pipeline.vae_scale_factor
    native = pipeline.unet.config.sample_size
    high, wide = (native, native) if isinstance(native, int) else native
    width, height = settings.width or wide * grain, settings.height or high * grain
    for what, pixels in (("Width", width), ("Height", height)):
        # The pipelines of diffusers require multiples of 8, whatever the factor of their VAE.
        multiple = max(8, grain)
        if pixels < multiple or pixels % multiple:
            raise SettingsError(f"{what}: found {pixels} pixels. Use a multiple of {multiple}.")
    return width, height


def _image_to_image(pipeline: Any) -> Any:
    from diffusers import AutoPipelineForImage2Image

    try:
        with quiet():
            changed = AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError as error:
        raise ModelError(
            f"A {type(pipeline).__name__} cannot start from an image. Leave out the image, or use another model."
        ) from error
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
