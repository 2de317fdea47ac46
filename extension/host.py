"""What the extension needs from the webui that it runs in. A new host is one file in `hosts` that implements this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import nn


class WebuiHost(Protocol):
    """A webui. `processing` is the host's object for one job."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def folders(self) -> list[Path]:
        """The folders with hypernetworks; the first one wins."""
        ...

    def unet(self, processing: Any = None) -> nn.Module | None:
        """The UNet that the job's next sampling step calls, None while no model of this kind is loaded."""
        ...

    def option(self, key: str, default: Any) -> Any:
        """A setting of the host, `default` where it has none of this name."""
        ...

    def comment(self, processing: Any, text: str) -> None:
        """Show a message under the job's pictures."""
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

    def on_steps(self, step: Callable[[int, int], None]) -> None:
        """Call `step(index, steps)` before each sampling step."""
        ...

    def on_events(
        self, *, before_ui: Callable[[], None], model_loaded: Callable[[], None], unloaded: Callable[[], None]
    ) -> None:
        """Call these before the page is built, after a checkpoint was loaded, and before the scripts are reloaded."""
        ...
