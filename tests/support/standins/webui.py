"""Starting and driving a stand-in host."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tests.support.standins.unets import make_sd_model, make_unet

ROOT = Path(__file__).parents[3]
_OURS = ("modules", "modules_forge", "backend", "ldm_patched", "networks", "hnloader_webui")


@dataclass(frozen=True)
class Family:
    """Facts of a host.

    Attributes:
        version: That of Forge and its forks; "" for AUTOMATIC1111.
        layers: Module of the layers of Forge and its forks.
        hypernetworks: Whether the host has a folder, a list, a page of cards and a tag for them.
        quick_setting: Whether it has the setting 'Add hypernetwork to prompt'.
        needs_scripts: Whether each job must have a runner of scripts.
    """

    version: str = ""
    layers: str = ""
    hypernetworks: bool = True
    quick_setting: bool = True
    needs_scripts: bool = False


FAMILIES = {
    "a1111": Family(),
    "forge": Family("f2.0.1v1.10.1", "backend.operations"),
    "reforge": Family("1.0.0v2-v1.10.1RC", "ldm_patched.modules.ops", needs_scripts=True),
    "classic": Family("classic", "ldm_patched.modules.ops", hypernetworks=False, quick_setting=False),
    "ersatz": Family("f2.ersatz", "backend.operations", quick_setting=False),
    "neo": Family("neo", "backend.operations", hypernetworks=False, quick_setting=False),
}


class Webui:
    """A running host; `part` returns its modules."""

    def __init__(self, folder: Path, family: str = "a1111", storage: str = "float32") -> None:
        self.folder, self.family, self.storage = folder, FAMILIES[family], storage
        self.forge = bool(self.family.version)
        for name in ("extensions", "models", "output"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("paths", "paths_internal"):
            paths = self.part(name)
            paths.script_path = paths.data_path = str(folder)
            paths.models_path, paths.extensions_dir = str(folder / "models"), str(folder / "extensions")
        self.hypernetworks.mkdir(parents=True, exist_ok=True)
        if self.family.hypernetworks:
            self.shared.cmd_opts.hypernetwork_dir = str(self.hypernetworks)
        else:
            self._lack_hypernetworks()
        self.part("processing").settings.needs_scripts = self.family.needs_scripts
        if not self.family.quick_setting:
            del self.shared.opts.data_labels["sd_hypernetwork"]
        for option in ("outdir_samples", "outdir_grids"):
            setattr(self.shared.opts, option, str(folder / "output"))
        self.sd_models = self.part("sd_models")
        if self.family.layers != "backend.operations":
            del self.sd_models.forge_model_reload
        for number, name in enumerate(("first", "second")):
            self.sd_models.checkpoints[name] = lambda name=name, number=number: self._make(name, number)
        self.sd_models.settings.chosen = "first"

    def _lack_hypernetworks(self) -> None:
        self.hypernetworks.rmdir()
        sys.modules["modules.hypernetworks"] = None
        del self.shared.cmd_opts.hypernetwork_dir
        for name in ("hypernetworks", "reload_hypernetworks"):
            delattr(self.shared, name)

    def _make(self, name: str, seed: int) -> Any:
        if not self.forge:
            model = make_sd_model(name, make_unet(seed, built_in=self.shared.loaded_hypernetworks))
            self.lora.assign_network_names_to_compvis_modules(model)
            return model
        layers = importlib.import_module(self.family.layers)
        if self.family.layers != "backend.operations":
            linear = layers.disable_weight_init.Linear
        elif self.storage == "int8":
            linear = layers.ForgeOperationsBNB4bits.Linear
        else:
            linear = partial(layers.ForgeOperations.Linear, storage=self.storage)
        with torch.inference_mode():
            return make_sd_model(name, make_unet(seed, linear), forge=True)

    @property
    def lora(self) -> ModuleType:
        """AUTOMATIC1111's Lora extension."""
        return importlib.import_module("networks")

    @staticmethod
    def part(name: str) -> ModuleType:
        """A module of the host."""
        return importlib.import_module(f"modules.{name}")

    @property
    def shared(self) -> ModuleType:
        return self.part("shared")

    @property
    def reports(self) -> list[tuple[str, BaseException | None]]:
        """Errors that the host swallowed."""
        return self.part("errors").reports

    @property
    def unet(self) -> nn.Module:
        """The UNet of the checkpoint that is loaded."""
        return self.sd_models.unet_of(self.shared.sd_model)

    @property
    def hypernetworks(self) -> Path:
        """The folder of the host's hypernetworks."""
        return self.folder / "models" / "hypernetworks"

    @property
    def hooks(self) -> int:
        """The number of hooks on the UNet."""
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in self.unet.modules())

    @property
    def cards_page(self) -> Any:
        """The page of cards for hypernetworks."""
        (page,) = (page for page in self.part("ui_extra_networks").extra_pages if page.title == "Hypernetworks")
        return page

    @property
    def made(self) -> list[Any]:
        """The jobs that extensions started."""
        return self.part("processing").made

    def idle(self) -> bool:
        """Tell if a job has left nothing: the lock is free, no hooks, no interruption."""
        free = self.part("call_queue").queue_lock.comes_to_rest()
        return free and self.hooks == 0 and not self.shared.state.interrupted and not self.shared.state.job

    def client(self, base: str = "http://127.0.0.1:7860", **flags: object) -> Any:
        """A client of an app that the webui serves, started with these flags."""
        from fastapi import FastAPI
        from fastapi.testclient import TestClient

        vars(self.shared.cmd_opts).update(flags)
        app = FastAPI()
        self.part("script_callbacks").run("app_started", None, app)
        return TestClient(app, base_url=base)

    def install(self, name: str = "hnloader") -> Path:
        """Install this repository's extension in a folder."""
        copy = self.folder / "extensions" / name
        copy.mkdir()
        for part in ("scripts", "extension", "hnloader"):
            (copy / part).symlink_to(ROOT / part)
        return copy

    def add_script(self, name: str, text: str, **modules: str) -> None:
        """Install another extension with one script, and packages by name and text."""
        folder = self.folder / "extensions" / name
        (folder / "scripts").mkdir(parents=True)
        (folder / "scripts" / "main.py").write_text(text)
        for module, content in modules.items():
            (folder / module).mkdir()
            (folder / module / "__init__.py").write_text(content)

    def start(self) -> None:
        """Load the scripts and the model, and serve the page."""
        self._load()
        self.sd_models.reload_model_weights()
        self._show()

    def reload(self) -> None:
        """'Reload UI': keep the model and run the scripts again."""
        callbacks = self.part("script_callbacks")
        callbacks.run("before_reload")
        callbacks.run("script_unloaded")
        self._load()
        self._show()

    def _load(self) -> None:
        self.part("scripts").load_scripts(forge=self.forge)
        pages, networks = self.part("ui_extra_networks"), self.part("extra_networks")
        pages.initialize()
        pages.register_default_pages(forge=self.forge)
        networks.initialize()
        if self.family.hypernetworks:
            self.shared.reload_hypernetworks()
            networks.register_default_extra_networks()

    def _show(self) -> None:
        callbacks = self.part("script_callbacks")
        callbacks.run("before_ui")
        callbacks.run("ui_settings")

    def tabs(self) -> list[tuple[Any, str, str]]:
        """Return the tabs of extensions, which the host collects whenever it builds its page."""
        return self.part("script_callbacks").run("ui_tabs")

    def switch(self, checkpoint: str) -> None:
        """Select another checkpoint in the UI."""
        self.sd_models.settings.chosen = checkpoint
        self.sd_models.reload_model_weights()

    def generate(self, prompt: str | list[str], **fields: Any) -> Any:
        """Run a job; `modules.processing.StableDiffusionProcessing` has the fields."""
        processing = self.part("processing")
        self.shared.state.__init__()
        with closing(processing.StableDiffusionProcessing(prompt, **fields)) as p:
            return processing.process_images(p)


@contextmanager
def running(folder: Path, family: str = "a1111", storage: str = "float32") -> Iterator[Webui]:
    """Yield a host in an empty folder, not started yet, and remove it from this process afterwards."""
    path, modules = list(sys.path), dict(sys.modules)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        webui = Webui(folder, family, storage)
        if webui.forge:
            importlib.import_module("modules_forge.forge_version").version = webui.family.version
            if webui.family.layers == "ldm_patched.modules.ops":
                sys.modules["modules_forge.main_entry"] = None
        else:
            sys.modules["modules_forge"] = None
            webui.lora.patch()
        yield webui
    finally:
        if "networks" in sys.modules:
            sys.modules["networks"].undo()
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            if name.partition(".")[0] in _OURS:
                del sys.modules[name]
