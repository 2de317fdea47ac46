"""Apply a hypernetwork to a diffusers pipeline and change its strength."""

import torch
from diffusers import StableDiffusionPipeline

import hnloader
from hnloader.demo import hypernetwork_paths, pipeline_folder

PROMPT = "a large red circle in the center on a white background"

# Replace the folder with your own model, and the path with your own `.pt` or `.safetensors` file.
pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder(), dtype=torch.float32)
style = hnloader.load(hypernetwork_paths()["outline"])

with hnloader.attach(pipe, style) as attachment:
    for strength in (0.0, 0.5, 1.0):
        attachment.set_strength(strength)
        generator = torch.Generator().manual_seed(1)
        image = pipe(PROMPT, num_inference_steps=20, guidance_scale=3, generator=generator).images[0]
        image.save(f"outline-{strength}.png")
        print(f"outline-{strength}.png")
# Here the model is exactly what it was before.
