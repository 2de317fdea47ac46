"""How long a training step takes and how much memory it needs: hnloader beside plainly written loops, in one run.

    python -m lab.benchmarks.train_time [--quick] [--only MODEL ...] [--threads N] [--results FOLDER]

The plain loop is what one writes first: hooks on `to_k` and `to_v` that run the hypernetwork, each image and caption
encoded when its turn comes, all that autograd keeps by itself. The UNet is frozen in it, too: nobody trains otherwise.
The second plain loop keeps latents and text states as hnloader does, so that what is left is the step itself. All see
the same images, noise and noise levels, and begin with the same weights. Prints Markdown.
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
from hnloader.training import read_config
from hnloader.training.cache import Latents
from hnloader.training.dataset import read_folder
from hnloader.training.denoiser import Batch, Denoiser, Text
from hnloader.training.loop import Training
from lab.benchmarks import _models, _options, _report
from lab.benchmarks._measure import Memory, Rounds, Spread, memory_of, take_turns, timed
from lab.benchmarks._models import DEVICE, Subject
from lab.benchmarks._report import Target
from lab.benchmarks._ways import Hook, hook_projections

OURS, PLAIN, KEPT = "hnloader", "plain loop", "plain loop, latents and texts kept"
WAYS = (OURS, PLAIN, KEPT)
COMPARED_STEPS = 50


@dataclass(frozen=True)
class Bench:
    """A model to train on.

    Attributes:
        title: What it is.
        make: The pipeline, with true shapes and random weights where none are at hand.
        settings: Of the training, beside model, images and output.
        seconds: About how long the ways are timed.
        compared: Steps over which the losses are compared.
        has_targets: The targets apply to it.
    """

    title: str
    make: Callable[[], Any]
    settings: dict[str, object]
    seconds: float
    compared: int
    has_targets: bool = False


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        title: Of the model.
        rounds: Times of a step.
        memory: What a step asks for beyond what is held all the time, by way.
        held: Bytes that are held all the time: weights, optimizer and what is cached.
        aside: Bytes of them that hnloader would keep off a graphics card, which has room for the UNet then.
        once: Seconds that hnloader and the second plain loop spend once on each image, mirrored too, and caption.
        losses: Of the first steps, by way.
        has_targets: The targets apply.
        alone: On a graphics card: bytes that each way has on it at most, all weights counted; empty on the CPU.
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
        """The largest relative difference of hnloader's losses from the plain loop's."""
        pairs = zip(self.losses[OURS], self.losses[PLAIN], strict=True)
        return max(abs(one - two) / abs(two) for one, two in pairs)

    def peak(self, way: str) -> int:
        """Bytes at most at one time."""
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


class EncodingAnew:
    """In the place of `hnloader.training.cache.Cache`: nothing is kept."""

    def __init__(self, training: Training) -> None:
        self._cache = training.cache

    def latents(self, image: Any, *, flipped: bool, shift: tuple[int, int]) -> Latents:
        return self._cache._made_latents("", image, flipped, shift)

    def text(self, caption: str) -> Text:
        return self._cache._made_text("", caption)


class PlainLoop:
    """A training loop without any of hnloader's ways; only what is drawn at random is asked of `training`."""

    def __init__(self, training: Training, *, keeps: bool) -> None:
        self._training = training
        self._unet: nn.Module = training.denoiser.unet
        adapter: Any = training.adapter
        self.hypernetwork = adapter.hypernetwork
        self.parameters: list[nn.Parameter] = adapter.parameters
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=training.config.weight_decay)
        if not keeps:
            training.cache._store = lambda *_: None  # type: ignore[method-assign]
            training.cache = EncodingAnew(training)  # type: ignore[assignment]
        hook_projections(self._unet, lambda width, side: _hook(self.hypernetwork.side(width, side)))

    def step(self, number: int) -> float:
        training, config = self._training, self._training.config
        batch: Batch = training._batch(training._order[number - 1])
        alphas = training.denoiser.alphas.to(batch.latents.device)[batch.timesteps].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
        dtype = training.denoiser.dtype
        said = self._unet(noisy.to(dtype), batch.timesteps, batch.states.to(dtype)).sample.float()
        wanted = batch.noise
        ratio = (alphas / (1 - alphas)).view(-1)
        weight = ratio.clamp(max=config.min_snr) / ratio
        if training.denoiser.predicts == "v_prediction":
            wanted = alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * batch.latents
            weight = ratio.clamp(max=config.min_snr) / (ratio + 1)
        loss = ((said - wanted).square().mean(dim=(1, 2, 3)) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = training.rate.at(number, schedule=config.schedule, warmup=config.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def _hook(side: nn.Module) -> Hook:
    return lambda _, args: (side(args[0].float()).to(args[0].dtype),)


# -- measuring


def measure(bench: Bench, folder: Path) -> Result:
    """Compare the losses, then time the steps in turns, then count the memory of one."""
    pipeline = bench.make()
    images = draw_images("blueprint", folder / "images", count=4)
    alone = {way: _alone(bench, way, images, folder / "alone" / way) for way in WAYS if DEVICE.type == "cuda"}
    trainings = {way: _training(bench, pipeline, images, folder / way) for way in WAYS}
    once = timed(lambda: _fill(trainings[OURS])).wall
    steps: dict[str, Callable[[int], float]] = {
        OURS: trainings[OURS]._step,
        PLAIN: PlainLoop(trainings[PLAIN], keeps=False).step,
        KEPT: PlainLoop(trainings[KEPT], keeps=True).step,
    }
    # What was cached is the same for both.
    shutil.copytree(trainings[OURS].folder / "cache", trainings[KEPT].folder / "cache", dirs_exist_ok=True)
    with trainings[OURS].adapter.ready():
        return replace(_measured(bench, trainings, steps, once), alone=alone)


def _alone(bench: Bench, way: str, images: Path, folder: Path) -> int:
    """Bytes on the graphics card at most while one way trains for a few steps, with nothing else on it."""
    # cuBLAS takes memory for itself when it is first used; it counts for nobody.
    square = torch.ones(8, 8, device=DEVICE)
    nn.functional.linear(square, square, square[0])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    aside = ("vae", "text_encoder") if way == OURS else ()
    training = _training(bench, bench.make(), images, folder, aside)
    torch.cuda.reset_peak_memory_stats()
    step = training._step if way == OURS else PlainLoop(training, keeps=way == KEPT).step
    with training.adapter.ready():
        for number in range(1, 4):
            step(number)
    return torch.cuda.max_memory_allocated() - before


def _measured(
    bench: Bench, trainings: dict[str, Training], steps: dict[str, Callable[[int], float]], once: float
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
    aside = sum(_bytes(getattr(trainings[OURS].denoiser.pipeline, name)) for name in ("vae", "text_encoder"))
    return Result(bench.title, rounds, memory, held, aside, once, compared, bench.has_targets)


def _training(bench: Bench, pipeline: Any, images: Path, folder: Path, aside: Sequence[str] = ()) -> Training:
    """Trains on a UNet that shares all but the projections, which carry hooks, with the others."""
    given = {"model": "random", "images": str(images), "output": str(folder / "style.pt"), **bench.settings}
    config = read_config(None, given)
    config.check()
    twin = copy.copy(pipeline)
    twin.unet = Subject("", pipeline.unet, {}).copy()
    return Training(config, Denoiser(twin, aside), read_folder(images, config.data), _models.Nameless())


def _fill(training: Training) -> None:
    """Encode what a training on these images needs."""
    for image in training._images:
        training.cache.text(training._caption(image, 0))
        for flipped in (False, True):
            training.cache.latents(image, flipped=flipped)
    training.cache.text("")


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _held(training: Training) -> int:
    """Bytes of the tensors that live from step to step."""
    denoiser, cache = training.denoiser, training.cache
    pipeline = denoiser.pipeline
    total = sum(_bytes(module) for module in (denoiser.unet, pipeline.vae, pipeline.text_encoder))
    tensors = [*training.adapter.parameters]
    # Of AdamW: two for each parameter, whoever holds the optimizer.
    total += 2 * sum(parameter.numel() * parameter.element_size() for parameter in tensors)
    tensors += [latents.mean for latents in getattr(cache, "_latents", {}).values()] * 2
    tensors += [text.states for text in getattr(cache, "_texts", {}).values()]
    return total + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# -- which models


# A processor is not quick at bfloat16.
MODELS = ("bundled", "reduced", "full", *(["full in bfloat16"] if DEVICE.type == "cuda" else []))


def benches(*, quick: bool, only: Sequence[str] = MODELS) -> list[Bench]:
    """What is measured: of `MODELS`, those of `only`; with `quick`, the first of them at most."""
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
        {"data.resolution": 256, "learning_rate": "1e-4"},
        seconds=60,
        compared=COMPARED_STEPS,
        has_targets=True,
    )
    full = Bench(
        "SD 1 (860 M parameters), 512 x 512 images, batch 1",
        lambda: _sd1(full=True),
        {"data.resolution": 512, "learning_rate": "1e-4"},
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
    """Stable Diffusion 1's three networks with random weights; half the widths where not `full`."""
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
        # Made as transformers makes it: its buffers are not among those that can be filled afterwards.
        text_encoder=CLIPTextModel(shape).eval().to(DEVICE),
        tokenizer=CLIPTokenizer.from_pretrained(pipeline_folder(), subfolder="tokenizer", model_max_length=77),
        unet=_models.sd1(64, 1, full=full).model,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# -- what is printed


def result_table(results: list[Result]) -> str:
    """A line per model and way."""
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
    headers = ["model", "way", "one step", "steps per second, to plain", "step's memory", "", "with weights", ""]
    return _report.table(headers, rows, words=2)


def notes(results: list[Result]) -> str:
    """What the table does not hold."""
    lines = []
    for result in results:
        steps = len(result.losses[OURS])
        lines.append(
            f"- {result.title}: the losses of the first {steps} steps differ from the plain loop's by at most "
            f"{result.difference:.0e} of it. Encoding 4 images, mirrored too, and their captions takes "
            f"{_report.duration(result.once)}, once. {_on_a_card(result)}"
        )
    return "\n".join(lines)


def _on_a_card(result: Result) -> str:
    """What it takes of a graphics card, where the VAE and the text encoder lie aside; measured where there is one."""
    if result.alone:
        sizes = [f"{way} {_report.megabytes(result.alone[way])}" for way in WAYS]
        ratio = result.alone[OURS] / result.alone[PLAIN]
        return (
            f"Alone on the card, with all weights and the encoding: {', '.join(sizes)}; {ratio:.2f} of the plain loop."
        )
    held = result.peak(OURS) - result.aside
    ratio = held / result.peak(PLAIN)
    return (
        "On a graphics card, where the VAE and the text encoder lie aside, it would hold "
        f"{_report.megabytes(held)} at most, by the size of the tensors: {ratio:.2f} of the plain loop."
    )


def targets(results: list[Result]) -> list[Target]:
    """Of the models that they apply to."""
    found = []
    for result in results:
        if result.has_targets:
            memory = Spread.of([result.memory[OURS].peak / result.memory[PLAIN].peak])
            weights = Spread.of([result.peak(OURS) / result.peak(PLAIN)])
            least = result.held[OURS] / result.peak(PLAIN)
            found += [
                Target("a step to that of the plain loop", result.title, result.rounds.ratio(OURS, PLAIN), 0.8),
                Target("memory that a step asks for, to plain", result.title, memory, 0.8),
                Target("memory with all weights, to plain", result.title, weights, 0.8, least),
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
