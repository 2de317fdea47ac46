"""Start a checkout of a webui on the CPU with separate folders, and call its API."""

from __future__ import annotations

import base64
import io
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from extension.hosts.forge.webui_names import webui_name

from .host_process import PATIENCE, HostProcess, open_url

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

_COMMON = (
    "--skip-prepare-environment --skip-version-check --skip-torch-cuda-test --no-download-sd-model --no-hashing --api"
)
_CPU = {True: "--always-cpu", False: "--use-cpu all --no-half --no-half-vae"}  # Forge and its forks; others


@dataclass(frozen=True)
class HostImage:
    """An image and its generation parameters. `pixels` has the shape [height, width, 3] and values from 0 to 255."""

    pixels: numpy.ndarray
    infotext: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostImage) and numpy.array_equal(self.pixels, other.pixels)

    def far(self, other: HostImage) -> tuple[int, float]:
        """Return the largest and the mean difference of two images."""
        difference = numpy.abs(self.pixels.astype(int) - other.pixels)
        return int(difference.max()), float(difference.mean())


@dataclass(frozen=True)
class Checkout:
    """A webui's folder and its Python."""

    folder: Path
    python: Path

    @property
    def is_forge(self) -> bool:
        """Return True for Forge and its forks."""
        return (self.folder / "modules_forge").is_dir()


class Server(HostProcess):
    """One start of a host: `with Server(...) as host`. `data` is its folder with models and extensions."""

    def __init__(self, checkout: Checkout, data: Path, arguments: Sequence[str] = ()) -> None:
        self.checkout, self.python, self.data, self.arguments = checkout.folder, checkout.python, data, list(arguments)
        self.is_forge = checkout.is_forge
        self.name = _name(checkout.folder) if self.is_forge else "AUTOMATIC1111"
        super().__init__("The host", data)

    def __enter__(self) -> Server:
        # AUTOMATIC1111 refuses --no-half together with --precision half.
        cpu = "--use-cpu all" if "--precision" in self.arguments else _CPU[self.is_forge]
        command = [str(self.python), "launch.py", *_COMMON.split(), *cpu.split()]
        # Forge serves scripts and styles only from its data folder.
        command += ["--data-dir", str(self.data), "--gradio-allowed-path", str(self.checkout)]
        command += ["--port", self.take_port(), *self.arguments]
        environment = {"GRADIO_ANALYTICS_ENABLED": "False", "SD_WEBUI_RESTARTING": "1"}
        environment["IGNORE_CMD_ARGS_ERRORS"] = "1"  # some forks lack some of these arguments
        self.log.unlink(missing_ok=True)  # `answers` looks for a line of this start
        self.start(command, self.checkout, environment)
        return self

    def answers(self, after: int = 0) -> bool:
        """Return True once the console reports the start, counted from the character `after`, and API and probe answer.

        A request before that, between page and API, keeps AUTOMATIC1111 from starting.
        """
        if "Startup time: " not in self.console()[after:]:
            return False
        try:
            self.get("/sdapi/v1/options")
            self.get("/probe/state")
        except OSError:
            return False
        return True

    def get(self, path: str) -> Any:
        """Return the JSON response. Raises OSError."""
        with open_url(self.address + path, timeout=PATIENCE) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON response. Raises OSError, and urllib.error.HTTPError for a status such as 500."""
        request = urllib.request.Request(self.address + path, json.dumps(body or {} if body != [] else []).encode())
        request.add_header("Content-Type", "application/json")
        with open_url(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def state(self) -> dict[str, Any]:
        """Return the state that the probe reports."""
        found: dict[str, Any] = self.get("/probe/state")
        return found

    def accepts(self, field: str) -> bool:
        """Return whether requests for images can have this field."""
        schemas = self.get("/openapi.json")["components"]["schemas"]
        return field in schemas["StableDiffusionProcessingTxt2Img"]["properties"]

    def images(self, prompt: str, verb: str = "txt2img", **fields: Any) -> list[HostImage]:
        """Generate images of 64 x 64 in 2 steps."""
        body = {
            "prompt": prompt,
            "negative_prompt": "gray",
            "seed": 5,
            "steps": 2,
            "width": 64,
            "height": 64,
            "cfg_scale": 4,
            "sampler_name": "Euler",
            "do_not_save_samples": True,
            "do_not_save_grid": True,
            **fields,
        }
        answer = self.post(f"/sdapi/v1/{verb}", body)
        texts = json.loads(answer["info"])["infotexts"]
        images = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in answer["images"]]
        return [HostImage(numpy.asarray(image), text) for image, text in zip(images, texts, strict=False)]

    def image(self, prompt: str, **fields: Any) -> HostImage:
        """Generate images and return the first one."""
        return self.images(prompt, **fields)[0]


def _name(checkout: Path) -> str:
    text = (checkout / "modules_forge" / "forge_version.py").read_text("utf-8")
    return webui_name(text.partition("=")[2].strip(" \n'\""))


def make_data(folder: Path, checkpoints: Mapping[str, Path], others: Sequence[Path], *, extension: bool) -> Path:
    """Make a data folder with checkpoints by name, the probe, other extensions, and optionally this repository as one.

    A `.yaml` file beside a checkpoint is included; AUTOMATIC1111 reads the model's configuration from it.
    """
    for name in ("Stable-diffusion", "hypernetworks", "Lora", "VAE"):
        (folder / "models" / name).mkdir(parents=True)
    for name, checkpoint in checkpoints.items():
        for file in (checkpoint, checkpoint.with_suffix(".yaml")):
            if file.exists():
                (folder / "models" / "Stable-diffusion" / f"{name}{file.suffix}").symlink_to(file.resolve())
    settings = {
        # Settings at the top of the page. Forge uses another name, and always shows the checkpoint.
        "quicksettings_list": ["sd_model_checkpoint", "sd_hypernetwork"],
        "quick_setting_list": ["sd_hypernetwork"],
        "sd_model_checkpoint": "first.safetensors",  # some forks choose none
        "show_progress_type": "Approx cheap",  # needs no download
        "live_previews_enable": False,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    probe = folder / "extensions" / "probe" / "scripts"
    probe.mkdir(parents=True)
    shutil.copy(HERE / "probe.py", probe / "probe.py")
    for other in others:
        shutil.copytree(other, folder / "extensions" / other.name, ignore=shutil.ignore_patterns(".git"))
    if extension:
        copy_repository(folder / "extensions" / "hnloader")
    return folder


def copy_repository(target: Path) -> None:
    """Copy the parts of this repository that the extension uses."""
    target.mkdir()
    for name in ("scripts", "extension", "hnloader", "javascript", "install.py", "style.css"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target / name)
