"""Images by diffusers, for the standalone page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.ui.page_host import ImageRequest, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.generation import Step
    from hnloader.library import Library
    from hnloader.pipelines import Model

BUNDLED = "the bundled pipeline"


class DiffusersGenerator:
    """A `Generator` and `ModelChoice` over diffusers models; one is loaded when its first image is asked for."""

    def __init__(
        self,
        models: Sequence[str],
        library: Callable[[], Library],
        *,
        device: str = "auto",
        dtype: str = "auto",
        config: str | Path | None = None,
    ) -> None:
        """Take `models` to choose from, what `hnloader.pipelines.load_model` takes; the bundled pipeline is added.

        `library` is called for each image: tags in prompts are looked up there. `device`, `dtype` and `config`
        are those of `load_model`.
        """
        from hnloader.demo import pipeline_folder
        from hnloader.pipelines import SAMPLERS

        self.samplers: Sequence[str] = tuple(sampler.label for sampler in SAMPLERS.values())
        self._sources: dict[str, str | Path] = {model: model for model in models}
        self._sources[BUNDLED] = pipeline_folder()
        self._chosen = next(iter(self._sources))
        self._library = library
        self._device, self._dtype, self._config = device, dtype, config
        self._loaded: tuple[str, Model] | None = None
        self._lock = threading.Lock()
        self._interrupted = threading.Event()

    @property
    def default_guidance(self) -> float | None:
        """Of the model that is used."""
        return self.guidance_of(self._chosen)

    def models(self) -> Sequence[str]:
        """The names given, then the bundled pipeline's."""
        return tuple(self._sources)

    def source(self) -> str | Path:
        """The folder, file or hub name of the model that is used."""
        return self._sources[self._chosen]

    def choose(self, name: str) -> None:
        """Use this model from the next image on. Raises HypernetworkError for a name that is not offered."""
        if name not in self._sources:
            raise HypernetworkError(f"There is no model {name!r} to choose. Name it with --model at the start.")
        self._chosen = name

    def guidance_of(self, name: str) -> float:
        """3 for the bundled pipeline, which follows its prompts best there; 7 for others."""
        return 3.0 if name == BUNDLED else 7.0

    def interrupt(self) -> None:
        """Stop after the current sampling step."""
        self._interrupted.set()

    def image(self, request: ImageRequest, progress: Progress) -> Image:
        """Make one image; a second caller waits for the first."""
        from hnloader.generation import Settings, generate

        with self._lock:
            self._interrupted.clear()
            model = self._model()
            settings = Settings(
                prompt=request.prompt,
                negative_prompt=request.negative,
                hypernetworks=tuple(replace(tag, name=str(path)) for path, tag in request.hypernetworks),
                seed=request.seed,
                steps=request.steps,
                guidance=self.guidance_of(self._chosen) if request.guidance is None else request.guidance,
                width=request.width,
                height=request.height,
                sampler=request.sampler,
            )

            def after_step(step: Step) -> None:
                if self._interrupted.is_set():
                    raise CancelledError
                progress(step.step, step.steps)

            made = next(iter(generate(model, settings, self._library(), progress=after_step)))
        made.image.info["parameters"] = str(made.infotext)
        return made.image

    def _model(self) -> Model:
        """The chosen model; a model that was loaded before is let go first, since two may not fit."""
        from hnloader.pipelines import load_model

        if self._loaded is None or self._loaded[0] != self._chosen:
            self._loaded = None
            source = self._sources[self._chosen]
            model = load_model(source, device=self._device, dtype=self._dtype, config=self._config)
            self._loaded = self._chosen, model
        return self._loaded[1]
