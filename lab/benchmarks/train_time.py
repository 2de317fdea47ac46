"""Measure the time and memory of a training step: hnloader and plain loops, in the same run.

    python -m lab.benchmarks.train_time [--quick] [--only MODEL ...] [--threads N] [--results FOLDER]

The plain loop is the simplest one: hooks on `to_k` and `to_v` run the hypernetwork, each image and caption is encoded
in every step, and autograd keeps everything. Its UNet is frozen too. The second plain loop caches latents and text
states as hnloader does, so that only the step itself differs. All see the same images, noise and timesteps, and start
with the same weights. Prints Markdown.
"""

from __future__ import annotations

import copy
import gc
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hnloader.demo import pipeline_folder
from hnloader.demo.drawing import draw_images
from hnloader.pipelines import Model
from hnloader.training import read_config
from hnloader.training.cache import Latents
from hnloader.training.dataset import read_folder
from hnloader.training.denoiser import Batch, Denoiser, EncodedText
from hnloader.training.image_task import ImageTask
from hnloader.training.trainer import Trainer
from lab.benchmarks import _models, _options, _report
from lab.benchmarks._measure import Memory, Rounds, Spread, memory_of, take_turns, timed
from lab.benchmarks._models import DEVICE, Subject
from lab.benchmarks._report import Target
from lab.benchmarks._ways import Hook, hook_projections

OURS, PLAIN, CACHED = "hnloader", "plain loop", "plain loop, cached latents and texts"
WAYS = (OURS, PLAIN, CACHED)
COMPARED_STEPS = 50
# What plain loops train, with torch's optimizer.
_USUAL: dict[str, object] = {
    "optimizer": "adamw",
    "hypernetwork.layer_structure": [1, 2, 1],
    "hypernetwork.activation": "relu",
}


@dataclass(frozen=True)
class Bench:
    """A model to train on.

    Attributes:
        title: Name in tables.
        make: Returns the pipeline; most have random weights.
        settings: Trainer settings other than model, images and output.
        seconds: Approximate time for all ways.
        compared: Steps over which the losses are compared.
        has_targets: True if the targets apply.
    """

    title: str
    make: Callable[[], Any]
    settings: dict[str, object]
    seconds: float
    compared: int
    has_targets: bool = False


@dataclass(frozen=True)
class Result:
    """The measurements of a bench.

    Attributes:
        title: Title of the bench.
        rounds: Times of a step.
        memory: Memory of a step by way, without `held`.
        held: Bytes of weights, optimizer and caches by way.
        aside: Bytes of `held` that hnloader keeps off a GPU.
        once: Seconds that hnloader and the second plain loop need once to encode the images and captions.
        losses: Losses of the first steps by way.
        has_targets: True if the targets apply.
        alone: Peak bytes of each way on a GPU, including all weights; empty on the CPU.
    """

    title: str
    rounds: Rounds
    memory: dict[str, Memory]
    held: dict[str, int]
    aside: int
    once: float
    losses: dict[str, list[float]]
    has_targets: bool = False
    alone: dict[str, int] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        """Return the largest relative difference between the losses of hnloader and the plain loop."""
        pairs = zip(self.losses[OURS], self.losses[PLAIN], strict=True)
        return max(abs(one - two) / abs(two) for one, two in pairs)

    def peak(self, way: str) -> int:
        """Return the peak bytes of a way."""
        return self.held[way] + self.memory[way].peak

    def to_json(self) -> dict[str, object]:
        return {
            "model": self.title,
            "rounds": self.rounds.count,
            "once": self.once,
            "difference": self.difference,
            "alone_bytes": self.alone,
            "ways": {
                way: {
                    "seconds": self.rounds.seconds(way).to_json(),
                    "ratio": self.rounds.ratio(way, PLAIN).to_json(),
                    "step_bytes": self.memory[way].peak,
                    "peak_bytes": self.peak(way),
                    "losses": self.losses[way],
                }
                for way in WAYS
            },
        }


# -- the plain loops


class NoCache:
    """Replaces `hnloader.training.cache.Cache` and caches nothing."""

    def __init__(self, training: Trainer) -> None:
        self._cache = _task(training).batches.cache

    def latents(self, image: Any, *, flipped: bool, shift: tuple[int, int]) -> Latents:
        return self._cache._make_latents("", image, flipped, shift)

    def text(self, caption: str) -> EncodedText:
        return self._cache._make_text("", caption)


class PlainLoop:
    """A plain training loop; only random numbers come from `training`."""

    def __init__(self, training: Trainer, *, caches: bool) -> None:
        self._training = training
        self._unet: nn.Module = _task(training).denoiser.unet
        adapter: Any = training.adapter
        self.hypernetwork = adapter.hypernetwork
        self.parameters: list[nn.Parameter] = adapter.parameters
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=training.config.weight_decay)
        if not caches:
            _task(training).batches.cache._store = lambda *_: None  # type: ignore[method-assign]
            _task(training).batches.cache = NoCache(training)  # type: ignore[assignment]
        hook_projections(self._unet, lambda width, side: _hook(self.hypernetwork.side(width, side)))

    def step(self, number: int) -> float:
        training, config = self._training, self._training.config
        task = _task(training)
        batch: Batch = task.batches.training(task.sampler[number - 1], task.images)
        alphas = task.denoiser.alphas_cumprod.to(batch.latents.device)[batch.timesteps].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
        dtype = task.denoiser.dtype
        prediction = self._unet(noisy.to(dtype), batch.timesteps, batch.states.to(dtype)).sample.float()
        target = batch.noise
        ratio = (alphas / (1 - alphas)).view(-1)
        weight = ratio.clamp(max=config.snr_gamma) / ratio
        if task.denoiser.prediction_type == "v_prediction":
            target = alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * batch.latents
            weight = ratio.clamp(max=config.snr_gamma) / (ratio + 1)
        loss = ((prediction - target).square().mean(dim=(1, 2, 3)) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate.at(
                number, scheduler=config.lr_scheduler, warmup_steps=config.lr_warmup_steps
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def _hook(side: nn.Module) -> Hook:
    return lambda _, args: (side(args[0].float()).to(args[0].dtype),)


# -- measuring


def measure(bench: Bench, folder: Path) -> Result:
    """Compare the losses, time the steps in turns, and measure the memory of one step."""
    pipeline = bench.make()
    images = draw_images("blueprint", folder / "images", count=4)
    alone = {way: _alone(bench, way, images, folder / "alone" / way) for way in WAYS if DEVICE.type == "cuda"}
    trainings = {way: _training(bench, pipeline, images, folder / way) for way in WAYS}
    once = timed(lambda: _fill(trainings[OURS])).wall
    steps: dict[str, Callable[[int], float]] = {
        OURS: trainings[OURS].train_step,
        PLAIN: PlainLoop(trainings[PLAIN], caches=False).step,
        CACHED: PlainLoop(trainings[CACHED], caches=True).step,
    }
    # Both cache the same values.
    shutil.copytree(trainings[OURS].folder / "cache", trainings[CACHED].folder / "cache", dirs_exist_ok=True)
    with trainings[OURS].adapter.attached():
        return replace(_measured(bench, trainings, steps, once), alone=alone)


def _alone(bench: Bench, way: str, images: Path, folder: Path) -> int:
    """Return the peak bytes on a GPU while only one way trains for a few steps."""
    # cuBLAS allocates memory at its first use, which must not count.
    square = torch.ones(8, 8, device=DEVICE)
    nn.functional.linear(square, square, square[0])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    aside = ("vae", "text_encoder") if way == OURS else ()
    training = _training(bench, bench.make(), images, folder, aside)
    torch.cuda.reset_peak_memory_stats()
    step = training.train_step if way == OURS else PlainLoop(training, caches=way == CACHED).step
    with training.adapter.attached():
        for number in range(1, 4):
            step(number)
    return torch.cuda.max_memory_allocated() - before


def _measured(
    bench: Bench, trainings: dict[str, Trainer], steps: dict[str, Callable[[int], float]], once: float
) -> Result:
    losses: dict[str, list[float]] = {way: [] for way in WAYS}

    def run(way: str) -> None:
        losses[way].append(steps[way](len(losses[way]) + 1))

    for number in range(bench.compared):
        print(f"... {bench.title}: step {number + 1} of {bench.compared}", file=sys.stderr, flush=True)
        for way in WAYS:
            run(way)
    compared = {way: each[: bench.compared] for way, each in losses.items()}
    rounds = take_turns({way: partial(run, way) for way in WAYS}, seconds=bench.seconds)
    memory = {way: memory_of(partial(run, way)) for way in WAYS}
    held = {way: _held(trainings[way]) for way in WAYS}
    aside = sum(_bytes(getattr(_task(trainings[OURS]).denoiser.pipeline, name)) for name in ("vae", "text_encoder"))
    return Result(bench.title, rounds, memory, held, aside, once, compared, bench.has_targets)


def _training(bench: Bench, pipeline: Any, images: Path, folder: Path, aside: Sequence[str] = ()) -> Trainer:
    """Make a training run whose UNet shares everything except the projections, which have hooks."""
    given = {"model": "random", "images": str(images), "output": str(folder / "style.pt"), **_USUAL, **bench.settings}
    config = read_config(None, given)
    config.check()
    twin = copy.copy(pipeline)
    twin.unet = Subject("", pipeline.unet, {}).copy()
    task = ImageTask(config, Denoiser(twin, aside), read_folder(images, config.data), Model(twin, "random"))
    return Trainer(task)


def _task(training: Trainer) -> ImageTask:
    assert isinstance(training.task, ImageTask)
    return training.task


def _fill(training: Trainer) -> None:
    """Encode all images and captions of a training run."""
    task = _task(training)
    for image in task.images:
        task.batches.cache.text(task.captioner(image, 0))
        for flipped in (False, True):
            task.batches.cache.latents(image, flipped=flipped)
    task.batches.cache.text("")


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _held(training: Trainer) -> int:
    """Return the bytes of the tensors that persist between steps."""
    task = _task(training)
    denoiser, cache = task.denoiser, task.batches.cache
    pipeline = denoiser.pipeline
    total = sum(_bytes(module) for module in (denoiser.unet, pipeline.vae, pipeline.text_encoder))
    tensors = [*training.adapter.parameters]
    # AdamW has two tensors for each parameter.
    total += 2 * sum(parameter.numel() * parameter.element_size() for parameter in tensors)
    tensors += [latents.mean for latents in getattr(cache, "_latents", {}).values()] * 2
    tensors += [text.states for text in getattr(cache, "_texts", {}).values()]
    return total + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# -- which models


# Most processors are slow in bfloat16.
MODELS = ("bundled", "reduced", "full", *(["full in bfloat16"] if DEVICE.type == "cuda" else []))


def benches(*, quick: bool, only: Sequence[str] = MODELS) -> list[Bench]:
    """Return the benches of the models `only`; with `quick`, just the first."""
    bundled = Bench(
        "Bundled pipeline, 192 x 192 images, batch 2",
        _bundled,
        {"batch_size": 2, "learning_rate": "1e-3"},
        seconds=2 if quick else 20,
        compared=4 if quick else COMPARED_STEPS,
    )
    if quick:
        return [bundled]
    reduced = Bench(
        "SD 1, reduced (half the widths), 256 x 256 images, batch 1",
        lambda: _sd1(full=False),
        {"data.resolution": 256, "learning_rate": "1e-4", "batch_size": 1},
        seconds=60,
        compared=COMPARED_STEPS,
        has_targets=True,
    )
    full = Bench(
        "SD 1 (860 M parameters), 512 x 512 images, batch 1",
        lambda: _sd1(full=True),
        {"data.resolution": 512, "learning_rate": "1e-4", "batch_size": 1},
        seconds=150,
        compared=2 if DEVICE.type == "cpu" else COMPARED_STEPS,
        has_targets=True,
    )
    half = replace(full, title=f"{full.title}, bfloat16", make=lambda: _sd1(full=True).to(torch.bfloat16))
    return [bench for name, bench in zip(MODELS, (bundled, reduced, full, half), strict=False) if name in only]


def _bundled() -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(pipeline_folder(), safety_checker=None).to(DEVICE)


def _sd1(*, full: bool) -> Any:
    """Make the three networks of SD 1 with random weights; if not `full`, with half the widths."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    channels = (128, 256, 512, 512) if full else (64, 128, 256, 256)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = _models.filled(
        lambda: AutoencoderKL(block_out_channels=channels, layers_per_block=2, latent_channels=4, **blocks),
        torch.float32,
    )
    shape = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    return StableDiffusionPipeline(
        vae=vae,
        # Not with `filled`, which cannot restore its buffers.
        text_encoder=CLIPTextModel(shape).eval().to(DEVICE),
        tokenizer=CLIPTokenizer.from_pretrained(pipeline_folder(), subfolder="tokenizer", model_max_length=77),
        unet=_models.sd1(64, 1, full=full).model,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# -- what is printed


def result_table(results: list[Result]) -> str:
    """Return a table with a row for each model and way."""
    rows = []
    for result in results:
        for way in WAYS:
            speed = result.rounds.ratio(PLAIN, way)
            memory = result.memory[way].peak / result.memory[PLAIN].peak
            rows.append(
                [
                    result.title if way == OURS else "",
                    way,
                    _report.duration(result.rounds.seconds(way).median),
                    "" if way == PLAIN else _report.with_spread(speed),
                    _report.megabytes(result.memory[way].peak),
                    "" if way == PLAIN else f"{memory:.2f}",
                    _report.megabytes(result.peak(way)),
                    "" if way == PLAIN else f"{result.peak(way) / result.peak(PLAIN):.2f}",
                ]
            )
    headers = [
        "model",
        "way",
        "one step",
        "steps per second / plain",
        "memory of a step",
        "/ plain",
        "with weights",
        "/ plain",
    ]
    return _report.table(headers, rows, words=2)


def notes(results: list[Result]) -> str:
    """Return notes on the losses, the encoding and GPUs."""
    lines = []
    for result in results:
        steps = len(result.losses[OURS])
        lines.append(
            f"- {result.title}: the losses of the first {steps} steps differ from the plain loop by at most "
            f"{result.difference:.0e} (relative). Encoding 4 images, also mirrored, and their captions takes "
            f"{_report.duration(result.once)} once. {_on_a_card(result)}"
        )
    return "\n".join(lines)


def _on_a_card(result: Result) -> str:
    """Describe the memory on a GPU: measured if there is one, otherwise computed."""
    if result.alone:
        sizes = [f"{way} {_report.megabytes(result.alone[way])}" for way in WAYS]
        ratio = result.alone[OURS] / result.alone[PLAIN]
        return f"Peak on the GPU with all weights and the encoding: {', '.join(sizes)}; {ratio:.2f} of the plain loop."
    held = result.peak(OURS) - result.aside
    ratio = held / result.peak(PLAIN)
    return (
        "On a GPU, where the VAE and the text encoder stay on the CPU, the tensors would take "
        f"{_report.megabytes(held)} at most: {ratio:.2f} of the plain loop."
    )


def targets(results: list[Result]) -> list[Target]:
    """Return the targets of the benches that have them."""
    found = []
    for result in results:
        if result.has_targets:
            memory = Spread.of([result.memory[OURS].peak / result.memory[PLAIN].peak])
            weights = Spread.of([result.peak(OURS) / result.peak(PLAIN)])
            least = result.held[OURS] / result.peak(PLAIN)
            found += [
                Target("step, relative to the plain loop", result.title, result.rounds.ratio(OURS, PLAIN), 0.8),
                Target("memory of a step, relative to the plain loop", result.title, memory, 0.8),
                Target("memory with all weights, relative to the plain loop", result.title, weights, 0.8, least),
            ]
    return found


def main() -> None:
    options = _options.parse(__doc__, MODELS)
    results = []
    for bench in benches(quick=options.quick, only=options.only):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(bench, Path(folder)))
        gc.collect()
    print(f"\n### Training\n\n{result_table(results)}\n\n{notes(results)}")
    goals = targets(results)
    if goals:
        print(f"\n### Targets of training\n\n{_report.target_table(goals)}")
    _report.save_json(
        options.results,
        "train_time",
        {
            "machine": _report.machine(),
            "results": [result.to_json() for result in results],
            "targets": [goal.to_json() for goal in goals],
        },
    )


if __name__ == "__main__":
    main()
