"""First stage: the VAE. It sees every style, because a hypernetwork can only steer towards what the VAE can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from hnloader.demo.scenes import (
    CORNERS,
    IMAGE_SIZE,
    ByteArray,
    Layer,
    Scene,
    SceneObject,
    lay_out,
    random_scene,
)
from hnloader.demo.styles import draw
from lab.demo.study_styles import paint
from lab.demo.training.common import Budget, Trainer, as_images, as_tensor, load_average

# Without the styles of the study: they stay new to the VAE.
STYLES = ("plain", "outline", "blueprint", "halftone", "duotone")


def build_vae() -> AutoencoderKL:
    """0.9 million parameters; an image of 64 x 64 becomes a latent of 4 x 16 x 16."""
    channels = (32, 64, 64)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def _crowded_scene(rng: np.random.Generator) -> Scene:
    """Three or four objects: more edges to learn from in each image."""
    scene = random_scene(rng, objects=1)
    places = rng.permutation(len(CORNERS))[: int(rng.integers(3, 5))]
    objects = []
    for place in places:
        item = random_scene(rng, objects=1).objects[0]
        objects.append(SceneObject(item.shape, item.color, item.size, CORNERS[place]))
    return Scene(tuple(objects), scene.background)


def draw_texture(rng: np.random.Generator) -> ByteArray:
    """Draw an image for the VAE: any style, up to four objects, now and then in colors that no caption names."""
    crowd = rng.random()
    scene = _crowded_scene(rng) if crowd < 0.5 else random_scene(rng, objects=1 if crowd < 0.75 else 2)
    background, layers = lay_out(scene, rng)
    if rng.random() < 0.15:
        background = rng.uniform(0, 255, 3).astype(np.float32)
        layers = [Layer(layer.distance, rng.uniform(0, 255, 3).astype(np.float32), layer.placement) for layer in layers]
    style = "plain" if rng.random() < 0.5 else STYLES[int(rng.integers(len(STYLES)))]
    return paint(style, background, layers)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, plus that of 8 x 8 means (right colors) and of differences to neighbors (crisp edges)."""
    error = output - target
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + functional.avg_pool2d(error, 8).abs().mean() + 0.5 * (across + down)


def train_vae(folder: Path, budget: Budget, *, batch: int = 16, rate: float = 1e-3, seed: int = 0) -> AutoencoderKL:
    """Train the VAE and keep its checkpoint in `folder`/vae.pt; resumes from that file if it exists."""
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    # Start with nearly no noise in the latent; from unit noise the decoder learns to ignore it.
    torch.nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -6.0)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        images = as_tensor(np.stack([draw_texture(rng) for _ in range(batch)]))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample()).sample
        # The divergence is a sum over the latent; per element it only keeps the latent from growing without bound.
        total: Tensor = reconstruction_loss(output.float(), images) + 1e-4 * posterior.kl().float().mean() / 1024
        return total

    Trainer({"vae": vae}, loss, budget, folder / "vae.pt", rate, decay=0.998, save_every=250).run()
    return vae.eval()


def train_decoder(
    folder: Path, vae: AutoencoderKL, budget: Budget, *, batch: int = 16, rate: float = 1e-3, seed: int = 1
) -> AutoencoderKL:
    """Train the decoder on, with the encoder fixed; checkpoint `folder`/decoder.pt.

    Latents stay what they are, so this can run beside the UNet's training. A little noise on them teaches the decoder
    to draw crisply from latents that are not exact, as a UNet's are.
    """
    torch.manual_seed(seed)
    vae.requires_grad_(False)
    decoder = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    for module in decoder.values():
        module.requires_grad_(True)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        images = as_tensor(np.stack([draw_texture(rng) for _ in range(batch)]))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.mean
                spread = latents.std((0, 2, 3), keepdim=True)
                latents = latents + 0.06 * spread * torch.rand(batch, 1, 1, 1) * torch.randn_like(latents)
            output = vae.decode(latents).sample
        return reconstruction_loss(output.float(), images)

    Trainer(decoder, loss, budget, folder / "decoder.pt", rate, decay=0.998, save_every=250).run()
    return vae.eval()


def load_vae(folder: Path) -> AutoencoderKL:
    """Return the trained VAE of `folder`, averaged, in eval mode, with the longer trained decoder if there is one."""
    vae = build_vae()
    load_average(folder / "vae.pt", {"vae": vae})
    return with_decoder(folder, vae).eval()


def with_decoder(folder: Path, vae: AutoencoderKL) -> AutoencoderKL:
    """Give a VAE the longer trained decoder of `folder`, if there is one."""
    if (folder / "decoder.pt").exists():
        load_average(folder / "decoder.pt", {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    return vae


@torch.no_grad()
def through_vae(vae: AutoencoderKL, images: Sequence[ByteArray]) -> list[ByteArray]:
    """Return images after encoding and decoding: the best that the pipeline can show of them."""
    parts = as_tensor(np.stack(images)).split(32)
    decoded = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in parts]
    return list(as_images(torch.cat(decoded)))


@torch.no_grad()
def even_out_latents(vae: AutoencoderKL, seed: int = 1, count: int = 1024) -> None:
    """Give every latent channel zero mean and the same spread over plain images, and store the `scaling_factor`.

    Shift and scale go into the 1 x 1 convolutions on both sides of the latent, so images stay what they were.
    """
    rng = np.random.default_rng(seed)
    images = np.stack([draw(random_scene(rng, objects=1 + index % 2), rng) for index in range(count)])
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in as_tensor(images).split(64)])
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.weight[:channels] /= spread[:, None, None, None]
    inward.bias[:channels] = (inward.bias[:channels] - mean) / spread
    inward.bias[channels:] -= 2.0 * spread.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= spread[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
