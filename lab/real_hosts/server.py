"""A checkout of a webui, started headless on the CPU with folders of its own, and asked through its API."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PATIENCE = 900

_COMMON = (
    "--skip-prepare-environment --skip-version-check --skip-torch-cuda-test --no-download-sd-model --no-hashing --api"
)
_CPU = {"Forge": "--always-cpu", "AUTOMATIC1111": "--use-cpu all --no-half --no-half-vae"}
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class HostError(Exception):
    """The host ended, or does not answer."""


@dataclass(frozen=True)
class HostImage:
    """`pixels` is (height, width, 3), 0 to 255. `infotext` is what the host writes into the file."""

    pixels: numpy.ndarray
    infotext: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostImage) and numpy.array_equal(self.pixels, other.pixels)

    def far(self, other: HostImage) -> tuple[int, float]:
        """Largest and mean difference of two images' values."""
        difference = numpy.abs(self.pixels.astype(int) - other.pixels)
        return int(difference.max()), float(difference.mean())


class Server:
    """One start of a host: `with Server(...) as host`. `data` is the host's folder of models and extensions."""

    def __init__(self, checkout: Path, python: Path, data: Path, arguments: Sequence[str] = ()) -> None:
        self.checkout, self.python, self.data, self.arguments = checkout, python, data, list(arguments)
        self.name = "Forge" if (checkout / "modules_forge").is_dir() else "AUTOMATIC1111"
        self.log = data / "host.log"
        self.seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(self.python), "launch.py", *_COMMON.split(), *_CPU[self.name].split()]
        # Forge serves its own scripts and styles from its folder of data alone.
        command += ["--data-dir", str(self.data), "--gradio-allowed-path", str(self.checkout)]
        command += ["--port", str(self.port), *self.arguments]
        offline = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "SD_WEBUI_RESTARTING": "1"}
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.checkout,
                env={**os.environ, **offline},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        self.seconds = time.monotonic() - begun
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self, after: int = 0) -> None:
        """Until it has started, by what its console says from the character `after` on, and API and probe answer.

        AUTOMATIC1111 does not start where it is asked something between serving its page and adding its API.
        """
        for _ in range(PATIENCE):
            assert self._process is not None
            if self._process.poll() is not None:
                raise HostError(f"it ended; its last lines are:\n{self.tail()}")
            if "Startup time: " not in self.console()[after:]:
                time.sleep(1)
                continue
            try:
                self.get("/sdapi/v1/options")
                self.get("/probe/state")
            except OSError:
                time.sleep(1)
            else:
                return
        raise HostError(f"no answer in {PATIENCE} s; its last lines are:\n{self.tail()}")

    def tail(self, lines: int = 25) -> str:
        """The end of what the host wrote on its console."""
        return "\n".join(self.console().splitlines()[-lines:])

    def console(self) -> str:
        """All that the host wrote on its console."""
        return self.log.read_text("utf-8", "replace")

    def get(self, path: str) -> Any:
        """The answer's JSON. Raises OSError."""
        with _open(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any = None) -> Any:
        """The answer's JSON. Raises OSError; urllib.error.HTTPError for an answer such as 500."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body or {} if body != [] else []).encode()
        )
        request.add_header("Content-Type", "application/json")
        with _open(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def state(self) -> dict[str, Any]:
        """What the probe sees."""
        found: dict[str, Any] = self.get("/probe/state")
        return found

    def images(self, prompt: str, verb: str = "txt2img", **fields: Any) -> list[HostImage]:
        """The images of a job of 3 steps at 64 x 64."""
        body = {
            "prompt": prompt,
            "negative_prompt": "gray",
            "seed": 5,
            "steps": 3,
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

    def image(self, prompt: str, **fields: Any) -> Image:
        """The first image."""
        return self.images(prompt, **fields)[0]


def make_data(folder: Path, checkpoints: Mapping[str, Path], *, extension: bool) -> Path:
    """A host's folder: the checkpoints by name, the probe, and this repository as an extension if wanted.

    A `.yaml` file beside a checkpoint comes along: AUTOMATIC1111 takes the model's configuration from it.
    """
    for name in ("Stable-diffusion", "hypernetworks", "Lora", "VAE"):
        (folder / "models" / name).mkdir(parents=True)
    for name, checkpoint in checkpoints.items():
        for file in (checkpoint, checkpoint.with_suffix(".yaml")):
            if file.exists():
                (folder / "models" / "Stable-diffusion" / f"{name}{file.suffix}").symlink_to(file.resolve())
    # What lies at the top of the page. Forge calls the list by another name, and always shows the checkpoint there.
    quick = {
        "quicksettings_list": ["sd_model_checkpoint", "sd_hypernetwork"],
        "quick_setting_list": ["sd_hypernetwork"],
    }
    (folder / "config.json").write_text(json.dumps(quick))
    probe = folder / "extensions" / "probe" / "scripts"
    probe.mkdir(parents=True)
    shutil.copy(HERE / "probe.py", probe / "probe.py")
    if extension:
        copy_repository(folder / "extensions" / "hnloader")
    return folder


def copy_repository(target: Path) -> None:
    """What a clone of this repository has and the extension uses."""
    target.mkdir()
    for name in ("scripts", "extension", "hnloader", "javascript", "install.py", "style.css"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target / name)
