"""Images for the tab's Compare: each is a job of the webui, with its model, samplers and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.texts import well_formed
from hnloader.ui import ImageRequest

from .host_library import HostLibrary
from .hosts.protocol import Rendered, RendersImages
from .record import record_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui.page_host import Progress


class WebuiGenerator:
    """See `hnloader.ui.Generator`. It listens to the webui's steps, so make one for each start of the extension."""

    default_guidance = 7.0
    applies_embeddings = False

    def __init__(self, host: RendersImages, library: HostLibrary) -> None:
        self._host, self._library = host, library
        self._watch: _Watch | None = None
        host.on_step(self._step)

    @property
    def samplers(self) -> Sequence[str]:
        """The webui's samplers."""
        return self._host.samplers()

    def image(self, request: ImageRequest, progress: Progress) -> Image:
        """Generate one image while no other job runs."""
        rendered = self.run(replace(request, prompt=self._prompt(request), hypernetworks=()), progress)
        if problems := record_of(rendered.job).messages:
            raise HypernetworkError("\n".join(problems))
        assert rendered.image is not None
        return rendered.image

    def run(
        self,
        request: ImageRequest,
        progress: Progress,
        ready: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Rendered:
        """Run one job of the webui while no other job runs, within the context of `ready`.

        Raises:
            CancelledError: The job was interrupted.
            HypernetworkError: The webui failed.
        """
        host = self._host
        guidance = self.default_guidance if request.guidance is None else request.guidance
        with host.turn(lambda: progress(0, request.steps)):
            self._watch = watch = _Watch(progress, request.steps, host.interrupt)
            try:
                with ready():
                    rendered = host.render(replace(request, guidance=guidance))
            except (HypernetworkError, MemoryError):
                raise
            except Exception as error:
                if type(error).__name__ == "OutOfMemoryError":  # of torch; the page knows it
                    raise
                raise HypernetworkError(
                    f"{host.name} could not generate the image: {type(error).__name__}: {error}"
                ) from error
            finally:
                self._watch = None
        watch.check()
        if rendered.image is None or not rendered.complete:
            raise CancelledError
        return rendered

    def interrupt(self) -> None:
        """Stop the image of this generator; other jobs of the webui keep running."""
        watch = self._watch
        if watch is not None:
            watch.stop()

    def _prompt(self, request: ImageRequest) -> str:
        """Add a tag for each hypernetwork, so that the image's parameters contain it."""
        tags = []
        for path, tag in request.hypernetworks:
            self._library.find(path.stem)  # lists the folders again if the file is new
            tags.append(well_formed(str(replace(tag, name=self._library.current.name_of(path)))))
        return " ".join([request.prompt, "".join(tags)]) if tags else request.prompt

    def _step(self, index: int, steps: int) -> None:
        watch = self._watch
        if watch is not None:
            watch.step(index)


class _Watch:
    """Progress of one image. The webui would swallow exceptions, so they wait here until it has stopped."""

    def __init__(self, progress: Progress, steps: int, interrupt: Callable[[], None]) -> None:
        self._progress, self._steps, self._interrupt = progress, steps, interrupt
        self._error: BaseException | None = None

    def step(self, index: int) -> None:
        try:
            self.check()
            self._progress(min(index + 1, self._steps), self._steps)
        except BaseException as error:
            self._error = error
            self._interrupt()

    def stop(self) -> None:
        """Stop from another thread. A job that begins just now forgets the interruption; `step` repeats it."""
        self._error = CancelledError()
        self._interrupt()

    def check(self) -> None:
        """Raise the error that stopped the image."""
        if self._error is not None:
            raise self._error
