"""Start a checkout of ComfyUI on the CPU with separate folders, and run workflows through its API."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors.torch import load

from .host_process import PATIENCE, HostProcess, open_url

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# What ComfyUI needs of this repository, with other folders that a clone has.
_PARTS = (
    "__init__.py",
    "node_pack",
    "hnloader",
    "example_workflows",
    "examples",
    "pyproject.toml",
    "scripts",
    "extension",
    "tests/support",
)

# A workflow as the API takes it: inputs are values, or [node, output].
Workflow = dict[str, dict[str, Any]]


class RefusedError(Exception):
    """ComfyUI did not run the workflow. The message is what its page shows."""


class ComfyUI(HostProcess):
    """One start of ComfyUI: `with ComfyUI(...) as host`. `data` is its base directory."""

    def __init__(self, checkout: Path, python: Path, data: Path, arguments: Sequence[str] = ()) -> None:
        self.checkout, self.python, self.data, self.arguments = checkout, python, data, list(arguments)
        super().__init__("ComfyUI", data)

    def __enter__(self) -> ComfyUI:
        command = [str(self.python), "main.py", "--cpu", "--base-directory", str(self.data)]
        command += ["--database-url", "sqlite:///:memory:"]
        command += ["--port", self.take_port(), "--disable-auto-launch", *self.arguments]
        self.start(command, self.checkout, {"PIP_NO_INDEX": "1"})  # a fork installs packages by itself
        return self

    def answers(self, after: int = 0) -> bool:
        """Return True once the API answers."""
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """Return the body of a response. Raises OSError."""
        with open_url(self.address + path, timeout=PATIENCE) as answer:
            body: bytes = answer.read()
            return body

    def get(self, path: str) -> Any:
        """Return a JSON response. Raises OSError."""
        return json.loads(self.read(path))

    def post(self, path: str, body: Any) -> Any:
        """Return a JSON response, None for an empty one. Raises RefusedError with what the page would show."""
        request = urllib.request.Request(self.address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with open_url(request, timeout=PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RefusedError(error.read().decode("utf-8", "replace")) from None
        return json.loads(text) if text else None

    def queue(self, workflow: Workflow) -> str:
        """Queue a workflow and return its id. Raises RefusedError."""
        queued: str = self.post("/prompt", {"prompt": workflow})["prompt_id"]
        return queued

    def outputs(self, workflow: Workflow) -> dict[str, Any]:
        """Run a workflow and return what its output nodes report. Raises RefusedError."""
        return self.finished(self.queue(workflow))

    def finished(self, queued: str) -> dict[str, Any]:
        """Wait for a queued workflow and return its outputs. Raises RefusedError."""
        for _ in range(PATIENCE * 5):
            history = self.get(f"/history/{queued}")
            if queued in history:
                break
            time.sleep(0.2)
        else:
            raise RuntimeError(f"A workflow did not finish within {PATIENCE} s.")
        for event, details in history[queued]["status"]["messages"]:
            if event == "execution_error":
                raise RefusedError(f"{details['exception_type']}: {details['exception_message']}")
            if event == "execution_interrupted":
                raise RefusedError("Interrupted.")
        outputs: dict[str, Any] = history[queued]["outputs"]
        return outputs

    def saved(self, entry: dict[str, str]) -> bytes:
        """Return a file that an output node saved."""
        return self.read("/view?" + urllib.parse.urlencode(entry))

    def latent(self, workflow: Workflow, node: str = "save") -> torch.Tensor:
        """Run a workflow with a SaveLatent node and return the latent."""
        (entry,) = self.outputs(workflow)[node]["latents"]
        return load(self.saved(entry))["latent_tensor"]

    def images(self, workflow: Workflow, node: str = "save") -> list[numpy.ndarray]:
        """Run a workflow with a SaveImage node and return the images [height, width, 3]."""
        entries = self.outputs(workflow)[node]["images"]
        return [numpy.asarray(Image.open(io.BytesIO(self.saved(entry))).convert("RGB")) for entry in entries]


def make_data(folder: Path, checkpoints: Path) -> Path:
    """Make a base directory with checkpoints, the probe, and this repository as a node pack."""
    for name in ("checkpoints", "diffusion_models", "hypernetworks", "loras"):
        (folder / "models" / name).mkdir(parents=True)
    for file in checkpoints.iterdir():
        for name in ("checkpoints", "diffusion_models"):
            (folder / "models" / name / file.name).symlink_to(file.resolve())
    nodes = folder / "custom_nodes"
    (nodes / "probe").mkdir(parents=True)
    shutil.copy(HERE / "comfyui_probe.py", nodes / "probe" / "__init__.py")
    for part in _PARTS:
        source, target = ROOT / part, nodes / "hnloader" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    return folder
