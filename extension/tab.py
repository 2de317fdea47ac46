"""Tab 'Hypernetwork tools' with the pages of `hnloader ui`: Library, Convert, Compare and Train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hnloader.errors import HypernetworkError
from hnloader.ui import Host, TagButton, TrainingPlace, build

from .core import Extension
from .generator import WebuiGenerator
from .hosts.protocol import KeepsModels, ListsFiles, RendersImages, RunsModel, ServesApi, ShowsPanel, ShowsTab
from .webui_model import WebuiDenoiser

TITLE = "Hypernetwork tools"
PANEL_TITLE = "Apply hypernetworks"


def register(extension: Extension, host: ShowsTab) -> None:
    """Show the tab whenever the webui builds its page."""
    generator = WebuiGenerator(host, extension.library) if isinstance(host, RendersImages) else None
    host.add_tab(TITLE, "hnloader", lambda: build(page_host(extension, host, generator)))


def page_host(extension: Extension, tab: ShowsTab, generator: WebuiGenerator | None) -> Host:
    """Describe the webui to the pages."""
    host = extension.host
    more: dict[str, Any] = {}
    if isinstance(host, ListsFiles):
        more["on_change"] = host.refresh_files
    if isinstance(host, KeepsModels):
        more |= {"training": _training_place(extension, tab, host), "loras": host.lora_folder}
        if generator is not None and isinstance(host, RunsModel):
            more |= {"lora_base": _lora_base(host, lambda: WebuiDenoiser(host, generator))}
    return Host(
        folders=host.folders,
        output=tab.output,
        generator=generator,
        converted=lambda: host.folders()[0] / "converted",
        tag_button=_tag_button(tab.tag_button, with_panel=isinstance(host, ShowsPanel)),
        catalog=extension.library.catalog,
        **more,
    )


def _tag_button(button: TagButton | None, *, with_panel: bool) -> TagButton | None:
    """Name the other places where hypernetworks are applied."""
    if button is None:
        return None
    hint = f"To apply a file, select it and press {button.label}, which adds its tag to the prompt."
    return replace(button, hint=hint + (f" Or add it to {PANEL_TITLE} below the prompt." if with_panel else ""))


def _lora_base(files: KeepsModels, model: Callable[[], WebuiDenoiser]) -> Callable[[], dict[str, Any]]:
    def base() -> dict[str, Any]:
        checkpoint = files.checkpoint()
        if checkpoint is None:
            raise HypernetworkError("Converting to LoRA requires a checkpoint. Select one at the top of the webui.")
        return {"source": checkpoint, "program": model()}

    return base


def _training_place(extension: Extension, tab: ShowsTab, files: KeepsModels) -> TrainingPlace:
    """Keep training runs beside the webui's grids, and offer the selected checkpoint."""
    host = extension.host

    def models() -> list[str]:
        checkpoint = files.checkpoint()
        return [] if checkpoint is None else [str(checkpoint)]

    return TrainingPlace(
        folder=lambda: tab.output() / "trainings",
        library=lambda: host.folders()[0],
        models=models,
        embeddings=files.embeddings_folder,
        may_name_python=isinstance(host, ServesApi) and host.access().local,
    )
