"""A grid of images: without the hypernetworks, with them, and with the file made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hnloader.attention import Application, attach
from hnloader.conversion.lora.context_samples import ROLES, Progress, Sampling
from hnloader.conversion.lora.export_result import LayerChange

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["image_grid", "merged"]

_IMAGES = 3
_STEPS = 20
# Far from the seeds of the sampled contexts.
_FIRST_SEED = 1000


def image_grid(
    pipeline: Any,
    applications: Sequence[Application],
    changes: Sequence[LayerChange],
    sampling: Sampling,
    label: str,
    progress: Progress,
) -> tuple[Image, dict[str, float]]:
    """Make the same images three ways, from prompts that the fit never saw.

    Args:
        pipeline: A whole pipeline.
        applications: The hypernetworks.
        changes: The changes of weights that stand for them.
        sampling: Prompts, first seed and guidance.
        label: Label of the column with the changes.
        progress: Called after each image.

    Returns:
        A labeled grid, and the mean absolute difference of pixels (0 to 255) from the images with the hypernetworks:
        of the images `without` them, and of the `converted` ones.
    """
    from hnloader.grids import labeled_grid

    measured = [prompt for index, prompt in enumerate(sampling.prompts) if ROLES[index % len(ROLES)] == "test"]
    prompts = measured[:_IMAGES]
    ways: list[Callable[[], contextlib.AbstractContextManager[object]]] = [
        contextlib.nullcontext,
        lambda: attach(pipeline, list(applications)),
        lambda: merged(pipeline.unet, changes),
    ]
    columns = ["without", "hypernetwork" + "s" * (len(applications) > 1), label]
    made = []
    for number, way in enumerate(ways):
        with way():
            for index, prompt in enumerate(prompts):
                made.append(_image(pipeline, prompt, sampling, index))
                progress(number * len(prompts) + index + 1, len(ways) * len(prompts), "Generating images")
    without, live, converted = (made[start : start + len(prompts)] for start in range(0, len(made), len(prompts)))
    differences = {"without": _difference(without, live), "converted": _difference(converted, live)}
    grid = labeled_grid(
        [list(row) for row in zip(without, live, converted, strict=True)],
        columns=columns,
        rows=prompts,
        title=" + ".join(str(getattr(one.hypernetwork, "name", "")) for one in applications),
        caption=(
            f"Mean difference from the {columns[1]}'s images, of 255: without {differences['without']:.1f}, "
            f"{label} {differences['converted']:.1f}. Seeds {sampling.seed + _FIRST_SEED} and up, {_STEPS} steps, "
            f"guidance {sampling.guidance:g}."
        ),
    )
    return grid, differences


@contextlib.contextmanager
def merged(unet: nn.Module, changes: Sequence[LayerChange]) -> Iterator[None]:
    """Add the changes to the weights of a UNet; restore them bit for bit afterwards."""
    before: list[tuple[Any, Any, Any]] = []
    try:
        for change in changes:
            module: Any = unet.get_submodule(change.name)
            while hasattr(module, "base_layer"):  # peft's wrapper around the layer
                module = module.base_layer
            before.append((module, module.weight, module.bias))
            module.weight = _added(module.weight, change.delta())
            if change.diff_b is not None:
                bias = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
                module.bias = _added(bias, change.diff_b)
        yield
    finally:
        for module, weight, bias in before:
            module.weight, module.bias = weight, bias


def _added(parameter: torch.Tensor, delta: torch.Tensor) -> nn.Parameter:
    total = parameter.detach().to(torch.float32) + delta.to(parameter.device, torch.float32)
    return nn.Parameter(total.to(parameter.dtype), requires_grad=False)


def _image(pipeline: Any, prompt: str, sampling: Sampling, index: int) -> Image:
    image: Image = pipeline(
        prompt,
        num_inference_steps=_STEPS,
        guidance_scale=sampling.guidance,
        generator=torch.Generator().manual_seed(sampling.seed + _FIRST_SEED + index),
    ).images[0]
    return image


def _difference(images: Sequence[Image], references: Sequence[Image]) -> float:
    """Return the mean absolute difference of pixel values, 0 to 255."""
    from PIL import ImageChops, ImageStat

    means = [
        sum(ImageStat.Stat(ImageChops.difference(a.convert("RGB"), b.convert("RGB"))).mean) / 3
        for a, b in zip(images, references, strict=True)
    ]
    return sum(means) / len(means)
