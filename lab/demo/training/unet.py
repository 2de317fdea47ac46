"""Second stage: the UNet and the text encoder, trained together on latents of plain scenes.

The UNet learns v-prediction on a schedule whose last step is pure noise, so that sampling starts from what training
saw. Attention stands on every level, down to 4 x 4: without it the UNet does not learn where to put an object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hnloader.demo.scenes import IMAGE_SIZE, POSITIONS, RADII, Scene, random_scene
from hnloader.demo.styles import draw
from hnloader.formats.checkpoint import load_plain
from lab.demo.scene_captions import training_caption
from lab.demo.training.common import Budget, Trainer, as_tensor, load_average, write_checkpoint
from lab.demo.training.text import PROMPT_TOKENS, TEXT_WIDTH, build_text_encoder, write_tokenizer

UNET_WIDTHS = (64, 96, 128)
EMPTY_CAPTIONS = 0.1  # share trained without words, for classifier-free guidance


def build_unet() -> UNet2DConditionModel:
    """5.9 million parameters on latents of 4 x 16 x 16."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 3, 4),  # diffusers' old name for the number of heads: 32 channels each
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas, rescaled to end in pure noise; v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=True,
    )


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Return the parts as one pipeline, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@dataclass(frozen=True)
class LatentSet:
    """Latents of drawn scenes, scaled as the UNet wants them: float32 (n, 4, 16, 16)."""

    latents: Tensor
    scenes: tuple[Scene, ...]


def training_scenes(count: int, seed: int) -> tuple[Scene, ...]:
    """Scenes from the training split; three in five have two objects."""
    rng = np.random.default_rng(seed)
    return tuple(random_scene(rng, objects=2 if rng.random() < 0.6 else 1) for _ in range(count))


def object_weights(scene: Scene, width: int = IMAGE_SIZE // 4) -> np.ndarray:
    """Weights of a scene's latent pixels in the loss: float32 (width, width), 1 on the background, more on objects.

    An object counts about as much as the background, whether small or large; otherwise the plain background, most of a
    image, drowns what the loss says of shapes. The disc is the same for every shape, so it gives none away.
    """
    centers = (np.arange(width, dtype=np.float32) + 0.5) * (IMAGE_SIZE / width)
    weights = np.ones((width, width), np.float32)
    for item in scene.objects:
        x, y = POSITIONS[item.position]
        radius = 1.2 * RADII[item.size] + 2.0
        inside = np.hypot(centers[None, :] - x, centers[:, None] - y) < radius
        weights[inside] += 4096.0 / (np.pi * radius**2)
    return weights


Painter = Callable[[Scene, np.random.Generator], np.ndarray]


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int, seed: int, painter: Painter = draw) -> LatentSet:
    """Draw `count` training scenes and encode them with the VAE."""
    scenes = training_scenes(count, seed)
    rng = np.random.default_rng((seed, 1))
    parts = []
    for start in range(0, count, 64):
        images = np.stack([painter(scene, rng) for scene in scenes[start : start + 64]])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(as_tensor(images)).latent_dist.mean.float())
    return LatentSet(torch.cat(parts) * vae.config.scaling_factor, scenes)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """int64 (n, 32) token ids."""
    tokens = tokenizer(captions, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


class NoisePrediction:
    """The loss of one batch: how well the UNet predicts v for noisy latents, given captions."""

    def __init__(
        self,
        data: LatentSet,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        batch: int,
        seed: int,
    ) -> None:
        self._data, self._tokenizer, self._text_encoder, self._unet = data, tokenizer, text_encoder, unet
        self._batch, self._seed = batch, seed
        self._scheduler = build_scheduler()

    def __call__(self, step: int) -> Tensor:
        """Return the loss of step `step`; which images, captions, times and noise follows from seed and step."""
        rng = np.random.default_rng((self._seed, step))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        chosen = rng.integers(len(self._data.scenes), size=self._batch)
        captions = [
            "" if rng.random() < EMPTY_CAPTIONS else training_caption(self._data.scenes[index], rng) for index in chosen
        ]
        latents = self._data.latents[torch.from_numpy(chosen)]
        noise = torch.randn(latents.shape, generator=generator)
        # One time from each of `batch` equal parts of the schedule: less noise in the loss than independent draws.
        parts = torch.arange(self._batch) + torch.rand(self._batch, generator=generator)
        times = (parts / self._batch * self._scheduler.config.num_train_timesteps).long()
        noisy = self._scheduler.add_noise(latents, noise, times)
        target = self._scheduler.get_velocity(latents, noise, times)
        with torch.autocast("cpu", torch.bfloat16):
            context = self._text_encoder(tokenize(self._tokenizer, captions))[0]
            prediction = self._unet(noisy, times, context).sample
        weights = torch.from_numpy(np.stack([object_weights(self._data.scenes[index]) for index in chosen]))[:, None]
        loss: Tensor = (weights * (prediction.float() - target).square()).mean() / weights.mean()
        return loss


def cached_latents(folder: Path, vae: AutoencoderKL, count: int, seed: int) -> LatentSet:
    """Return the latents of `folder`/latents-SEED.pt, made first if they are missing or of another number."""
    path = folder / f"latents-{seed}.pt"
    if path.exists():
        latents = load_plain(path)["latents"]
        if len(latents) == count:
            return LatentSet(latents.float(), training_scenes(count, seed))
    data = encode_scenes(vae, count, seed)
    write_checkpoint(path, {"latents": data.latents.half()})
    return data


def new_pipeline(folder: Path, vae: AutoencoderKL, seed: int = 0) -> StableDiffusionPipeline:
    """Return a pipeline with an untrained UNet and text encoder; writes its tokenizer into `folder`."""
    torch.manual_seed(seed)
    tokenizer = write_tokenizer(folder / "tokenizer")
    text_encoder = build_text_encoder(tokenizer)
    return assemble(vae, text_encoder, tokenizer, build_unet())


def train_unet(
    folder: Path,
    pipeline: StableDiffusionPipeline,
    budget: Budget,
    *,
    batch: int = 32,
    rate: float = 8e-4,
    images: int = 30_000,
    seed: int = 0,
    report: Callable[[StableDiffusionPipeline], str] | None = None,
) -> None:
    """Train UNet and text encoder with the checkpoint `folder`/unet.pt; resumes from that file if it exists.

    Every 1,000 steps, the log gets the text that `report` makes of the pipeline.
    """
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    # On CPUs the fused attention's backward pass takes longer than the plain one's; the results are the same.
    unet.set_attn_processor(AttnProcessor())
    data = cached_latents(folder, pipeline.vae, images, seed)
    Trainer(
        {"unet": unet.train(), "text_encoder": text_encoder.train()},
        NoisePrediction(data, pipeline.tokenizer, text_encoder, unet, batch, seed),
        budget,
        folder / "unet.pt",
        rate,
        weight_decay=0.01,
        decay=0.998,
        save_every=250,
        report=None if report is None else lambda step: report(pipeline),
    ).run()


def load_trained(folder: Path, pipeline: StableDiffusionPipeline) -> None:
    """Give a pipeline the averaged weights of `folder`/unet.pt."""
    load_average(folder / "unet.pt", {"unet": pipeline.unet.eval(), "text_encoder": pipeline.text_encoder.eval()})
