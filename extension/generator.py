"""Images by the webui, for the comparisons of the tab: with its model, samplers and settings, one job for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.texts import well_formed
from hnloader.ui import ImageRequest

from .applying import left_out
from .host import Rendered
from .runtime import Extension

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui.page_host import Progress


class WebuiGenerator:
    """See `hnloader.ui.Generator`. Make one for each loading of the extension: it listens to the host's steps."""

    default_guidance = 7.0

    def __init__(self, extension: Extension) -> None:
        self._extension = extension
        self._watch: _Watch | None = None
        extension.host.on_steps(self._step)

    @property
    def samplers(self) -> Sequence[str]:
        """Those of the webui's menu."""
        return self._extension.host.samplers()

    def image(self, request: ImageRequest, progress: Progress) -> Image:
        """Make one image when no other job runs."""
        rendered = self.run(replace(request, prompt=self._prompt(request), hypernetworks=()), progress)
        if problems := left_out(rendered.processing):
            raise HypernetworkError("\n".join(problems))
        assert rendered.image is not None
        return rendered.image

    def run(
        self,
        request: ImageRequest,
        progress: Progress,
        ready: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Rendered:
        """A job of the host, when no other one runs, within what `ready` gives then.

        Raises CancelledError where it was interrupted, and HypernetworkError for an error of the host.
        """
        host = self._extension.host
        guidance = self.default_guidance if request.guidance is None else request.guidance
        with host.turn(lambda: progress(0, request.steps)):
            self._watch = watch = _Watch(progress, request.steps, host.interrupt)
            try:
                with ready():
                    rendered = host.render(replace(request, guidance=guidance))
            except (HypernetworkError, MemoryError):
                raise
            except Exception as error:
                if type(error).__name__ == "OutOfMemoryError":  # torch's, which the page knows
                    raise
                raise HypernetworkError(
                    f"{host.name} could not make the image: {type(error).__name__}: {error}"
                ) from error
            finally:
                self._watch = None
        watch.check()
        if rendered.image is None or not rendered.complete:
            raise CancelledError
        return rendered

    def interrupt(self) -> None:
        """Stop the image that is being made here; other jobs of the webui go on."""
        watch = self._watch
        if watch is not None:
            watch.stop()

    def _prompt(self, request: ImageRequest) -> str:
        """The prompt with a tag for each hypernetwork, so that the image's own text says how it was made."""
        tags = []
        for path, tag in request.hypernetworks:
            self._extension.find(path.stem)  # lists the folders anew if it is not known yet
            tags.append(well_formed(str(replace(tag, name=self._extension.library.name_of(path)))))
        return " ".join([request.prompt, "".join(tags)]) if tags else request.prompt

    def _step(self, index: int, steps: int) -> None:
        watch = self._watch
        if watch is not None:
            watch.step(index)


class _Watch:
    """One image in the making. Exceptions would be swallowed by the host, so they wait here until it has stopped."""

    def __init__(self, progress: Progress, steps: int, interrupt: Callable[[], None]) -> None:
        self._progress, self._steps, self._interrupt = progress, steps, interrupt
        self._error: BaseException | None = None

    def step(self, index: int) -> None:
        """Before step `index`, counted from 0."""
        try:
            self.check()
            self._progress(min(index + 1, self._steps), self._steps)
        except BaseException as error:
            self._error = error
            self._interrupt()

    def stop(self) -> None:
        """Called from another thread; the job may be about to begin, which forgets an interruption, so `step` asks."""
        self._error = CancelledError()
        self._interrupt()

    def check(self) -> None:
        """Raise what stopped the image."""
        if self._error is not None:
            raise self._error
