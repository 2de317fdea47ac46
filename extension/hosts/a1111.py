"""AUTOMATIC1111's webui, 1.7 to 1.10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn


class Automatic1111:
    """See `WebuiHost`. The host's modules are imported in the methods: they exist in its process only."""

    name = "AUTOMATIC1111"

    def folders(self) -> list[Path]:
        """The host's folder, then those of the setting."""
        from modules import shared

        more = str(self.option("hnloader_folders", "")).splitlines()
        return [Path(shared.cmd_opts.hypernetwork_dir), *(Path(line.strip()) for line in more if line.strip())]

    def unet(self, processing: Any = None) -> nn.Module | None:
        """The UNet of the model in use; a refiner replaces it in the middle of a job."""
        from modules import shared

        found = _follow(shared, "sd_model.model.diffusion_model")
        return found if isinstance(found, nn.Module) else None

    def option(self, key: str, default: Any) -> Any:
        """A setting by its key."""
        from modules import shared

        return getattr(shared.opts, key, default)

    def comment(self, processing: Any, text: str) -> None:
        """Under the pictures and on the console."""
        print(f"[hnloader] {text}")
        comment = getattr(processing, "comment", None)
        if callable(comment):
            comment(text)

    def clear_built_in(self) -> None:
        """Empty the list that the host's attention applies."""
        from modules import shared

        getattr(shared, "loaded_hypernetworks", []).clear()

    def register_tag(self, activate: Callable[[Any, list[list[str]]], None], deactivate: Callable[[], None]) -> None:
        """The registration under this name that comes last wins."""
        from modules import extra_networks

        class HypernetTag(extra_networks.ExtraNetwork):  # type: ignore[misc, unused-ignore]
            def __init__(self) -> None:
                super().__init__("hypernet")

            def activate(self, p: Any, params_list: list[Any]) -> None:
                activate(p, [list(params.items) for params in params_list])

            def deactivate(self, p: Any) -> None:
                deactivate()

        extra_networks.register_extra_network(HypernetTag())

    def list_files_with(self, names: Callable[[], dict[str, str]]) -> Callable[[], None]:
        """The host makes its list anew with one function whenever it is refreshed."""
        from modules import shared
        from modules.hypernetworks import hypernetwork

        original = hypernetwork.list_hypernetworks

        def list_hypernetworks(path: str) -> dict[str, str]:
            return {**original(path), **names()}

        def undo() -> None:
            if hypernetwork.list_hypernetworks is list_hypernetworks:
                hypernetwork.list_hypernetworks = original

        hypernetwork.list_hypernetworks = list_hypernetworks
        shared.reload_hypernetworks()
        return undo

    def on_steps(self, step: Callable[[int, int], None]) -> None:
        """Every sampler calls the denoiser, and that calls back."""
        from modules import script_callbacks

        script_callbacks.on_cfg_denoiser(lambda params: step(params.sampling_step, params.total_sampling_steps))

    def on_events(
        self, *, before_ui: Callable[[], None], model_loaded: Callable[[], None], unloaded: Callable[[], None]
    ) -> None:
        """The built-in tag is registered before the page is built, so ours is registered then."""
        from modules import script_callbacks

        script_callbacks.on_before_ui(before_ui)
        script_callbacks.on_model_loaded(lambda model: model_loaded())
        script_callbacks.on_script_unloaded(unloaded)


def _follow(start: Any, path: str) -> Any:
    """An attribute of an attribute, None where one is missing."""
    for name in path.split("."):
        start = getattr(start, name, None)
    return start
