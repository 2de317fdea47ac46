"""The contract between the extension and a webui.

`WebuiHost` is required. Every other protocol is a capability: without it, the part of the extension that needs it stays
off. A host class names its capabilities as base classes, so that mypy checks them.

A `job` is the webui's object for one run of its sampler. The extension sets attributes on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from hnloader.texts import well_formed

from ..host_library import HostLibrary

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.ui import ImageRequest, TagButton


@dataclass(frozen=True)
class Events:
    """Calls that a host makes.

    Attributes:
        activate: `(job, tags, first_pass)` with the texts between the colons of each `<hypernet:...>` tag. Call it
            before each batch and pass, also without tags; `first_pass` is False in later passes over the same images.
        deactivate: After a job.
        step: `(index, steps)` before each sampling step; `index` starts at 0.
        model_changed: After loading a checkpoint.
        unload: Before the webui loads its extensions again.
    """

    activate: Callable[[Any, Sequence[Sequence[str]], bool], None]
    deactivate: Callable[[], None]
    step: Callable[[int, int], None]
    model_changed: Callable[[], None]
    unload: Callable[[], None]


class WebuiHost(Protocol):
    """The required part, which is enough for tags in prompts."""

    name: str

    def folders(self) -> list[Path]:
        """Return the folders with hypernetworks. The first one wins."""

    def unet(self, job: Any = None) -> nn.Module | None:
        """Return the UNet of the job's next sampling step; None without a model of this kind."""

    def connect(self, events: Events) -> None:
        """Make these calls from now on."""


# Messages, settings and files.


@runtime_checkable
class ShowsMessages(Protocol):
    """Messages on the page. Without it they go to the console."""

    def show_message(self, text: str, job: Any = None) -> None:
        """Show a message under the job's images, or in the page if it belongs to no job."""


@dataclass(frozen=True)
class Option:
    """A setting of the extension. A text has several lines, and True or False is a checkbox."""

    key: str
    default: bool | str
    label: str
    info: str = ""
    needs_reload: bool = False
    restrict_api: bool = False  # clients of the API must not change it


@runtime_checkable
class HasOptions(Protocol):
    """Settings. Without it every option has its default."""

    def option(self, key: str, default: Any) -> Any:
        """Return a setting of the webui or of the extension."""

    def add_options(self, section: str, options: Sequence[Option]) -> None:
        """Add a section to the settings."""


@runtime_checkable
class ListsFiles(Protocol):
    """A list of hypernetworks in the webui's settings or API."""

    def list_files(self, names: Callable[[], Mapping[str, str]]) -> None:
        """Include these names and paths until the extension is unloaded."""

    def refresh_files(self) -> None:
        """Update the list."""


# Jobs.


@runtime_checkable
class HasHypernetworks(Protocol):
    """The webui's own hypernetworks."""

    def clear_built_in(self) -> None:
        """Disable them for the running job, so that none applies twice."""

    def quick_setting(self) -> str | None:
        """Return the name in the setting 'Add hypernetwork to prompt'; None if it adds nothing."""

    def add_to_prompts(self, job: Any, tag: str) -> None:
        """Add a tag to the prompts that the job's images record."""


@runtime_checkable
class ClosesJobs(Protocol):
    """Jobs that are closed also after an error, when the webui skips `Events.deactivate`."""

    def at_close(self, job: Any, call: Callable[[], None]) -> None:
        """Call this when the job is closed."""


@runtime_checkable
class FindsPlainLinears(Protocol):
    """Layers that hypernetworks can be folded into. Without it, hypernetworks only change the input of each layer."""

    def plain_linears(self) -> Callable[[nn.Module], bool]:
        """Return a test of layers, which is valid for one call of the UNet.

        A layer passes if its forward computes `linear(x, weight, bias)` and does nothing else in this call: it casts
        nothing, adds no LoRA, and does not change its weight. The test takes less than half a microsecond. A host with
        this method never changes a text in place during a call.
        """


@runtime_checkable
class FindsControlNets(Protocol):
    """ControlNets. Without it, hypernetworks act in the UNet alone."""

    def control_nets(self, job: Any) -> Sequence[nn.Module]:
        """Return the ControlNets that the job's next sampling step calls, each once."""


@runtime_checkable
class WritesInfotext(Protocol):
    """Generation parameters in images."""

    def parameters(self, job: Any) -> dict[str, Any]:
        """Return the job's additional parameters, for changes."""

    def on_paste(self, pasted: Callable[[dict[str, Any]], None]) -> None:
        """Call this with the fields of each pasted infotext, for changes."""


# Places in the page, and the API.


@dataclass(frozen=True)
class Panel:
    """Components below the prompt, with one value that images record under `infotext_key`."""

    title: str
    infotext_key: str
    build: Callable[[str], Any]  # for the tab "txt2img" or "img2img": makes the components, returns that of the value
    apply: Callable[[Any, Any], None]  # job that begins, value of the component or from the API
    finish: Callable[[Any], None]  # job that has ended


@runtime_checkable
class ShowsPanel(Protocol):
    """A place for components below the prompt."""

    def panel_class(self, panel: Panel) -> type:
        """Return the class that the webui looks for in the entry script."""


@runtime_checkable
class ShowsCards(Protocol):
    """Cards for extra networks."""

    def add_cards(self, library: HostLibrary) -> None:
        """Show a card for each hypernetwork."""


@dataclass(frozen=True)
class Axis:
    """An axis of the X/Y/Z plot. `check` raises RuntimeError; the plot changes values with a high `cost` less often."""

    label: str
    kind: type
    apply: Callable[[Any, Any], None]  # job, value
    check: Callable[[Any], object] = lambda value: None
    choices: Callable[[], list[str]] | None = None
    cost: float = 0.0


@runtime_checkable
class PlotsAxes(Protocol):
    """An X/Y/Z plot."""

    def add_axes(self, axes: Sequence[Axis]) -> None:
        """Add the axes, replacing earlier ones with the same labels."""


@runtime_checkable
class ShowsTab(Protocol):
    """Gradio pages as tabs. `tag_button` sends a tag to the webui's prompt."""

    tag_button: ClassVar[TagButton | None]

    def add_tab(self, title: str, elem_id: str, build: Callable[[], None]) -> None:
        """Call `build` within the Blocks of a new tab, each time that the webui builds its page."""

    def output(self) -> Path:
        """Return the folder for saved grids."""


@dataclass(frozen=True)
class Access:
    """Permissions of the API.

    Attributes:
        enabled: The webui serves an API.
        accounts: Passwords by user, for the API and the page; empty without a login.
        local: Only this computer can reach the webui.
    """

    enabled: bool
    accounts: Mapping[str, str] = field(repr=False)
    local: bool


@runtime_checkable
class ServesApi(Protocol):
    """A FastAPI app."""

    def access(self) -> Access:
        """Return the permissions that the webui was started with."""

    def on_app(self, serve: Callable[[Any], None]) -> None:
        """Call `serve(app)` when the app starts, and after each reload."""


# The webui's model, for the pages of the tab.


@dataclass(frozen=True)
class Rendered:
    """The result of a job: its image, None if it ended before that, and whether all steps ran."""

    image: Image | None
    complete: bool
    job: Any


@runtime_checkable
class RendersImages(WebuiHost, Protocol):
    """Images on demand, for Compare. Each one is a job, and waits for its turn."""

    def samplers(self) -> Sequence[str]:
        """Return the names of the samplers, the default first."""

    def turn(self, waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """Wait in line, then keep other jobs from running within the context.

        While it waits, it calls `waiting` several times a second, which raises an exception to give up.
        """

    def render(self, request: ImageRequest) -> Rendered:
        """Generate an image, without scripts and without saving it; raise any exception.

        The request's hypernetworks are tags in its prompt, and its `guidance` is set.
        """

    def interrupt(self) -> None:
        """Stop the running job after its current step."""

    def on_step(self, step: Callable[[int, int], None]) -> None:
        """Call this before each sampling step, like `Events.step`."""


@runtime_checkable
class RunsModel(RendersImages, Protocol):
    """The parts of the model, for LoRA; both are called within a turn."""

    def load(self) -> None:
        """Load the selected checkpoint."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the context of the UNet's cross-attention for each text. Shape [texts, tokens, width]."""


@runtime_checkable
class KeepsModels(Protocol):
    """Files of models, for LoRA and Train."""

    def checkpoint(self) -> Path | None:
        """Return the file of the selected checkpoint."""

    def lora_folder(self) -> Path:
        """Return the folder with LoRA files."""

    def embeddings_folder(self) -> Path:
        """Return the folder with embeddings."""


# Defaults for hosts without a capability.


def show_message(host: WebuiHost, text: str, job: Any = None) -> None:
    """Show a message, on the page or on the console."""
    if isinstance(host, ShowsMessages):
        host.show_message(text, job)
    else:
        print(f"[hnloader] {well_formed(text)}")


def option(host: WebuiHost, key: str, default: Any) -> Any:
    """Return a setting, or the default."""
    return host.option(key, default) if isinstance(host, HasOptions) else default
