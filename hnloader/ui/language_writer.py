"""Texts from language models, for `hnloader ui`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import HypernetworkError
from hnloader.ui.page_host import TextRequest

if TYPE_CHECKING:
    from hnloader.language_models import LanguageModel

__all__ = ["BUNDLED_WRITER", "LanguageWriter"]

BUNDLED_WRITER = "the bundled language model"


class LanguageWriter:
    """`Writer` for language models. It loads a model for its first text, one at a time.

    Args:
        models: Models to choose from, as `hnloader.language_models.load_language_model` takes them. The bundled one is
            added.
        device: See `load_language_model`.
        dtype: See `load_language_model`.
    """

    def __init__(self, models: Sequence[str], *, device: str = "auto", dtype: str = "auto") -> None:
        from hnloader.demo import language_model_folder

        self._sources: dict[str, str | Path] = {model: model for model in models}
        self._sources[BUNDLED_WRITER] = language_model_folder()
        self._device, self._dtype = device, dtype
        self._loaded: tuple[str, LanguageModel] | None = None
        self._lock = threading.Lock()

    def models(self) -> Sequence[str]:
        """Return the given names, then the bundled model's."""
        return tuple(self._sources)

    @property
    def example(self) -> str:
        """The beginning of a text that the first model can continue."""
        return "This is a story about Mara and a lantern." if len(self._sources) == 1 else "Once upon a time"

    def write(self, request: TextRequest, on_text: Callable[[str], None]) -> None:
        """Write a text. Other callers wait for their turn."""
        from hnloader.attention import attach
        from hnloader.writing import WritingSettings, write_text

        with self._lock:
            language = self._model(request.model)
            settings = WritingSettings(request.max_tokens, request.temperature, request.seed)
            attached: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
            if request.hypernetworks:
                attached = attach(language.model, list(request.hypernetworks))
            with attached:
                write_text(language, request.prompt, settings, on_text)

    def _model(self, name: str) -> LanguageModel:
        from hnloader.language_models import load_language_model

        if name not in self._sources:
            raise HypernetworkError(f"Model {name!r}: not offered on this page. Restart it with --model {name}.")
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # the memory of one model at a time
            language = load_language_model(self._sources[name], device=self._device, dtype=self._dtype)
            self._loaded = name, language
        return self._loaded[1]
