"""Load the bundled pipeline and generate images with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hnloader.demo.scenes import ByteArray

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["GUIDANCE", "STEPS", "generate", "load_pipeline"]

STEPS = 20
GUIDANCE = 3.0


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 20,
) -> Iterator[ByteArray]:
    """Yield one image, uint8 (64, 64, 3), per prompt; prompt i has seed + i for any batch size."""
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        result = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        )
        for image in result.images:
            yield np.round(image * 255).astype(np.uint8)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the pipeline of a folder in float32, without progress bar and network access."""
    from hnloader.pipelines import quiet

    # The files are float16; on a CPU, its convolutions are slow, and missing before torch 2.1.
    with quiet():
        # transformers warns at its import of packages that are not needed here.
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
        pipeline = pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
