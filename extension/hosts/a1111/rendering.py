"""Images and contexts by AUTOMATIC1111's model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modules import (
    call_queue,
    devices,
    paths,
    processing,
    prompt_parser,
    script_callbacks,
    scripts,
    sd_models,
    sd_samplers,
    shared,
)
from torch import Tensor

from hnloader.attention.layout import family_of_sites, find_sites
from hnloader.families import all_families

from ..protocol import KeepsModels, Rendered, RunsModel

if TYPE_CHECKING:
    from hnloader.ui import ImageRequest

_POLL = 0.1  # seconds between two calls of `waiting`
# Setting 'Add hypernetwork to prompt', and its value for nothing.
QUICK_SETTING, NO_HYPERNETWORK = "sd_hypernetwork", "None"


class Rendering(RunsModel, KeepsModels):
    """The capabilities that use the webui's model."""

    def output(self) -> Path:
        folders = (getattr(shared.opts, key, "") for key in ("outdir_grids", "outdir_txt2img_grids"))
        return Path(next(filter(None, folders), "outputs"))

    def checkpoint(self) -> Path | None:
        try:
            chosen = sd_models.select_checkpoint()
        except FileNotFoundError:
            return None
        return None if chosen is None else Path(chosen.filename)

    def lora_folder(self) -> Path:
        return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")

    def embeddings_folder(self) -> Path:
        return Path(getattr(shared.cmd_opts, "embeddings_dir", None) or Path(paths.data_path) / "embeddings")

    def quick_setting(self) -> str | None:
        name = str(getattr(shared.opts, QUICK_SETTING, None) or NO_HYPERNETWORK)
        return None if name == NO_HYPERNETWORK else name

    def samplers(self) -> Sequence[str]:
        return tuple(sd_samplers.visible_sampler_names())

    @contextmanager
    def turn(self, waiting: Callable[[], None]) -> Iterator[None]:
        ours, over = threading.Event(), threading.Event()

        def hold() -> None:
            with call_queue.queue_lock:
                ours.set()
                over.wait()

        # The webui's lock cannot be given up while waiting, so a thread waits; it releases the lock at once if we left.
        holder = threading.Thread(target=hold, name="hnloader's turn", daemon=True)
        holder.start()
        try:
            while not ours.wait(_POLL):
                waiting()
            yield
        finally:
            over.set()
            if ours.is_set():
                holder.join()

    def render(self, request: ImageRequest) -> Rendered:
        state = shared.state
        state.begin(job="hypernetworks")
        try:
            with closing(processing.StableDiffusionProcessingTxt2Img(**self._fields(request))) as job:
                job.scripts = scripts.ScriptRunner()  # an empty one: reForge reads the scripts of each job
                images = processing.process_images(job).images
            complete = not (state.interrupted or state.skipped or getattr(state, "stopping_generation", False))
            return Rendered(images[0] if images else None, complete, job)
        finally:
            state.interrupted = state.skipped = state.stopping_generation = False
            state.end()
            if getattr(shared, "total_tqdm", None) is not None:
                shared.total_tqdm.clear()

    def _fields(self, request: ImageRequest) -> dict[str, Any]:
        side, output = self._own_size(), str(self.output())
        fields = {
            "prompt": request.prompt,
            "negative_prompt": request.negative,
            "seed": request.seed,
            "steps": request.steps,
            "cfg_scale": request.guidance,
            "width": request.width or side,
            "height": request.height or side,
            "sampler_name": request.sampler or next(iter(self.samplers()), None),
            "outpath_samples": output,
            "outpath_grids": output,
            "do_not_save_samples": True,
            "do_not_save_grid": True,
            # 'Add hypernetwork to prompt' would act in every image of a comparison.
            "override_settings": {} if self.quick_setting() is None else {QUICK_SETTING: NO_HYPERNETWORK},
        }
        if hasattr(processing.StableDiffusionProcessingTxt2Img, "scheduler"):  # since 1.9
            fields["scheduler"] = "Automatic"
        return fields

    def interrupt(self) -> None:
        shared.state.interrupt()

    def on_step(self, step: Callable[[int, int], None]) -> None:
        """Listen to the denoiser, which every sampler calls."""
        script_callbacks.on_cfg_denoiser(lambda params: step(params.sampling_step, params.total_sampling_steps))

    def load(self) -> None:
        self.model()

    def model(self) -> Any:
        """Return the webui's model, loaded as for a job."""
        if shared.sd_model is not None:  # the attribute loads the first model
            sd_models.reload_model_weights()
        return shared.sd_model

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Use the webui's prompt parser. SDXL has more conditions than the context."""
        side = self._own_size()
        given = prompt_parser.SdConditioning(texts, width=side, height=side)
        with torch.no_grad(), devices.autocast():
            schedules = prompt_parser.get_learned_conditioning(self.model(), given, 1)
        found = [schedule[0].cond for schedule in schedules]
        return torch.stack([cond["crossattn"] if isinstance(cond, dict) else cond for cond in found])

    def _own_size(self) -> int:
        """Return the side in pixels of the images that the model was trained on."""
        self.model()
        unet = self.unet()
        family = None if unet is None else family_of_sites(find_sites(unet))
        return (family or all_families()[0]).resolution


def follow(start: Any, path: str) -> Any:
    """Return an attribute of an attribute; None where one is missing."""
    for name in path.split("."):
        start = getattr(start, name, None)
    return start
