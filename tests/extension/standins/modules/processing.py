"""Jobs of the stand-in host: batches, hires pass, refiner, interruption, infotext."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import extra_networks, infotext_utils, scripts, sd_models, shared
from modules.script_callbacks import CFGDenoiserParams, run
from torch import Tensor


class InterruptedException(BaseException):
    """What an interruption raises inside sampling; no `Exception`, as in the hosts."""


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
    alwayson_scripts: dict[str, list[Any]] = field(default_factory=dict)
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
class Processed:
    images: list[Tensor]
    infotexts: list[str]
    comments: str


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Make the pictures of a job. As in the hosts, an error leaves without deactivating anything."""
    p.scripts.call("before_process", p)
    sd_models.reload_model_weights()
    prompts = p.prompt if isinstance(p.prompt, list) else [p.prompt] * p.batch_size * p.n_iter
    p.all_prompts, p.all_hr_prompts = list(prompts), [p.hr_prompt or prompt for prompt in prompts]
    p.extra_network_data = {}
    p.scripts.call("process", p)
    images, infotexts = [], []
    with torch.no_grad():
        for iteration in range(p.n_iter):
            p.iteration = iteration
            if shared.state.interrupted:
                break
            latents, texts = _batch(p)
            images += list(latents)
            infotexts += texts
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(images, infotexts, "".join(f"{comment}\n" for comment in p.comments))
    p.scripts.call("postprocess", p, processed=processed)
    return processed


def _batch(p: StableDiffusionProcessing) -> tuple[Tensor, list[str]]:
    sd_models.reload_model_weights()  # after a refiner or a hires checkpoint
    part = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
    p.prompts = p.all_prompts[part]
    p.seeds = [p.seed + index for index in range(part.start, part.stop)]
    p.scripts.call("before_process_batch", p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds)
    p.prompts, p.extra_network_data = extra_networks.parse_prompts(p.prompts)
    p.hr_prompts, p.hr_extra_network_data = extra_networks.parse_prompts(p.all_hr_prompts[part])
    if not p.disable_extra_networks:
        _activate(p, p.extra_network_data)
    p.scripts.call("process_batch", p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds)
    p.setup_conds()
    noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in p.seeds]
    latents = _sample(p, torch.stack(noise))
    if p.enable_hr and not shared.state.interrupted:
        latents = _hires(p, latents)
    p.prompts = p.all_prompts[part]  # with their tags again, for the infotext
    p.scripts.call("postprocess_batch", p, images=latents, batch_number=p.iteration)
    return latents, [create_infotext(p, index) for index in range(len(p.prompts))]


def _hires(p: StableDiffusionProcessing, latents: Tensor) -> Tensor:
    if p.hr_checkpoint:
        sd_models.reload_model_weights(p.hr_checkpoint)
    p.is_hr_pass = True
    if not p.disable_extra_networks:
        _activate(p, p.hr_extra_network_data)
    p.setup_conds()
    p.scripts.call("before_hr", p)
    latents = _sample(p, torch.nn.functional.interpolate(latents, scale_factor=2.0))
    p.is_hr_pass = False
    return latents


def _activate(p: StableDiffusionProcessing, data: dict) -> None:
    extra_networks.activate(p, data)
    p.scripts.call("after_extra_networks_activate", p, batch_number=p.iteration, extra_network_data=data)


def _sample(p: StableDiffusionProcessing, x: Tensor) -> Tensor:
    c, uc = p.conditioning
    p.scripts.call("process_before_every_sampling", p, x=x, noise=x, c=c, uc=uc)
    shared.state.sampling_steps = p.steps
    try:
        for step in range(p.steps):
            shared.state.sampling_step = step
            p.at_step(step)
            x = _denoise(p, x, step)
    except InterruptedException:
        pass  # the picture as far as it is
    return x


def _denoise(p: StableDiffusionProcessing, x: Tensor, step: int) -> Tensor:
    if shared.state.interrupted or shared.state.skipped:
        raise InterruptedException
    if p.refiner and step / p.steps >= p.refiner_switch_at and shared.sd_model.name != p.refiner:
        sd_models.reload_model_weights(p.refiner)  # no network is activated anew
        p.setup_conds()
    c, uc = p.conditioning
    sigma = torch.full((len(x),), 1000.0 * (1 - step / p.steps))
    params = CFGDenoiserParams(x, None, sigma, step, p.steps, c, uc)
    run("cfg_denoiser", params)
    context = torch.cat([params.text_cond, params.text_uncond])
    unet = sd_models.unet_of(shared.sd_model)
    cond, uncond = unet(torch.cat([x, x]), torch.cat([sigma, sigma]), context=context).chunk(2)
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
