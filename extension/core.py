"""The state that all parts of the extension share."""

from __future__ import annotations

from dataclasses import dataclass, field

from .applying import Applier
from .host_library import HostLibrary
from .hosts.protocol import WebuiHost


@dataclass
class Extension:
    """One start of the extension in a webui.

    Attributes:
        host: The webui.
        library: The hypernetworks in the webui's folders.
        applier: Applies them to the running job.
        exports: Names that the entry script in `scripts/` publishes, where some webuis look for classes.
    """

    host: WebuiHost
    library: HostLibrary = field(init=False)
    applier: Applier = field(init=False)
    exports: dict[str, object] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.library = HostLibrary(self.host.folders)
        self.applier = Applier(self.host, self.library)
