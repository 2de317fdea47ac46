"""Interface between the page and the program it runs in, `hnloader ui` or a webui.

The page's components know nothing else about that program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hnloader.prompt import Tag

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.network import Hypernetwork
    from hnloader.ui.catalog import Catalog

__all__ = [
    "EXAMPLE_PROMPT",
    "Generator",
    "Host",
    "ImageRequest",
    "ModelChoice",
    "ModelDefaults",
    "PredictionPlace",
    "Progress",
    "TagButton",
    "TextRequest",
    "TrainingPlace",
    "Writer",
]

Progress = Callable[[int, int], None]
EXAMPLE_PROMPT = "a castle on a hill at sunset, oil painting"


@dataclass(frozen=True)
class ImageRequest:
    """One image to make.

    Attributes:
        prompt: Text. Its `<hypernet:...>` tags apply before `hypernetworks`.
        negative: Negative prompt.
        seed: 0 to 2**32 - 1.
        steps: Number of sampling steps.
        hypernetworks: Files in the order in which they apply, each with the strength and options of its tag. The
            path names the file, not the tag.
        embeddings: Files of embeddings, in place of others with the same words. Each acts if its word is in a prompt.
            Only for generators that apply embeddings.
        guidance: Classifier-free guidance (CFG) scale. None takes the program's default.
        width: Pixels. None takes the model's default.
        height: Pixels. None takes the model's default.
        sampler: One of the generator's `samplers`. None takes the program's default.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 20
    hypernetworks: tuple[tuple[Path, Tag], ...] = ()
    embeddings: tuple[Path, ...] = ()
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None


class Generator(Protocol):
    """Makes images for Compare and Generate.

    The page calls `image` from its own thread, one call at a time. The generator calls `progress(step, steps)` after
    each sampling step. To cancel, `progress` raises `CancelledError`: the generator then restores its model and lets
    the exception through. Where the host owns the sampling loop, `interrupt` cancels instead, from another thread and
    possibly while nothing runs; `image` then raises `CancelledError`.

    A returned image holds its infotext in `image.info["parameters"]` if the generator knows it.
    """

    @property
    def samplers(self) -> Sequence[str]:
        """Names that `ImageRequest.sampler` accepts."""
        ...

    @property
    def default_guidance(self) -> float | None:
        """Initial CFG scale. None hides the setting."""
        ...

    @property
    def applies_embeddings(self) -> bool:
        """True if `ImageRequest.embeddings`, and embeddings of the library whose words are in a prompt, act in it."""
        ...

    def image(self, request: ImageRequest, progress: Progress) -> Image:
        """Make one image. Raises HypernetworkError with a message for the user."""
        ...

    def interrupt(self) -> None:
        """Stop the current image as soon as possible."""
        ...


@dataclass(frozen=True)
class TextRequest:
    """One text to write.

    Attributes:
        prompt: The text to continue.
        model: One of the writer's `models`.
        hypernetworks: Files in the order in which they apply, with their strengths.
        max_tokens: The most tokens to write.
        temperature: Low values give likely words.
        seed: 0 to 2**32 - 1.
    """

    prompt: str
    model: str
    hypernetworks: tuple[tuple[Path, float], ...] = ()
    max_tokens: int = 100
    temperature: float = 0.8
    seed: int = 0


class Writer(Protocol):
    """Writes texts for Write. The page calls `write` from its own thread."""

    @property
    def example(self) -> str:
        """The beginning of a text that the first model can continue."""
        ...

    def models(self) -> Sequence[str]:
        """Names to choose from. The first one is the default."""
        ...

    def write(self, request: TextRequest, on_text: Callable[[str], None]) -> None:
        """Write a text, and call `on_text` with each part; to cancel, it raises `CancelledError`."""
        ...


@dataclass(frozen=True)
class ModelDefaults:
    """Settings that suit a model.

    Attributes:
        guidance: CFG scale.
        prompt: Example prompt.
    """

    guidance: float = 7.0
    prompt: str = EXAMPLE_PROMPT


class ModelChoice(Protocol):
    """Lets the page choose the generator's model."""

    def models(self) -> Sequence[str]:
        """Names to choose from. The first one is in use at the start."""
        ...

    def choose(self, name: str) -> None:
        """Use this model from the next image on."""
        ...

    def defaults(self, name: str) -> ModelDefaults:
        """Return the settings to show when this model is chosen."""
        ...


@dataclass(frozen=True)
class TagButton:
    """Button below a file that sends its tag to the host's own prompt.

    Attributes:
        label: Text of the button.
        js: JavaScript function that takes the tag.
        hint: How to apply files in the host, for Library. Default: nothing.
    """

    label: str
    js: str
    hint: str = ""


@dataclass(frozen=True)
class TrainingPlace:
    """Folders and models for training.

    Attributes:
        folder: Returns the folder of the training runs, created when missing. Keep it out of the library, which would
            list every checkpoint.
        library: Returns the folder that finished hypernetworks are copied to.
        models: Returns the models to offer: folders, files or Hub names. The first one is the default.
        embeddings: Returns the folder that finished embeddings are copied to. None takes the library's.
        may_name_python: Lets the user name the Python interpreter that trains. Only for pages that this computer
            alone can reach.
    """

    folder: Callable[[], Path]
    library: Callable[[], Path]
    models: Callable[[], Sequence[str]]
    embeddings: Callable[[], Path] | None = None
    may_name_python: bool = False


class Prediction(Protocol):
    """A predicted hypernetwork, and notes for the user."""

    @property
    def hypernetwork(self) -> Hypernetwork:
        """The hypernetwork."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Problems with the images."""
        ...


@dataclass(frozen=True)
class PredictionPlace:
    """A predictor of the generator's model.

    Attributes:
        predict: Predicts a hypernetwork from images, under a name. Raises HypernetworkError.
        library: Returns the folder for predicted hypernetworks.
    """

    predict: Callable[[Sequence[Path], str], Prediction]
    library: Callable[[], Path]


@dataclass(frozen=True)
class Host:
    """Program that the page runs in. Functions are called each time that their value is needed.

    Attributes:
        folders: Returns the folders with hypernetworks. Of two files with the same name, the first folder's wins.
        output: Returns the folder for images, created when missing.
        generator: Makes images. None hides Compare and Generate.
        writer: Writes texts. None hides Write.
        models: Chooses the generator's model. None where the program does that itself.
        converted: Returns the separate folder for converted files. None takes `converted` below `output`.
        loras: Returns the separate folder for LoRA files. None takes the one for converted files.
        lora_base: Returns arguments of `hnloader.conversion.lora.base_model.open_base`: `source`, and if needed
            `config`, `device` or `program`. Without a `program` it requires diffusers. None hides LoRA.
        training: Where to train. None hides Train.
        prediction: How to predict hypernetworks from images. None hides Predict.
        pages: Pages to show, in this order: library, convert, compare, train, generate, predict, write.
        tag_button: Button that sends a file's tag to the host. None sends it to Generate if that page is shown.
        catalog: The library's files, if the program uses them, too. None makes one without an index.
        on_change: Called after files were added or changed.
    """

    folders: Callable[[], Sequence[Path]]
    output: Callable[[], Path]
    generator: Generator | None = None
    writer: Writer | None = None
    models: ModelChoice | None = None
    converted: Callable[[], Path] | None = None
    loras: Callable[[], Path] | None = None
    lora_base: Callable[[], Mapping[str, Any]] | None = None
    training: TrainingPlace | None = None
    prediction: PredictionPlace | None = None
    pages: tuple[str, ...] = ("library", "convert", "compare", "train")
    tag_button: TagButton | None = None
    catalog: Catalog | None = None
    on_change: Callable[[], None] = lambda: None
