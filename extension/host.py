"""What the extension needs from the webui that it runs in. A new host is one file in `hosts` that implements this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui import ImageRequest


@dataclass(frozen=True)
class Rendered:
    """What came of an image that the host was asked for.

    Attributes:
        image: None where the job ended before there was one.
        complete: whether all of its steps were made; not after an interruption.
        processing: the host's object for the job.
    """

    image: Image | None
    complete: bool
    processing: Any


@dataclass(frozen=True)
class Access:
    """Who may use the host's API.

    Attributes:
        enabled: whether the host serves an API at all.
        accounts: passwords by user, of the API's login and of the page's; empty where there is no login.
        local: whether the host serves this computer alone.
    """

    enabled: bool
    accounts: Mapping[str, str] = field(repr=False)
    local: bool


class WebuiHost(Protocol):
    """A webui. `processing` is the host's object for one job."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def folders(self) -> list[Path]:
        """The folders with hypernetworks; the first one wins."""
        ...

    def output(self) -> Path:
        """The folder where comparisons are saved."""
        ...

    def lora_folder(self) -> Path:
        """The folder where the host looks for LoRA files."""
        ...

    def embeddings_folder(self) -> Path:
        """The folder where the host looks for embeddings."""
        ...

    def checkpoint(self) -> Path | None:
        """The file of the checkpoint that is chosen, None where there is none."""
        ...

    def unet(self, processing: Any = None) -> nn.Module | None:
        """The UNet that the job's next sampling step calls, None while no model of this kind is loaded."""
        ...

    def option(self, key: str, default: Any) -> Any:
        """A setting of the host, `default` where it has none of this name."""
        ...

    def notify(self, text: str) -> None:
        """Show a message that belongs to no job."""
        ...

    def quick_setting(self) -> str | None:
        """The name in the host's setting 'Add hypernetwork to prompt', None where it adds nothing."""
        ...

    def comment(self, processing: Any, text: str) -> None:
        """Show a message under the job's images."""
        ...

    def clear_built_in(self) -> None:
        """Have the host's own hypernetworks apply nothing, so that none is applied twice."""
        ...

    def register_tag(self, activate: Callable[[Any, list[list[str]]], None], deactivate: Callable[[], None]) -> None:
        """Have `<hypernet:...>` call these.

        `activate(processing, items)` with the texts between the colons of each tag, also when there is none;
        `deactivate()` when the job is over.
        """
        ...

    def list_files_with(self, names: Callable[[], dict[str, str]]) -> Callable[[], None]:
        """Have the host's own list of hypernetworks (settings, API) include these: name to path.

        Returns a function that undoes it.
        """
        ...

    def refresh(self) -> None:
        """Have the host list its hypernetworks anew."""
        ...

    def samplers(self) -> Sequence[str]:
        """The names that an image's sampler may have; the first one is used where none is asked for."""
        ...

    def turn(self, waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """Within it no other job runs.

        `waiting` is called until then, a few times each second; it raises to give up.
        """
        ...

    def render(self, request: ImageRequest) -> Rendered:
        """Make an image as the host's txt2img does, without scripts and without saving it; within `turn`.

        `request.hypernetworks` is empty, they are tags in the prompt, and `request.guidance` is set.
        Raises what the host raises.
        """
        ...

    def load(self) -> None:
        """Have the chosen checkpoint in memory; within `turn`."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """What the UNet's cross-attention receives for each text, [texts, tokens, width]; within `turn`."""
        ...

    def interrupt(self) -> None:
        """End the job that runs after its present step."""
        ...

    def access(self) -> Access:
        """Who may use the API, as the host was started."""
        ...

    def on_app(self, serve: Callable[[Any], None]) -> None:
        """Call `serve(app)` with the host's FastAPI app, anew after each 'Reload UI'."""
        ...

    def on_steps(self, step: Callable[[int, int], None]) -> None:
        """Call `step(index, steps)` before each sampling step."""
        ...

    def on_events(
        self, *, before_ui: Callable[[], None], model_loaded: Callable[[], None], unloaded: Callable[[], None]
    ) -> None:
        """Call these before the page is built, after a checkpoint was loaded, and before the scripts are reloaded."""
        ...
