"""Train a hypernetwork on twenty images and use it: `python train_style.py [STEPS]`. 400 steps take a few minutes."""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import hnloader
from hnloader.demo import pipeline_folder
from hnloader.demo.drawing import draw_images

PROMPT = "a large green star at the top left on a white background"
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 400

# Twenty images in the style of a blueprint, each with its caption in a text file of the same name.
images = draw_images("blueprint", Path("blueprint-images"))

result = hnloader.train(
    {
        "model": str(pipeline_folder()),
        "images": str(images),
        "output": "blueprint.pt",
        "steps": steps,
        # These four suit the small pipeline; leave them out for a full-size model.
        "batch_size": 4,
        "learning_rate": 2e-3,
        "hypernetwork.activation": "linear",
        "data.random_flip": False,
    },
    restart=True,  # replace the result of an earlier run
)
print(f"{result.output}: {result.step} steps, {result.reason}")

pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder(), dtype=torch.float32)
with hnloader.attach(pipe, result.output):
    generator = torch.Generator().manual_seed(1)
    pipe(PROMPT, num_inference_steps=20, guidance_scale=3, generator=generator).images[0].save("blueprint.png")
