"""What the page needs from the program that it runs in: folders, a place to save to, and something that makes images.

The standalone page (`hnloader ui`) and each webui implement these; the page's components know nothing else of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hnloader.prompt import Tag

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageRequest:
    """One image to make.

    Attributes:
        prompt: may hold `<hypernet:...>` tags, which apply before `hypernetworks`.
        negative: what to keep out of it.
        seed: 0 to 2**32 - 1.
        steps: sampling steps.
        hypernetworks: applied in this order, each file with the strength and options of its tag. The tag's name
            is the file's stem; the path says which file it is.
        guidance: classifier-free guidance (CFG) scale; None is the program's own default.
        width, height: pixels; None is the model's own size.
        sampler: a name that the generator lists in `samplers`; None is the program's own default.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 20
    hypernetworks: tuple[tuple[Path, Tag], ...] = ()
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None


class Generator(Protocol):
    """Makes images for Compare and Generate, one at a time.

    `image` is called from a thread of the page's own, never twice at once by one page. It calls `progress(step,
    steps)` after each sampling step; where that raises (`CancelledError`), the generator restores its model and lets
    the exception through. A generator that cannot be stopped through `progress` (because the host owns the loop) stops
    through `interrupt`, which is called from another thread and may come when nothing runs; `image` then raises
    `CancelledError`.

    A returned image has `image.info["parameters"]` set to its infotext, if the generator knows it.

    """

    @property
    def samplers(self) -> Sequence[str]:
        """The names that `ImageRequest.sampler` may have."""
        ...

    @property
    def default_guidance(self) -> float | None:
        """The guidance scale shown at first; None hides the setting."""
        ...

    def image(self, request: ImageRequest, progress: Progress) -> Image:
        """Make one image. Raises HypernetworkError with a message for the user."""
        ...

    def interrupt(self) -> None:
        """Stop the image in progress as soon as possible."""
        ...


class ModelChoice(Protocol):
    """What a generator has in addition where the page chooses its model (the standalone page)."""

    def models(self) -> Sequence[str]:
        """Names to choose from, the first one at the start."""
        ...

    def choose(self, name: str) -> None:
        """Use this model from the next image on; it is loaded then."""
        ...

    def guidance_of(self, name: str) -> float:
        """The guidance scale to show when this model is chosen."""
        ...


@dataclass(frozen=True)
class Use:
    """What the button below a file does with its tag in a program that has a prompt of its own.

    Attributes:
        label: of the button.
        js: JavaScript, a function that takes the tag as text.
    """

    label: str
    js: str


@dataclass(frozen=True)
class TrainingPlace:
    """Where the page trains.

    Attributes:
        folder: called for the folder of the trainings, made if it is missing; no library of hypernetworks, for saved
            states would be listed there.
        library: called for the folder that finished hypernetworks are copied into.
        models: called for what to offer: folders, files or names on the hub, the first one at the start.
        embeddings: called for the folder that finished embeddings are copied into; None takes the library's.
        may_name_python: whether who uses the page may name a program of this computer that trains: a page that
            others reach must not.
    """

    folder: Callable[[], Path]
    library: Callable[[], Path]
    models: Callable[[], Sequence[str]]
    embeddings: Callable[[], Path] | None = None
    may_name_python: bool = False


@dataclass(frozen=True)
class Host:
    """Where the page runs.

    Attributes:
        folders: called whenever the library is listed; the folders with hypernetworks, the first one wins.
        output: called when something is saved; the folder for images, made if it is missing.
        generator: makes images; None leaves Compare and Generate out.
        models: chooses the generator's model; None where the program does that itself.
        converted: the folder for converted files that are not to lie beside their sources; None puts them into
            `converted` below `output`.
        loras: the same for LoRA files; None puts them where `converted` says.
        lora_base: called when a LoRA is asked for; the arguments of `hnloader.conversion.lora.base_model.open_base` by
            name: `source`, and `config`, `device` or `program` if they are needed. None leaves LoRA out of Convert
            (without a `program` it needs diffusers).
        training: where to train; None leaves Train out.
        pages: which pages to show, in this order: library, convert, compare, train, generate.
        use: what Library does with a file's tag; None puts it into the prompt of Generate, if that page is shown.
        empty: what to do when there is no file yet, one sentence; None names the folders.
        cache: the folder in which Library keeps what it knows of files, for the next start; None keeps nothing.
        after_change: called when files were added or changed (a webui lists its hypernetworks anew).
    """

    folders: Callable[[], Sequence[Path]]
    output: Callable[[], Path]
    generator: Generator | None = None
    models: ModelChoice | None = None
    converted: Callable[[], Path] | None = None
    loras: Callable[[], Path] | None = None
    lora_base: Callable[[], Mapping[str, Any]] | None = None
    training: TrainingPlace | None = None
    pages: tuple[str, ...] = ("library", "convert", "compare", "train")
    use: Use | None = None
    empty: str | None = None
    cache: Path | None = None
    after_change: Callable[[], None] = lambda: None
