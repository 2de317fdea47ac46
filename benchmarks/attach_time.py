"""How long attaching a 100 MB hypernetwork to a full SD 1 UNet takes, next to one step of that UNet.

    python -m benchmarks.attach_time [--size 64] [--threads 1]

The UNet has the configuration of Stable Diffusion 1.5 (860 million parameters, 3.4 GB in float32) and random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

import hnloader
from hnloader.attention.injector import injector_of

WIDTHS = (320, 640, 768, 1280)


def seconds(action: Callable[[], object], repeats: int = 1) -> float:
    """Median time of an action."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def sd1_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    unet.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.uniform_(-0.03, 0.03)
    return unet


def save_file(path: Path) -> None:
    hypernetwork = hnloader.Hypernetwork.new(WIDTHS, hnloader.Architecture((1, 2.3, 1), "relu"), name="style")
    hnloader.save(hypernetwork, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="latent height and width; 64 is a picture of 512 x 512")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    unet = sd1_unet()
    inputs = (torch.randn(1, 4, options.size, options.size), torch.tensor(500), torch.randn(1, 77, 768))
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    print(
        f"UNet: {parameters / 1e6:.0f} million parameters, latents {options.size} x {options.size}, float32, "
        f"{options.threads} thread(s)"
    )

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "style.pt"
        save_file(path)
        print(f"file: {path.stat().st_size / 1e6:.0f} MB")
        step = seconds(lambda: unet(*inputs))
        load = seconds(lambda: hnloader.load(path), 3)
        hypernetwork = hnloader.load(path)
        attach = seconds(lambda: hnloader.attach(unet, hypernetwork).detach(), 9)
        attachment = hnloader.attach(unet, hypernetwork)
        attached_step = seconds(lambda: unet(*inputs))
        change = seconds(lambda: attachment.set_strength(0.5), 9)
        injector = injector_of(unet)
        check = seconds(lambda: injector(unet, inputs, {}), 101)
        attachment.detach()

    for name, value in {
        "load the file": load,
        "attach and detach": attach,
        "load and attach": load + attach,
        "set_strength": change,
        "check before each model call": check,
        "one step of the UNet": step,
        "one step with the hypernetwork": attached_step,
    }.items():
        print(f"{name:32}{value * 1000:12.3f} ms   {value / step:10.5f} of a step")


if __name__ == "__main__":
    main()
