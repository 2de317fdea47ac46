"""Load the bundled pipeline and sample from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hnloader.demo.scenes import ByteArray

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

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
    """One image (uint8 (64, 64, 3)) per prompt; prompt i starts from seed + i, whatever the batch."""
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
    """The pipeline of a folder in float32, without progress bar and without network."""
    from hnloader.pipelines import quiet

    # The files hold float16; torch's float16 convolutions on CPUs are slow, and missing before torch 2.1.
    with quiet():
        # Imported in here: transformers warns of packages that nothing here needs as soon as it is imported.
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
        pipeline = pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
