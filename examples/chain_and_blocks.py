"""Chain two hypernetworks, with strengths by block and for a part of the sampling."""

import torch
from diffusers import StableDiffusionPipeline

import hnloader
from hnloader.demo import hypernetwork_paths, pipeline_folder

PROMPT = "a large red circle in the center on a white background"

pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder(), dtype=torch.float32)
paths = hypernetwork_paths()

chain = [
    # Full strength in the up blocks, half in the middle block, and 0 in the down blocks.
    hnloader.Application(paths["halftone"], {"up": 1.0, "mid": 0.5}),
    # Every block, but not in the first fifth of the sampling.
    hnloader.Application(paths["outline"], 0.5, start=0.2),
]
with hnloader.attach(pipe, chain) as attachment:
    print(attachment.summary())
    generator = torch.Generator().manual_seed(1)
    image = pipe(PROMPT, num_inference_steps=20, guidance_scale=3, generator=generator).images[0]
    # How each layer computes the chain, and what that costs.
    print(attachment.explain())
image.save("chain.png")
