"""AUTOMATIC1111's webui, 1.7 to 1.10."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hnloader.families import family_named
from hnloader.texts import well_formed

from ..host import Access, Rendered  # noqa: TID252 - the package has another name in a webui

if TYPE_CHECKING:
    from hnloader.ui import ImageRequest

# Seconds between two calls of `waiting`.
_PATIENCE = 0.1
# The key of the setting 'Add hypernetwork to prompt', and its value for nothing.
_QUICK, _NOTHING = "sd_hypernetwork", "None"


class Automatic1111:
    """See `WebuiHost`. The host's modules are imported in the methods: they exist in its process only."""

    name = "AUTOMATIC1111"

    def folders(self) -> list[Path]:
        """The host's folder, then those of the setting."""
        from modules import shared

        more = str(self.option("hnloader_folders", "")).splitlines()
        return [Path(shared.cmd_opts.hypernetwork_dir), *(Path(line.strip()) for line in more if line.strip())]

    def output(self) -> Path:
        """Where the grids of txt2img go."""
        return Path(self.option("outdir_grids", "") or self.option("outdir_txt2img_grids", "") or "outputs")

    def lora_folder(self) -> Path:
        """The folder of `--lora-dir`."""
        from modules import paths, shared

        return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")

    def embeddings_folder(self) -> Path:
        """The folder of `--embeddings-dir`."""
        from modules import paths, shared

        return Path(getattr(shared.cmd_opts, "embeddings_dir", None) or Path(paths.data_path) / "embeddings")

    def checkpoint(self) -> Path | None:
        """The one of the menu."""
        from modules import sd_models

        try:
            chosen = sd_models.select_checkpoint()
        except FileNotFoundError:
            return None
        return None if chosen is None else Path(chosen.filename)

    def unet(self, processing: Any = None) -> nn.Module | None:
        """The UNet of the model in use; a refiner replaces it in the middle of a job."""
        from modules import shared

        found = _follow(shared, "sd_model.model.diffusion_model")
        return found if isinstance(found, nn.Module) else None

    def option(self, key: str, default: Any) -> Any:
        """A setting by its key."""
        from modules import shared

        return getattr(shared.opts, key, default)

    def notify(self, text: str) -> None:
        """On the console, and at a corner of the page where it is asked from there."""
        text = well_formed(text)
        print(f"[hnloader] {text}")
        import gradio

        gradio.Warning(html.escape(text, quote=False))  # it is shown as HTML

    def quick_setting(self) -> str | None:
        """Its menu has the entry 'None'."""
        name = str(self.option(_QUICK, None) or _NOTHING)
        return None if name == _NOTHING else name

    def comment(self, processing: Any, text: str) -> None:
        """Under the images and on the console."""
        text = well_formed(text)
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
            found = {**original(path), **names()}
            # The host's page and its API send names and paths as UTF-8, and nothing at all where one is not.
            return {name: path for name, path in found.items() if well_formed(name + path) == name + path}

        def undo() -> None:
            if hypernetwork.list_hypernetworks is list_hypernetworks:
                hypernetwork.list_hypernetworks = original

        hypernetwork.list_hypernetworks = list_hypernetworks
        shared.reload_hypernetworks()
        return undo

    def refresh(self) -> None:
        """Through `list_files_with`."""
        from modules import shared

        shared.reload_hypernetworks()

    def samplers(self) -> Sequence[str]:
        """Those of the page's menu."""
        from modules import sd_samplers

        return tuple(sd_samplers.visible_sampler_names())

    @contextmanager
    def turn(self, waiting: Callable[[], None]) -> Iterator[None]:
        """In line with the jobs of the page and of the API, in the order in which they came."""
        from modules import call_queue

        ours, over = threading.Event(), threading.Event()

        def hold() -> None:
            with call_queue.queue_lock:
                ours.set()
                over.wait()

        # Nobody can leave the line of the host's lock; a thread that stands in it for us can let others pass at once.
        holder = threading.Thread(target=hold, name="hnloader's turn", daemon=True)
        holder.start()
        try:
            while not ours.wait(_PATIENCE):
                waiting()
            yield
        finally:
            over.set()
            if ours.is_set():
                holder.join()

    def render(self, request: ImageRequest) -> Rendered:
        """By the host's own processing, as its API does it."""
        from modules import processing, shared

        state = shared.state
        state.begin(job="hypernetworks")
        try:
            side = self._own_size()
            fields = {
                "prompt": request.prompt,
                "negative_prompt": request.negative,
                "seed": request.seed,
                "steps": request.steps,
                "cfg_scale": request.guidance,
                "width": request.width or side,
                "height": request.height or side,
                "sampler_name": request.sampler or next(iter(self.samplers()), None),
                "outpath_samples": str(self.output()),
                "outpath_grids": str(self.output()),
                "do_not_save_samples": True,
                "do_not_save_grid": True,
                "override_settings": self._without_quick_setting(),
            }
            job = processing.StableDiffusionProcessingTxt2Img
            if hasattr(job, "scheduler"):  # 1.9 on
                fields["scheduler"] = "Automatic"
            with closing(job(**fields)) as p:
                images = processing.process_images(p).images
            complete = not (state.interrupted or state.skipped or getattr(state, "stopping_generation", False))
            return Rendered(images[0] if images else None, complete, p)
        finally:
            state.interrupted = state.skipped = state.stopping_generation = False
            state.end()
            if getattr(shared, "total_tqdm", None) is not None:
                shared.total_tqdm.clear()

    def interrupt(self) -> None:
        """As its button does."""
        from modules import shared

        shared.state.interrupt()

    def load(self) -> None:
        """As a job does before it begins."""
        self._model()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """By the host's own reading of prompts; SDXL has more than the contexts."""
        from modules import devices, prompt_parser

        side = self._own_size()
        given = prompt_parser.SdConditioning(texts, width=side, height=side)
        with torch.no_grad(), devices.autocast():
            schedules = prompt_parser.get_learned_conditioning(self._model(), given, 1)
        found = [schedule[0].cond for schedule in schedules]
        return torch.stack([cond["crossattn"] if isinstance(cond, dict) else cond for cond in found])

    def _own_size(self) -> int:
        """Pixels of the side of a square that the model was trained on."""
        model = self._model()
        name = "SDXL" if getattr(model, "is_sdxl", False) else "SD 2" if getattr(model, "is_sd2", False) else "SD 1"
        family = family_named(name)
        return family.resolution if family else 512

    def _model(self) -> Any:
        """The model, loaded if it is not yet."""
        from modules import sd_models, shared

        if shared.sd_model is not None:  # loads one at first
            sd_models.reload_model_weights()
        return shared.sd_model

    def _without_quick_setting(self) -> dict[str, str]:
        """'Add hypernetwork to prompt' would act beside what is compared."""
        return {} if self.quick_setting() is None else {_QUICK: _NOTHING}

    def on_steps(self, step: Callable[[int, int], None]) -> None:
        """Every sampler calls the denoiser, and that calls back."""
        from modules import script_callbacks

        script_callbacks.on_cfg_denoiser(lambda params: step(params.sampling_step, params.total_sampling_steps))

    def access(self) -> Access:
        """By the command line. The host's own API ignores the page's login; ours asks for either."""
        from modules import shared

        flags = shared.cmd_opts
        open_to_others = any(getattr(flags, name, None) for name in ("listen", "server_name", "share", "ngrok"))
        enabled = bool(getattr(flags, "api", False) or getattr(flags, "nowebui", False))
        return Access(enabled, _accounts(flags), not open_to_others)

    def on_app(self, serve: Callable[[Any], None]) -> None:
        """With the page or, by `--nowebui`, without it."""
        from modules import script_callbacks

        script_callbacks.on_app_started(lambda page, app: serve(app))

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


def _accounts(flags: Any) -> dict[str, str]:
    """Those of `--api-auth`, `--gradio-auth` and `--gradio-auth-path`, each `user:password`, separated by commas."""
    texts = [str(getattr(flags, name, None) or "") for name in ("api_auth", "gradio_auth")]
    path = getattr(flags, "gradio_auth_path", None)
    if path:
        texts += Path(path).read_text(encoding="utf-8").splitlines()
    pairs = (part.strip().partition(":") for text in texts for part in text.split(","))
    return {user: password for user, _, password in pairs if user}
