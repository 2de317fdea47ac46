"""Check image generation and training on a GPU. Each check returns a summary or raises."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import hnloader
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.demo.drawing import draw_images
from hnloader.generation import Settings, generate
from hnloader.library import Library
from hnloader.pipelines import load_model
from hnloader.training import prepare, read_config
from tests.support.builders import relative_error

from .attaching import Check, image, pipeline_on

STEPS = 24


def images(device: torch.device) -> str:
    """Compare images of `hnloader generate` in the default precision with images from the CPU.

    The difference with a hypernetwork may be at most twice the difference without one.
    """
    style = hypernetwork_paths()["outline"]
    prompt = "a small blue square at the top left on a white background"
    far = {}
    for tag in ("", f" <hypernet:{style.stem}:0.9>"):
        settings = Settings(prompt=prompt + tag, seed=7, count=2, steps=12)
        made: list[list[Tensor]] = []
        for name in (str(device), "cpu"):
            model = load_model(pipeline_folder(), device=name)
            made.append([_pixels(each.image) for each in generate(model, settings, Library([style.parent]))])
        assert not torch.equal(*made[0]), "two seeds gave the same image"
        far[tag] = max(float((one - other).abs().mean()) for one, other in zip(*made, strict=True))
    plain, styled = far.values()
    assert styled < 2 * plain + 1, f"differs from the CPU by {styled:.2f} of 255, without a hypernetwork by {plain:.2f}"
    return f"mean difference from the CPU: {styled:.2f} of 255, without a hypernetwork {plain:.2f}"


def threads(device: torch.device) -> str:
    """Generate images while other threads attach, change and detach; the model must be restored."""
    pipe = pipeline_on(device)
    plain, done, failures = image(pipe), threading.Event(), []

    def changes(name: str) -> None:
        count = 0
        try:
            while not done.is_set():
                with hnloader.attach(pipe, hypernetwork_paths()[name], 0.5) as attachment:
                    attachment.set_strength(0.1 + count % 7 / 10)
                    count += 1
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=changes, args=(name,)) for name in ("outline", "halftone", "outline")]
    for worker in workers:
        worker.start()
    for seed in range(6):
        image(pipe, seed)
    done.set()
    for worker in workers:
        worker.join()
    assert not failures, failures[0]
    assert torch.equal(image(pipe), plain), "different plain image afterwards"
    return "6 images while three threads attach and detach; same plain image afterwards"


def trainings(device: torch.device) -> str:
    """Compare the loss of training runs in each precision with float32; the VAE must stay on the CPU."""
    results = []
    for method in ("hypernetwork", "embedding"):
        reached: dict[str, float] = {}
        for precision in _precisions(device):
            with _Trainings(device, method=method, precision=precision) as made:
                training = made.new("whole")
                devices = {next(training.task.denoiser.vae.parameters()).device.type}
                assert device.type == "cpu" or devices == {"cpu"}, "the VAE is on the GPU"
                reached[precision] = _best(training.run())
        furthest = max(abs(each / reached["float32"] - 1) for each in reached.values())
        assert furthest < 0.05, f"{method}: {reached}"
        results.append(f"{method} {', '.join(f'{name} {loss:.4f}' for name, loss in reached.items())}")
    return f"validation loss: {'; '.join(results)}"


def resumed(device: torch.device) -> str:
    """Check that a stopped and resumed training gives the same bits in each precision, with `deterministic`."""
    for precision in _precisions(device):
        with _Trainings(device, precision=precision, deterministic=True) as made:
            expected = made.new("whole").run().output
            assert (far := _far(made.new("twice").run().output, expected)) == 0, f"{precision}: twice, {far:.0e} apart"
            cut = made.new("cut")
            cut.run(lambda event, cut=cut: cut.stop() if event.step == STEPS // 2 else None)
            assert (far := _far(made.new("cut", resume=True).run().output, expected)) == 0, f"{precision}: {far:.0e}"
    return f"{', '.join(_precisions(device))}: the same bits"


def eight_bit(device: torch.device) -> str:
    """Compare bitsandbytes' AdamW8bit, which needs a GPU, with AdamW, and resume it from a saved state."""
    try:
        import bitsandbytes
    except ImportError:
        return "skipped: bitsandbytes is not installed"
    reached = {}
    for optimizer in ("adamw", "adamw8bit"):
        with _Trainings(device, optimizer=optimizer) as made:
            reached[optimizer] = _best(made.new("whole").run())
            cut = made.new("cut")
            cut.run(lambda event, cut=cut: cut.stop() if event.step == STEPS // 2 else None)
            again = _best(made.new("cut", resume=True).run())
            assert abs(again / reached[optimizer] - 1) < 0.01, f"{optimizer} resumed: {again}, whole {reached}"
    assert abs(reached["adamw8bit"] / reached["adamw"] - 1) < 0.02, reached
    return (
        f"bitsandbytes {bitsandbytes.__version__}: validation loss {reached['adamw8bit']:.4f}, {reached['adamw']:.4f}"
    )


CHECKS: dict[str, Check] = {
    "images": images,
    "threads": threads,
    "training": trainings,
    "resuming": resumed,
    "8-bit optimizer": eight_bit,
}


class _Trainings:
    """Short training runs on the bundled pipeline with the same images, in a temporary folder."""

    def __init__(self, device: torch.device, **settings: object) -> None:
        self._device, self._settings = device, settings
        self._folder = tempfile.TemporaryDirectory()
        self._place = Path(self._folder.name)

    def __enter__(self) -> _Trainings:
        draw_images("blueprint", self._place / "images", count=6)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def new(self, name: str, *, resume: bool = False) -> Any:
        given = {
            "model": str(pipeline_folder()),
            "images": str(self._place / "images"),
            "output": str(self._place / name / "style.safetensors"),
            "steps": STEPS,
            "save_every_n_steps": STEPS // 4,
            "validate_every_n_steps": STEPS // 2,
            "previews.every_n_steps": 0,
            "optimizer": "adamw",
            "learning_rate": "1e-3",
            **self._settings,
        }
        return prepare(read_config(None, given), resume=resume, device=str(self._device))


def _precisions(device: torch.device) -> tuple[str, ...]:
    return ("float32", "bfloat16") if device.type == "cpu" else ("float32", "bfloat16", "float16")


def _best(result: Any) -> float:
    assert result.best is not None, "the training measured no loss"
    return float(result.best[0])


def _far(one: Path, other: Path) -> float:
    pairs = zip(load_file(one).values(), load_file(other).values(), strict=True)
    return max(relative_error(a.float(), b.float()) for a, b in pairs)


def _pixels(image: Any) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.asarray(image).astype("float32"))
