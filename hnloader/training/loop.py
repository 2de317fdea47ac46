"""The training itself: steps, measurements, saved states and the file that comes out."""

from __future__ import annotations

import contextlib
import math
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hnloader.errors import ConfigError, DivergedError, HypernetworkError
from hnloader.files import held, make_folder, remove_leftovers
from hnloader.training import previews, schema
from hnloader.training.adapters import Adapter, Checkpoint, load_companion, make_adapter
from hnloader.training.cache import Cache, Latents
from hnloader.training.config import Config
from hnloader.training.dataset import (
    Dataset,
    TrainingImage,
    count_with_word,
    fingerprint_of,
    note_long_captions,
    remarks,
    trained_caption,
)
from hnloader.training.denoiser import Batch, Denoiser, Text, token_counter
from hnloader.training.optimizers import make_optimizer, set_rate
from hnloader.training.pixels import bucket
from hnloader.training.rates import parse_rate
from hnloader.training.report import write_report
from hnloader.training.reproducible import reproducible, without
from hnloader.training.sampling import Draw, Order, chance, held_out, random_of, whole
from hnloader.training.state import State, load_state, save_state, states
from hnloader.training.trackers import Trackers

# Where the held-out loss is measured: fractions of the noise levels, each with noise of its own.
MEASURED_AT = tuple((index + 0.5) / 8 for index in range(8))
# Where no images are held out, the loss before the first step and after the last is that of so many others.
_MEASURED = 2
# After so many measurements, none of them better than before the first step, the user hears of it.
_PATIENT_FOR = 3
# After so many steps without any gradient nothing is trained.
_MOST_IDLE = 10
# The logged loss is a running mean, for a single step says more about its noise level than about the training.
_SMOOTHING = 0.98

Why = Literal["done", "interrupted", "no longer better"]


@dataclass(frozen=True)
class Event:
    """How far the training is.

    Attributes:
        step, steps: done and in all.
        loss: running mean of the training loss.
        rate: learning rate.
        held_out: newest loss on the images that were kept for measuring; None before the first.
        saved: the state that was just written, if one was.
        message: something to tell the user, if there is.
    """

    step: int
    steps: int
    loss: float
    rate: float
    held_out: float | None = None
    saved: Path | None = None
    message: str = ""


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        output: the file.
        step: steps done.
        why: why it ended.
        best: lowest held-out loss, the step of it and the file with the weights of then; None without measuring.
        history: one entry per measurement: step, loss, rate, held_out; the first, of step 0, has no loss.
        first: held-out loss before the first step (that of training images where none are held out); None without
            measuring.
    """

    output: Path
    step: int
    why: Why
    best: tuple[float, int, Path] | None
    history: list[dict[str, float]] = field(repr=False)
    first: float | None = None


def folder_of(output: Path) -> Path:
    """Where a training keeps its states, its cache and its previews: beside the output."""
    return output.with_name(output.stem + ".training")


def alone(output: Path) -> contextlib.AbstractContextManager[None]:
    """While this holds, no other program trains the same output; HypernetworkError where one does already."""
    folder = folder_of(output)
    return held(
        folder / "lock",
        f"another training of {output} is running: its states lie in {folder}. Wait for it, or choose another output",
    )


class Training:
    """One training, from `run` to its end. After an interruption, another one goes on from the saved state.

    Args:
        config: checked settings.
        denoiser: the model.
        dataset: the images.
        checkpoint: the model's name and hash, for the file's metadata.
        processes: for a training on several devices: the `accelerate.Accelerator`, which adds gradients up.
    """

    def __init__(
        self, config: Config, denoiser: Denoiser, dataset: Dataset, checkpoint: Checkpoint, processes: Any = None
    ) -> None:
        self.config, self.denoiser, self.checkpoint = config, denoiser, checkpoint
        self.output = Path(config.output)
        self.folder = folder_of(self.output)
        # Without hooks on it, which come later, the UNet's weights have the names that every run sees.
        model, images = denoiser.fingerprint("unet"), fingerprint_of(dataset)
        self.state = State(config=schema.plain(config), model=model, images=images)
        self.resolution = _resolution(config, denoiser)
        self.cache = Cache(self.folder / "cache", denoiser, config.data, self.resolution)
        self.dataset = dataset
        self.adapter: Adapter = make_adapter(config, denoiser)
        self.state.before = self.adapter.before
        self.rate = parse_rate(config.rate_text, config.steps, self.state.before)
        self.optimizer = make_optimizer(config.optimizer, self.adapter.parameters, self.rate.at(1), config.weight_decay)
        self.average = [p.detach().clone() for p in self.adapter.parameters] if config.ema else None
        self.scaler = make_scaler(denoiser)
        self._count, self._room = self._counter()
        self._captions: dict[str, str] = {}
        note_long_captions(dataset, self._caption, self._count, self._room)
        self.notes = [*remarks(dataset, config.data), *_starting_notes(config, self.state.before)]
        self._trackers = Trackers(config, self.folder)
        self._processes = processes
        self._stop = False
        self._saved_step = 0
        self._idle_steps: int | None = 0  # None once a gradient has arrived
        trained, kept = held_out(len(dataset.images), config.data.held_out, config.seed)
        self._images = [dataset.images[index] for index in trained]
        self.held_out = [dataset.images[index] for index in kept]
        sizes = [self._size(image) for image in self._images]
        self._order = Order(sizes, config.batch_size, config.data.repeats, config.seed)
        if config.start_from and config.method == "hypernetwork":
            unused = load_companion(Path(config.start_from), self.optimizer, config.optimizer)
            if unused is not None:
                self.notes.append(f"the optimizer begins anew: {unused}")

    # -- beginning and ending

    def resume(self) -> bool:
        """Go on from the newest saved state that can be read. False when there is none.

        Raises:
            HypernetworkError: the states there are of another architecture or optimizer.
        """
        found = states(self.folder)
        for path in reversed(found):
            try:
                loaded = load_state(path, self.adapter.parameters, self.average, self.optimizer)
                if loaded.scaler:
                    self._load_scaler(path, loaded.scaler)
            except HypernetworkError as error:
                if path == found[0]:
                    raise
                self.notes.append(f"skipped: {error}")
                continue
            self._compare(path, loaded)
            self.state = loaded
            if loaded.step:  # it began before, perhaps from a file that has been written to since then
                beginning = set(_starting_notes(self.config, self.adapter.before))
                self.notes = [note for note in self.notes if note not in beginning]
            self._saved_step = self.state.step
            self.rate = parse_rate(self.config.rate_text, self.config.steps, self.state.before)
            before, now = self.state.config, schema.plain(self.config)
            changed = sorted(key for key in now if key != "steps" and now[key] != before.get(key))
            if changed:
                self.notes.append(f"changed since the state was saved: {', '.join(changed)}")
            self.state.config = now
            return True
        return False

    def _load_scaler(self, path: Path, state: dict[str, Any]) -> None:
        wanted = self.scaler.state_dict()
        if wanted and {key: type(value) for key, value in state.items()} != {k: type(v) for k, v in wanted.items()}:
            raise HypernetworkError(f"{path} is damaged: its scaler is {state}. Resume from another state")
        self.scaler.load_state_dict(state)

    def _compare(self, path: Path, loaded: State) -> None:
        """Refuse a state of another model; remark on other images. What stands in `self.state` is of this run."""
        now, same_precision = self.state, loaded.config.get("precision") == self.config.precision
        if loaded.model and same_precision and loaded.model != now.model:
            raise ConfigError(
                f"{path} was trained on another model than {self.checkpoint.name}: its setting model was "
                f"{loaded.config.get('model')}. Go on with that one, or begin a training of this model with start_from"
            )
        if loaded.images and loaded.images != now.images:
            self.notes.append("the images are others than when the state was saved")
        loaded.model, loaded.images = now.model, now.images

    def stop(self) -> None:
        """Ask the training to end after the present step, with everything saved; callable from any thread."""
        self._stop = True

    def run(self, report: Callable[[Event], None] | None = None) -> Result:
        """Train to the end, and write the output.

        Args:
            report: called after each step.

        Raises:
            DivergedError: the loss became NaN or infinite; saved states and the output of the last stand.
            HypernetworkError: the output cannot be written, or another training of it is running.
        """
        with alone(self.output) if self._is_main else contextlib.nullcontext():
            if self._is_main:
                self._clear_up()
            return self._run(report or (lambda event: None))

    def _run(self, tell: Callable[[Event], None]) -> Result:
        started = self._trackers.start() if self._is_main else ""
        for note in [*self.notes, started]:
            self._tell(tell, note)
        why: Why = "done"
        with _signals(self.stop), self.adapter.ready(), self._order_of_sums():
            if self.state.step == 0:
                self._measure_first()
            for step in range(self.state.step + 1, self.config.steps + 1):
                began = time.monotonic()
                loss = self._step_somehow(step, tell)
                mean = self.state.loss
                self.state.loss = loss if mean is None else _SMOOTHING * mean + (1 - _SMOOTHING) * loss
                self.state.step = step
                self.state.seconds += time.monotonic() - began
                better = self._measure(step)
                saved, message = self._save(step)
                tell(self._event(saved, message or self._preview(step) or self._track(loss)))
                if len(self._losses) == _PATIENT_FOR and self.state.history[-1]["step"] == step:
                    self._tell(tell, self._nothing_better())
                if self._stop:
                    why = "interrupted"
                    break
                if not better:
                    why = "no longer better"
                    break
            if self._saved_step != self.state.step:
                saved, message = self._save(self.state.step, now=True)
                tell(self._event(saved, message))
            verdict = self._nothing_better()
            self._tell(tell, verdict)
        self._trackers.end()
        self._write(self.output)
        self._report(why, verdict)
        best = None
        if self.state.best is not None:
            best = (*self.state.best, self._best_path)
        return Result(self.output, self.state.step, why, best, self.state.history, self.state.first)

    def _tell(self, tell: Callable[[Event], None], message: str) -> None:
        if message:
            tell(self._event(message=message))

    def _clear_up(self) -> None:
        """Remove what a run that was killed had half written."""
        remove_leftovers([self.folder, self.folder / "cache", self.folder / "previews", self.output.parent])

    # -- a step

    def _order_of_sums(self) -> contextlib.AbstractContextManager[None]:
        return reproducible(self.denoiser.device) if self.config.reproducible else contextlib.nullcontext()

    def _step_somehow(self, step: int, tell: Callable[[Event], None]) -> float:
        """One step; where torch has no way of it that gives the same bits each time, as it can."""
        try:
            return self._step(step)
        except RuntimeError as error:
            if not without(error):
                raise
            reason = textwrap.shorten(str(error), 200)
        tell(self._event(message=f"run again, this training will end in slightly other weights: {reason}"))
        self.optimizer.zero_grad(set_to_none=True)
        return self._step(step)

    def _step(self, step: int) -> float:
        """One step; returns its loss."""
        config = self.config
        # Dropout takes torch's own random numbers.
        torch.manual_seed(whole(random_of(config.seed, "dropout", step), 2**31))
        losses: list[Tensor] = []
        with self.adapter.acting(training=True):
            for part in range(config.accumulation):
                draws = self._order[self._batch_number(step, part)]
                batch = self._batch(draws)
                loss = self.denoiser.losses(batch, config.min_snr).mean()
                if config.prior.weight:
                    loss = loss + config.prior.weight * self._prior_loss(batch, draws)
                self.scaler.scale(loss / config.accumulation).backward()
                losses.append(loss.detach())
        # Read only now: a graphics card is waited for once, with the whole step before it.
        total = sum(float(loss) / config.accumulation for loss in losses)
        self._share_gradients()
        self._check_gradients(step)
        self.scaler.unscale_(self.optimizer)
        if not math.isfinite(total) or not (self._finite_gradients() or self._may_lower_the_scale()):
            raise self._diverged(step, total)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters, config.clip)
        set_rate(self.optimizer, self.rate.at(step, schedule=config.schedule, warmup=config.warmup))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            with torch.no_grad():
                for kept, parameter in zip(self.average, self.adapter.parameters, strict=True):
                    kept.lerp_(parameter, 1 - min(config.ema, step / (step + 9)))
        return total

    def _batch_number(self, step: int, part: int) -> int:
        index = (step - 1) * self.config.accumulation + part
        if self._processes is None:
            return index
        return int(index * self._processes.num_processes + self._processes.process_index)

    def _batch(self, draws: tuple[Draw, ...]) -> Batch:
        """What the UNet sees for these draws; everything random follows from their numbers."""
        config, data = self.config, self.config.data
        latents: list[Latents] = []
        captions: list[str] = []
        drawn: list[Tensor] = []
        noise: list[Tensor] = []
        times: list[int] = []
        for draw in draws:
            random = random_of(config.seed, "draw", draw.number)
            image = self._images[draw.image]
            flipped = chance(random) < 0.5 and data.flip
            silent = chance(random) < data.caption_dropout
            caption = self._caption(image, whole(random, 2**31))
            found = self.cache.latents(image, flipped=flipped, shift=_shift(random, data.shift))
            latents.append(found)
            captions.append("" if silent and config.method == "hypernetwork" else caption)
            drawn.append(found.mean + found.deviation * torch.randn(found.mean.shape, generator=random))
            offset = torch.randn((len(found.mean), 1, 1), generator=random) * config.noise_offset
            noise.append(torch.randn(found.mean.shape, generator=random) + offset)
            times.append(whole(random, len(self.denoiser.alphas)))
        return self._made_batch(latents, self.adapter.texts(captions, self.cache), drawn, noise, times)

    def _made_batch(
        self, latents: list[Latents], texts: list[Text], drawn: list[Tensor], noise: list[Tensor], times: list[int]
    ) -> Batch:
        device = self.denoiser.device
        masks = [found.mask if found.mask is not None else torch.ones(1, *found.mean.shape[-2:]) for found in latents]
        pooled = [text.pooled for text in texts if text.pooled is not None]
        sizes = torch.tensor([found.sizes for found in latents])
        return Batch(
            torch.stack(drawn).to(device),
            torch.stack(noise).to(device),
            torch.tensor(times, device=device),
            torch.stack([text.states for text in texts]).to(device),
            torch.stack(pooled).to(device) if pooled else None,
            sizes.to(device) if self.denoiser.is_xl else None,
            torch.stack(masks).to(device) if self.config.data.masks else None,
        )

    def _prior_loss(self, batch: Batch, draws: tuple[Draw, ...]) -> Tensor:
        """How far other prompts moved from what the model says without what is trained."""
        prompts = self.config.prior.prompts
        texts = []
        for draw in draws:
            prompt = prompts[whole(random_of(self.config.seed, "prior", draw.number), len(prompts))]
            texts.append(self.cache.text(prompt))
        pooled = [text.pooled for text in texts if text.pooled is not None]
        other = Batch(
            batch.latents,
            batch.noise,
            batch.timesteps,
            torch.stack([text.states for text in texts]).to(batch.latents.device),
            torch.stack(pooled).to(batch.latents.device) if pooled else None,
            batch.sizes,
        )
        with torch.no_grad(), self.adapter.idle():
            before, _ = self.denoiser.predict(other)
        said, _ = self.denoiser.predict(other)
        return torch.nn.functional.mse_loss(said, before)

    def _share_gradients(self) -> None:
        if self._processes is None or self._processes.num_processes == 1:
            return
        for parameter in self.adapter.parameters:
            if parameter.grad is not None:
                parameter.grad = self._processes.reduce(parameter.grad, reduction="mean")

    def _check_gradients(self, step: int) -> None:
        """Raise HypernetworkError where no gradient arrives at what is trained."""
        if self._idle_steps is None:
            return
        gradients = [p.grad for p in self.adapter.parameters if p.grad is not None]
        if any(bool(gradient.any()) for gradient in gradients):
            self._idle_steps = None
            return
        self._idle_steps += 1
        if not gradients or self._idle_steps == _MOST_IDLE or step == self.config.steps:
            advice = "Check hypernetwork.widths, activation and initialization, or what start_from names"
            if self.config.method == "embedding":
                advice = "Check that the captions that the model reads have its word, or shorten them"
            raise HypernetworkError(
                f"step {step}: no gradient arrives at the {self.config.method}, so nothing is trained. {advice}"
            )

    def _finite_gradients(self) -> bool:
        return all(bool(torch.isfinite(p.grad).all()) for p in self.adapter.parameters if p.grad is not None)

    def _may_lower_the_scale(self) -> bool:
        """Gradients that are too large for float16 cost a step, after which the losses are scaled by less."""
        return bool(self.scaler.is_enabled() and self.scaler.get_scale() > 1)

    def _diverged(self, step: int, loss: float) -> DivergedError:
        saved = states(self.folder)
        kept = f"the state before it is {saved[-1]}" if saved else "no state was saved before it"
        return DivergedError(
            f"the loss became {loss:g} at step {step}: the training diverged; {kept}. Lower learning_rate (now "
            f"{self.rate.at(step):g}), or raise warmup, or set clip; then go on with --resume"
        )

    # -- measuring and saving

    def _measure(self, step: int) -> bool:
        """Measure the held-out loss when it is time; False when it was not better for too long."""
        config = self.config
        last = step == config.steps
        if not config.measure_every or not (step % config.measure_every == 0 or last):
            return True
        entry = {"step": float(step), "loss": self.state.loss or 0.0, "rate": self.optimizer.param_groups[0]["lr"]}
        self.state.history.append(entry)
        if not self.held_out:
            return True
        entry["held_out"] = loss = self.held_out_loss()
        if math.isfinite(loss) and (self.state.best is None or loss < self.state.best[0]):
            self.state.best, self.state.bad = (loss, step), 0
            with contextlib.suppress(HypernetworkError):  # a full disk is told when the state is saved
                self._write(self._best_path)
        else:
            self.state.bad += 1
        return not config.patience or self.state.bad < config.patience

    def _measure_first(self) -> None:
        """Measure before the first step, so that a training that makes nothing better is noticed."""
        if not self.config.measure_every:
            return
        self.state.first = loss = self._fixed_loss(self._measured)
        if self.held_out:
            rate = self.optimizer.param_groups[0]["lr"]
            self.state.history.append({"step": 0.0, "rate": rate, "held_out": loss})

    @property
    def _measured(self) -> list[TrainingImage]:
        """The images whose loss before the first step is kept."""
        return self.held_out or self._images[:_MEASURED]

    @property
    def _losses(self) -> list[tuple[float, int]]:
        """The held-out losses since the first step, with their steps."""
        history = self.state.history
        return [(each["held_out"], int(each["step"])) for each in history if "held_out" in each and each["step"] > 0]

    def _nothing_better(self) -> str:
        """Say so where no loss was lower than before the first step; empty where one was, or nothing was measured."""
        first, config = self.state.first, self.config
        if first is None:
            return ""
        if self.held_out:
            whose, losses = "held-out loss", self._losses
        elif self.state.step >= config.steps:
            whose, losses = "loss on the training images", [(self._fixed_loss(self._measured), self.state.step)]
        else:
            return ""
        finite = [found for found in losses if math.isfinite(found[0])]
        lowest = min(finite, default=None)
        if not losses:
            return ""
        newest = losses[-1][0]
        if lowest is not None and lowest[0] < first:
            if newest < first:
                return ""
            return (
                f"the {whose} was {first:.4g} before the first step, fell to {lowest[0]:.4g} at step {lowest[1]:,} "
                f"and is {newest:.4g} now. Take {self._best_path}, or lower learning_rate (now {config.rate_text}) "
                "and begin with --restart"
            )
        since = f"the lowest since then is {lowest[0]:.4g} at step {lowest[1]:,}" if lowest else "it is not finite now"
        return (
            f"nothing is better than before: the {whose} was {first:.4g} before the first step, and {since}. Lower "
            f"learning_rate (now {config.rate_text}) or raise warmup, and begin with --restart"
        )

    def held_out_loss(self) -> float:
        """The loss on the images that are not trained on, always at the same noise and noise levels."""
        return self._fixed_loss(self.held_out)

    @torch.no_grad()
    def _fixed_loss(self, images: list[TrainingImage]) -> float:
        """The loss on some images, always at the same noise and noise levels."""
        losses: list[float] = []
        with self.showing():
            for index, image in enumerate(images):
                found = self.cache.latents(image)
                text = self.adapter.texts([self._caption(image, 0)], self.cache)
                for place, share in enumerate(MEASURED_AT):
                    noise = torch.randn(found.mean.shape, generator=random_of(0, "held out", index * 16 + place))
                    time = int(share * (len(self.denoiser.alphas) - 1))
                    batch = self._made_batch([found], text, [found.mean], [noise], [time])
                    losses.append(float(self.denoiser.losses(batch, self.config.min_snr).mean()))
        return sum(losses) / len(losses)

    def _save(self, step: int, *, now: bool = False) -> tuple[Path | None, str]:
        """Save the state when it is time, or now; the path, and what went wrong."""
        config = self.config
        if not (now or step % config.save_every == 0 or step == config.steps):
            return None, ""
        if not self._is_main:
            return None, ""
        self.state.scaler = self.scaler.state_dict()
        try:
            path = save_state(
                self.folder, self.state, self.adapter.parameters, self.average, self.optimizer, config.keep
            )
        except HypernetworkError as error:
            return None, f"the state of step {step} is not saved: {error}. The training goes on."
        self._saved_step = step
        return path, ""

    def _preview(self, step: int) -> str:
        """Make previews when it is time; returns what went wrong with them, which stops nothing."""
        config = self.config.previews
        last = step == self.config.steps
        if not config.every or not (step % config.every == 0 or last or step == 1) or not self._is_main:
            return ""
        try:
            with self._averaged(), self.denoiser.awake():
                images = previews.render(self.denoiser.pipeline, self.adapter, self.preview_prompts, config)
            previews.keep(images, self.folder / "previews", step)
            previews.strip(self.folder / "previews", self.preview_prompts)
            self._report("running")
            return self._trackers.show(images, step)
        except (HypernetworkError, OSError) as error:
            return f"the previews of step {step} are not kept: {error}. The training goes on."

    def _track(self, loss: float) -> str:
        """Send the step's figures to the trackers; what went wrong, once."""
        state = self.state
        newest = state.history[-1] if state.history and state.history[-1]["step"] == state.step else {}
        figures = {"loss": loss, "mean_loss": state.loss, "held_out": newest.get("held_out")}
        rate = float(self.optimizer.param_groups[0]["lr"])
        return self._trackers.log({**figures, "rate": rate}, state.step)

    def _report(self, why: str, verdict: str = "") -> None:
        """Write the report; where that fails, the training itself is none the worse."""
        if self._is_main:
            about = {"ended": why, "model": self.checkpoint.name} | ({"remark": verdict} if verdict else {})
            with contextlib.suppress(HypernetworkError, OSError):
                write_report(self.folder / "report.html", self.config, self.state, self.dataset, self.held_out, about)

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """The prompts of the previews: those of the settings, else captions of images, held-out ones first."""
        config = self.config
        given = config.previews.prompts or tuple(
            dict.fromkeys(self._caption(image, 0) for image in [*self.held_out, *self._images])
        )
        return tuple(
            prompt.replace("{name}", config.name if config.method == "hypernetwork" else config.token)
            for prompt in given[: len(config.previews.prompts) or config.previews.count]
        )

    @property
    def _is_main(self) -> bool:
        return self._processes is None or bool(self._processes.is_main_process)

    def _write(self, path: Path) -> None:
        if not self._is_main:
            return
        make_folder(path.parent)
        with self._averaged():
            self.adapter.save(path, self.state.before + self.state.step, self.checkpoint)

    @property
    def _best_path(self) -> Path:
        return self.folder / f"best{self.output.suffix}"

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """While this holds, the model draws with what is trained, as it would be written now."""
        with self._averaged(), self.adapter.acting(training=False):
            yield

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The weights are their average over time, where one is kept."""
        if self.average is None:
            yield
            return
        present = [parameter.detach().clone() for parameter in self.adapter.parameters]
        self._set(self.average)
        try:
            yield
        finally:
            self._set(present)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.adapter.parameters, values, strict=True):
            parameter.copy_(value)

    # -- small things

    def _size(self, image: TrainingImage) -> tuple[int, int]:
        if not self.config.data.buckets:
            return self.resolution, self.resolution
        return bucket(image.size, self.resolution, self.denoiser.grain)

    def _caption(self, image: TrainingImage, choice: int) -> str:
        """The caption; for an embedding it always has the word that is trained where the text encoder reads it."""
        config = self.config
        caption = trained_caption(image, config, choice)
        if config.method == "hypernetwork":
            return caption
        if caption not in self._captions:
            before = caption[: caption.index(config.token) + len(config.token)]
            unread = self._count(before) > self._room
            self._captions[caption] = f"{config.token}, {caption}" if unread else caption
        return self._captions[caption]

    def _counter(self) -> tuple[Callable[[str], int], int]:
        """How many tokens a caption takes, and how many the text encoder reads."""
        count, room = token_counter(self.denoiser.pipeline.tokenizer)
        vectors = len(self.adapter.parameters[0]) if self.config.method == "embedding" else 0
        return count_with_word(self.config, count, vectors), room

    def _event(self, saved: Path | None = None, message: str = "") -> Event:
        measured = next((each["held_out"] for each in reversed(self.state.history) if "held_out" in each), None)
        rate = float(self.optimizer.param_groups[0]["lr"])
        return Event(self.state.step, self.config.steps, self.state.loss or 0.0, rate, measured, saved, message)


def _starting_notes(config: Config, before: int) -> Iterator[str]:
    """What to know of how it begins."""
    if before:
        yield (
            f"{config.start_from} was trained for {before:,} steps: they count for the rates of learning_rate that "
            f"have steps, and the file will state {before + config.steps:,}"
        )
    hypernetwork = config.hypernetwork
    begins_strong = (
        config.method == "hypernetwork" and not config.start_from and hypernetwork.initialization != "Normal"
    )
    if begins_strong and not hypernetwork.norm:
        yield (
            f"hypernetwork.initialization is {hypernetwork.initialization}, and hypernetwork.norm is off: the "
            "hypernetwork begins strong, and images begin broken. Take Normal, or norm: true"
        )


def make_scaler(denoiser: Denoiser) -> Any:
    """Scales losses where the model computes in float16, whose smallest numbers gradients fall below; else idle."""
    kind, wanted = denoiser.device.type, denoiser.dtype == torch.float16
    made = getattr(torch.amp, "GradScaler", None)
    # Before torch 2.3 there is one for CUDA alone.
    return torch.cuda.amp.GradScaler(enabled=wanted) if made is None else made(kind, enabled=wanted)


def _shift(random: torch.Generator, most: int) -> tuple[int, int]:
    """Pixels to the right and down, each from -most to most."""
    if not most:
        return 0, 0
    return whole(random, 2 * most + 1) - most, whole(random, 2 * most + 1) - most


def _resolution(config: Config, denoiser: Denoiser) -> int:
    asked = config.data.resolution or denoiser.resolution
    return max(asked // denoiser.grain, 1) * denoiser.grain


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the training after the present step; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, frame: object) -> None:
        stop()
        for each in before:
            signal.signal(each, signal.default_int_handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
