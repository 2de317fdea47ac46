"""Jobs of the stand-in host: batches, hires pass, refiner, interruption, infotext."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from modules import extra_networks, infotext_utils, scripts, sd_models, shared
from modules.script_callbacks import CFGDenoiserParams, run
from torch import Tensor


class InterruptedException(BaseException):
    """An interruption within sampling; a `BaseException`, as in the hosts."""


@dataclass
class StableDiffusionProcessing:
    prompt: str | list[str] = ""
    negative_prompt: str = ""
    steps: int = 4
    seed: int = 1
    batch_size: int = 1
    n_iter: int = 1
    enable_hr: bool = False
    hr_prompt: str = ""
    hr_checkpoint: str | None = None
    refiner: str | None = None
    refiner_switch_at: float = 0.5
    disable_extra_networks: bool = False
    is_img2img: bool = False
    init: Tensor | None = None  # of img2img: the initial latent [4, 8, 8]
    mask: Tensor | None = None  # of inpainting: 1 where it is repainted
    alwayson_scripts: dict[str, list[Any]] = field(default_factory=dict)
    latent_side: int = 8
    at_step: Callable[[int], None] = lambda step: None  # for tests: called before each step

    def __post_init__(self) -> None:
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.is_hr_pass = False
        self.iteration = 0
        self.all_prompts: list[str] = []
        self.prompts: list[str] = []
        self.scripts: scripts.ScriptRunner | None = scripts.ScriptRunner(self.is_img2img)
        self.alwayson_scripts = {name.lower(): args for name, args in self.alwayson_scripts.items()}

    @property
    def sd_model(self) -> Any:
        return shared.sd_model

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.conditioning = None

    def setup_conds(self) -> None:
        prompts = self.hr_prompts if self.is_hr_pass else self.prompts
        negative, _ = extra_networks.parse_prompts([self.negative_prompt] * len(prompts))
        self.conditioning = sd_models.conditioning(prompts), sd_models.conditioning(negative)


@dataclass
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """A job of txt2img with PIL images. It has only the scripts that its creator sets."""

    sampler_name: str | None = None
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    outpath_samples: str = ""
    outpath_grids: str = ""
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    override_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.latent_side = 16  # so that the smallest layers have more than one token
        self.scripts = None
        made.append(self)


settings = SimpleNamespace(needs_scripts=False)
# For tests: the jobs of this kind.
made: list[StableDiffusionProcessingTxt2Img] = []


@dataclass
class Processed:
    images: list[Any]
    infotexts: list[str]
    comments: str


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Generate the images of a job, with its settings until it ends."""
    own = getattr(p, "override_settings", {})
    before = {key: getattr(shared.opts, key) for key in own}
    try:
        for key, value in own.items():
            setattr(shared.opts, key, value)
        return _process(p)
    finally:
        for key, value in before.items():
            setattr(shared.opts, key, value)


def _process(p: StableDiffusionProcessing) -> Processed:
    """As in the hosts, an error skips `deactivate`."""
    if settings.needs_scripts:
        assert p.scripts.alwayson_scripts is not None
    _call(p, "before_process")
    sd_models.reload_model_weights()
    prompts = p.prompt if isinstance(p.prompt, list) else [p.prompt] * p.batch_size * p.n_iter
    p.all_prompts, p.all_hr_prompts = list(prompts), [p.hr_prompt or prompt for prompt in prompts]
    p.extra_network_data = {}
    _call(p, "process")
    images, infotexts = [], []
    with torch.inference_mode("modules_forge" in sys.modules), torch.no_grad():
        for iteration in range(p.n_iter):
            p.iteration = iteration
            if shared.state.interrupted:
                break
            latents, texts = _batch(p)
            images += [_draw(p, latent, text) for latent, text in zip(latents, texts, strict=True)]
            infotexts += texts
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(images, infotexts, "".join(f"{comment}\n" for comment in p.comments))
    _call(p, "postprocess", processed)
    return processed


def _call(p: StableDiffusionProcessing, what: str, *given: Any, **kwargs: Any) -> None:
    if p.scripts is not None:
        p.scripts.call(what, p, *given, **kwargs)


def _draw(p: StableDiffusionProcessing, latent: Tensor, infotext: str) -> Any:
    """Return the latent, or a PIL image of three of its channels."""
    if not isinstance(p, StableDiffusionProcessingTxt2Img):
        return latent
    from PIL import Image

    colors = (latent[:3].permute(1, 2, 0) * 60 + 128).clamp(0, 255).to(torch.uint8)
    size = colors.shape[1], colors.shape[0]
    image = Image.frombytes("RGB", size, bytes(colors.flatten().tolist())).resize((p.width, p.height), 0)
    image.info["parameters"] = infotext
    return image


def _batch(p: StableDiffusionProcessing) -> tuple[Tensor, list[str]]:
    sd_models.reload_model_weights()  # after a refiner or a hires checkpoint
    part = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
    p.prompts = p.all_prompts[part]
    p.seeds = [p.seed + index for index in range(part.start, part.stop)]
    _call(p, "before_process_batch", batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds)
    p.prompts, p.extra_network_data = extra_networks.parse_prompts(p.prompts)
    p.hr_prompts, p.hr_extra_network_data = extra_networks.parse_prompts(p.all_hr_prompts[part])
    if not p.disable_extra_networks:
        _activate(p, p.extra_network_data)
    _call(p, "process_batch", batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds)
    p.setup_conds()
    shape = 4, p.latent_side, p.latent_side
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in p.seeds]
    start = torch.stack(noise)
    latents = _sample(p, start if p.init is None else p.init + 0.5 * start)
    if p.enable_hr and not shared.state.interrupted:
        latents = _hires(p, latents)
    p.prompts = p.all_prompts[part]  # with their tags again, for the infotext
    _call(p, "postprocess_batch", images=latents, batch_number=p.iteration)
    return latents, [create_infotext(p, index) for index in range(len(p.prompts))]


def _hires(p: StableDiffusionProcessing, latents: Tensor) -> Tensor:
    if p.hr_checkpoint:
        sd_models.reload_model_weights(p.hr_checkpoint)
    p.is_hr_pass = True
    if not p.disable_extra_networks:
        _activate(p, p.hr_extra_network_data)
    p.setup_conds()
    _call(p, "before_hr")
    latents = _sample(p, torch.nn.functional.interpolate(latents, scale_factor=2.0))
    p.is_hr_pass = False
    return latents


def _activate(p: StableDiffusionProcessing, data: dict) -> None:
    extra_networks.activate(p, data)
    _call(p, "after_extra_networks_activate", batch_number=p.iteration, extra_network_data=data)


def _sample(p: StableDiffusionProcessing, x: Tensor) -> Tensor:
    c, uc = p.conditioning
    _call(p, "process_before_every_sampling", x=x, noise=x, c=c, uc=uc)
    shared.state.sampling_steps = p.steps
    try:
        for step in range(p.steps):
            shared.state.sampling_step = step
            p.at_step(step)
            x = _denoise(p, x, step)
            if p.mask is not None:
                x = p.mask * x + (1 - p.mask) * p.init
    except InterruptedException:
        pass  # keep the image so far
    return x


def _denoise(p: StableDiffusionProcessing, x: Tensor, step: int) -> Tensor:
    if shared.state.interrupted or shared.state.skipped:
        raise InterruptedException
    if p.refiner and step / p.steps >= p.refiner_switch_at and shared.sd_model.name != p.refiner:
        sd_models.reload_model_weights(p.refiner)  # `activate` is not called again
        p.setup_conds()
    c, uc = p.conditioning
    sigma = torch.full((len(x),), 1000.0 * (1 - step / p.steps))
    params = CFGDenoiserParams(x, None, sigma, step, p.steps, c, uc)
    run("cfg_denoiser", params)
    context = torch.cat([params.text_cond, params.text_uncond])
    unet = sd_models.unet_of(shared.sd_model)
    own = unet.out.weight.dtype  # the hosts cast to the model's type and back
    made = unet(torch.cat([x, x]).to(own), torch.cat([sigma, sigma]), context=context.to(own))
    cond, uncond = made.to(x.dtype).chunk(2)
    return x - (uncond + 5 * (cond - uncond)) / (2 * p.steps)


def create_infotext(p: StableDiffusionProcessing, index: int) -> str:
    params = {"Steps": p.steps, "Seed": p.seeds[index], "Model": shared.sd_model.name, **p.extra_generation_params}
    values = {}
    for key, value in params.items():
        if isinstance(value, list):
            value = value[p.iteration * p.batch_size + index]
        elif callable(value):
            value = value(p=p, index=index)
        if value is not None:
            values[key] = value
    fields = ", ".join(f"{key}: {infotext_utils.quote(value)}" for key, value in values.items())
    return f"{p.prompts[index]}\n{fields}"
