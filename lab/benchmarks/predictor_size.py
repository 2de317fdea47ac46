"""Measure a predictor for models with the layout of SD 1 and SDXL and random weights.

`python -m lab.benchmarks.predictor_size sd1` prints the numbers of the predictor and of a predicted hypernetwork, the
sizes of their files, and the time and the memory of a training step. The latents are smaller than those of the models'
own images, so that a CPU can run a step.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hnloader
from hnloader.attention import find_sites
from hnloader.prediction.predictor import Predictor
from hnloader.prediction.predictor_file import About, ModelSample, save_predictor
from hnloader.prediction.row_hooks import RowHooks
from hnloader.scopes import Scope
from hnloader.training.predictor_config import DesignConfig
from hnloader.training.recompute import recompute_activations
from lab.benchmarks import _models


def measure(name: str, size: int, batch: int, references: int) -> None:
    """Print the measures of one model."""
    subject = (_models.sd1 if name == "sd1" else _models.sdxl)(size, batch)
    unet = subject.model.requires_grad_(False)
    before = _peak()
    scopes = [Scope(width) for width in sorted({site.width for site in find_sites(unet)})]
    predictor = Predictor(scopes, 4, DesignConfig())
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=1e-4)
    hooks = RowHooks(unet)
    latents = torch.randn(batch * references, 4, size, size)
    times = []
    with hooks.attached():
        for _ in range(2):
            start = time.process_time()
            loss = _loss(predictor, hooks, unet, subject.inputs, latents.unflatten(0, (batch, references)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.process_time() - start)
    start = time.perf_counter()
    made = predictor.hypernetwork(predictor.read(latents[:references].unsqueeze(0)))
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        hnloader.save(made, f"{folder}/style.pt")
        path = Path(folder) / "predictor.safetensors"
        save_predictor(path, predictor, About(), ModelSample(torch.zeros(4, 8, 8), torch.zeros(1)))
        sizes = path.stat().st_size / 1e6, Path(f"{folder}/style.pt").stat().st_size / 1e6
    print(
        f"{subject.title}: predictor {_millions(predictor):.1f} million numbers, {sizes[0]:.1f} MB; hypernetwork "
        f"{_millions(made):.1f} million, {sizes[1]:.1f} MB; prediction {1000 * seconds:,.0f} ms without the VAE; "
        f"step of {batch} at {size} x {size} latents {times[-1]:.1f} s of processor time; peak memory "
        f"{_peak() / 1e9:.1f} GB, {before / 1e9:.1f} GB before the first step"
    )


def _loss(predictor: Predictor, hooks: RowHooks, unet: nn.Module, inputs: dict[str, Any], latents: Tensor) -> Tensor:
    with hooks.applied(predictor.sides(predictor.read(latents))), recompute_activations(unet):
        output: Tensor = unet(**inputs).sample
    return output.float().pow(2).mean()


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.benchmarks.predictor_size", description=__doc__)
    parser.add_argument("model", choices=("sd1", "sdxl"))
    parser.add_argument("--size", type=int, default=16, help="side of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--references", type=int, default=4)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measure(chosen.model, chosen.size, chosen.batch, chosen.references)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
