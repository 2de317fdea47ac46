"""Images from diffusers pipelines, for `hnloader ui`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.ui.page_host import ImageRequest, ModelDefaults, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.generation import Step
    from hnloader.library import Library
    from hnloader.pipelines import Model
    from hnloader.prediction.predicting import Prediction

__all__ = ["BUNDLED", "DiffusersGenerator"]

BUNDLED = "the bundled pipeline"
# Its prompts have this form, and it follows them best at this CFG scale.
_BUNDLED_DEFAULTS = ModelDefaults(3.0, "a large red circle in the center on a white background")


class DiffusersGenerator:
    """`Generator` and `ModelChoice` for diffusers models. It loads a model for its first image, one at a time.

    Args:
        models: Models to choose from, as `hnloader.pipelines.load_model` takes them. The bundled pipeline is added.
        library: Returns the library that finds the prompts' tags.
        device: See `load_model`.
        dtype: See `load_model`.
        config: See `load_model`.
        predictor: A predictor of the given models. That of the bundled pipeline is added.
    """

    def __init__(
        self,
        models: Sequence[str],
        library: Callable[[], Library],
        *,
        device: str = "auto",
        dtype: str = "auto",
        config: str | Path | None = None,
        predictor: Path | None = None,
    ) -> None:
        from hnloader.demo import pipeline_folder
        from hnloader.pipelines import SAMPLERS

        self.applies_embeddings = True
        self.samplers: Sequence[str] = tuple(sampler.label for sampler in SAMPLERS.values())
        self._sources: dict[str, str | Path] = {model: model for model in models}
        self._sources[BUNDLED] = pipeline_folder()
        self._chosen = next(iter(self._sources))
        self._library, self._predictor = library, predictor
        self._device, self._dtype, self._config = device, dtype, config
        self._loaded: tuple[str, Model] | None = None
        self._lock = threading.Lock()
        self._interrupted = threading.Event()

    @property
    def default_guidance(self) -> float | None:
        """CFG scale of the current model."""
        return self.defaults(self._chosen).guidance

    def models(self) -> Sequence[str]:
        """Return the given names, then the bundled pipeline's."""
        return tuple(self._sources)

    def lora_base(self) -> dict[str, Any]:
        """Return the arguments of `open_base` for the current model."""
        return {"source": self._sources[self._chosen], "config": self._config, "device": self._device}

    def choose(self, name: str) -> None:
        """Use this model from the next image on. Raises HypernetworkError for an unknown name."""
        if name not in self._sources:
            raise HypernetworkError(f"Model {name!r}: not offered on this page. Restart it with --model {name}.")
        self._chosen = name

    def defaults(self, name: str) -> ModelDefaults:
        """Return settings that suit a model."""
        return _BUNDLED_DEFAULTS if name == BUNDLED else ModelDefaults()

    def interrupt(self) -> None:
        """Stop after the current sampling step."""
        self._interrupted.set()

    def image(self, request: ImageRequest, progress: Progress) -> Image:
        """Make one image. Other callers wait for their turn."""
        from hnloader.embeddings.prompt_words import files_with_words
        from hnloader.generation import Settings, generate

        def after_step(step: Step) -> None:
            if self._interrupted.is_set():
                raise CancelledError
            progress(step.step, step.steps)

        with self._lock:
            self._interrupted.clear()
            library = self._library()
            prompts = f"{request.prompt}\n{request.negative}"
            settings = Settings(
                prompt=request.prompt,
                embeddings=tuple(files_with_words(library.folders, prompts, request.embeddings)),
                negative_prompt=request.negative,
                hypernetworks=tuple(replace(tag, name=str(path)) for path, tag in request.hypernetworks),
                seed=request.seed,
                steps=request.steps,
                guidance=self.defaults(self._chosen).guidance if request.guidance is None else request.guidance,
                width=request.width,
                height=request.height,
                sampler=request.sampler,
            )
            made = next(iter(generate(self._model(), settings, library, progress=after_step)))
        made.image.info["parameters"] = str(made.infotext)
        return made.image

    def predict(self, images: Sequence[Path], name: str) -> Prediction:
        """Predict a hypernetwork for the current model; see `hnloader.prediction`."""
        from hnloader.demo import predictor_path
        from hnloader.prediction.predicting import StylePredictor
        from hnloader.prediction.predictor_file import load_predictor

        path = predictor_path() if self._chosen == BUNDLED else self._predictor
        if path is None:
            raise HypernetworkError(
                f"Model {self._chosen!r}: found no predictor for it. Restart the page with --predictor FILE."
            )
        with self._lock:
            return StylePredictor(load_predictor(path), self._model()).predict(images, name=name)

    def _model(self) -> Model:
        from hnloader.pipelines import load_model

        if self._loaded is None or self._loaded[0] != self._chosen:
            self._loaded = None  # memory may hold only one of them
            source = self._sources[self._chosen]
            model = load_model(source, device=self._device, dtype=self._dtype, config=self._config)
            self._loaded = self._chosen, model
        return self._loaded[1]
