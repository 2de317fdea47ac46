"""The tab 'Hypernetworks': Library, Convert, Compare and Train, the same pages as `hnloader ui`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError
from hnloader.ui import Host, TagButton, TrainingPlace, build
from hnloader.ui.index import cache_folder

from .generator import WebuiGenerator
from .lora import WebuiDenoiser
from .runtime import Extension

if TYPE_CHECKING:
    from .host import WebuiHost

TITLE = "Hypernetworks"

# The webuis' own function turns to the tab of txt2img.
_SEND = """(tag) => {
    const prompt = document.querySelector('#txt2img_prompt textarea');
    if (!prompt) return;
    prompt.value = (prompt.value.trimEnd() + ' ' + tag).trimStart();
    prompt.dispatchEvent(new Event('input', {bubbles: true}));
    if (window.switch_to_txt2img) window.switch_to_txt2img();
}"""


def register(extension: Extension) -> None:
    """Have the host show the tab whenever it builds its page."""
    from modules import script_callbacks

    generator = WebuiGenerator(extension)
    script_callbacks.on_ui_tabs(lambda: tabs(extension, generator))


def tabs(extension: Extension, generator: WebuiGenerator) -> list[tuple[Any, str, str]]:
    """The page, its title and its id, as the host takes them. Where it can't be built, a line says why."""
    try:
        import gradio

        with gradio.Blocks(analytics_enabled=False) as page:
            build(host_for_pages(extension, generator))
    except Exception as error:
        print(f"[hnloader] Without the tab '{TITLE}': {type(error).__name__}: {error}")
        return []
    return [(page, TITLE, "hnloader")]


def host_for_pages(extension: Extension, generator: WebuiGenerator) -> Host:
    """What the pages need to know of the webui."""
    host = extension.host

    def lora_base() -> dict[str, Any]:
        checkpoint = host.checkpoint()
        if checkpoint is None:
            raise HypernetworkError("A LoRA is made for a checkpoint, and none is chosen. Choose one at the top.")
        return {"source": checkpoint, "program": WebuiDenoiser(extension, generator)}

    def converted() -> Path:
        return host.folders()[0] / "converted"

    return Host(
        folders=host.folders,
        output=host.output,
        generator=generator,
        converted=converted,
        loras=host.lora_folder,
        lora_base=lora_base,
        training=training_place(host),
        tag_button=TagButton("Send to txt2img", _SEND),
        cache=cache_folder(),
        on_change=host.refresh,
    )


def training_place(host: WebuiHost) -> TrainingPlace:
    """Where trainings lie: beside the webui's comparisons, and what comes out in the webui's own folders."""

    def models() -> list[str]:
        checkpoint = host.checkpoint()
        return [] if checkpoint is None else [str(checkpoint)]

    return TrainingPlace(
        folder=lambda: host.output() / "trainings",
        library=lambda: host.folders()[0],
        models=models,
        embeddings=host.embeddings_folder,
        may_name_python=host.access().local,
    )
