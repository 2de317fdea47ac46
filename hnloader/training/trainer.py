"""The training loop: steps, validation, saved states and the output."""

from __future__ import annotations

import contextlib
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hnloader.errors import ConfigError, DivergedError, HypernetworkError
from hnloader.files import make_folder, remove_leftovers
from hnloader.training import schema
from hnloader.training.config import Config
from hnloader.training.conflicts import conflicts
from hnloader.training.deterministic import allow_nondeterministic, deterministic_algorithms
from hnloader.training.ema import Ema
from hnloader.training.events import BestWeights, Event, Reason, Result
from hnloader.training.gradients import GradientCheck
from hnloader.training.learning_rate import parse_learning_rate
from hnloader.training.optim_file import load_optim_file
from hnloader.training.optimizers import make_optimizer, set_learning_rate
from hnloader.training.pace import Pace
from hnloader.training.report import write_report
from hnloader.training.run_folder import locked, run_folder
from hnloader.training.sampler import generator_for, random_below
from hnloader.training.state import State, load_state, save_state, states
from hnloader.training.stop_signals import stop_signals
from hnloader.training.task import Task
from hnloader.training.trackers import Trackers
from hnloader.training.validation import Validator, validation_losses
from hnloader.units import counted

# The user is warned about a training run that does not improve after this number of validations.
_VALIDATIONS_TO_REMARK = 3
# Training stops after this many validations in a row with a loss of this many times the initial one.
_DIVERGED_VALIDATIONS, _DIVERGED_RATIO = 2, 3.0
# A running mean, because the loss of a single step depends mostly on its timesteps.
_LOSS_SMOOTHING = 0.98

Callback = Callable[[Event], None]


class Trainer:
    """One training run; after an interruption, a new trainer resumes from the saved state.

    Args:
        task: The model, its adapter, the data and the settings.
        accelerator: The `accelerate.Accelerator` of a training run on several devices.
    """

    def __init__(self, task: Task, accelerator: Any = None) -> None:
        self.task, self.config, self.adapter = task, task.config, task.adapter
        config = self.config
        self._accelerator = accelerator
        self.output = Path(config.output)
        self.folder = run_folder(self.output)
        self.state = State(config=schema.plain(config), model=task.model_hash, data=task.data_hash)
        self.state.previous_steps = self.adapter.previous_steps
        self._set_up_optimization()
        self.validator = Validator(config, task, self.applied)
        self._pace = Pace(config)
        self.notes = [
            *task.notes,
            *self.adapter.notes,
            *conflicts(config, has_validation=task.has_validation),
            *_starting_notes(config, self.state.previous_steps),
        ]
        if config.start_from and config.method == "hypernetwork":
            unused = load_optim_file(Path(config.start_from), self.optimizer, config.optimizer)
            if unused is not None:
                self.notes.append(f"Starting with a new optimizer: {unused}.")
        self._trackers = Trackers(config, self.folder)
        self._stop = False
        self._saved_step = 0

    def _set_up_optimization(self) -> None:
        config, parameters = self.config, self.adapter.parameters
        self.learning_rate = parse_learning_rate(config.learning_rate_text, config.steps, self.state.previous_steps)
        self.optimizer = make_optimizer(config.optimizer, parameters, self.learning_rate.at(1), config.weight_decay)
        self.ema = Ema(parameters, config.ema_decay)
        self.scaler = _loss_scaler(self.task)
        self._gradients = GradientCheck(parameters, config.method, config.steps)

    def start_over(self, values: Sequence[Tensor], rate: float, steps: int) -> None:
        """Return to these parameters with a new optimizer and a constant learning rate; see `rate_search`."""
        with torch.no_grad():
            for parameter, value in zip(self.adapter.parameters, values, strict=True):
                parameter.copy_(value)
        self.config = replace(
            self.config, learning_rate=rate, lr_scheduler="constant", lr_warmup_steps=0, steps=max(steps, 1)
        )
        self._set_up_optimization()

    # -- resuming

    def resume(self) -> bool:
        """Load the newest readable state; return False if there is none.

        Raises:
            HypernetworkError: The states are for another model, architecture or optimizer.
        """
        found = states(self.folder)
        for path in reversed(found):
            try:
                loaded = load_state(path, self.adapter.parameters, self.ema.values, self.optimizer)
                self._load_scaler(path, loaded.scaler)
            except HypernetworkError as error:
                if path == found[0]:
                    raise
                self.notes.append(f"Skipped a saved state. {error}")
                continue
            self._check_source(path, loaded)
            self._continue_from(loaded)
            return True
        return False

    def _load_scaler(self, path: Path, state: dict[str, Any]) -> None:
        if not state:
            return
        wanted = self.scaler.state_dict()
        if wanted and {key: type(value) for key, value in state.items()} != {k: type(v) for k, v in wanted.items()}:
            raise HypernetworkError(f"{path} is damaged: its loss scaler is {state}. Resume from another state.")
        self.scaler.load_state_dict(state)

    def _check_source(self, path: Path, loaded: State) -> None:
        """Refuse the state of another model; note other data."""
        same_precision = loaded.config.get("precision") == self.config.precision
        if same_precision and loaded.model != self.state.model:
            raise ConfigError(
                f"{path}: trained on the model {loaded.config.get('model')}, not {self.task.model.name}. Resume with "
                "that model, or continue on this one with start_from."
            )
        if loaded.data != self.state.data:
            self.notes.append(f"The training {self.task.data_name} changed since the state was saved.")
        loaded.model, loaded.data = self.state.model, self.state.data

    def _continue_from(self, loaded: State) -> None:
        config, now = self.config, self.state.config
        if loaded.step:  # the file in start_from may have been overwritten
            starting = set(_starting_notes(config, self.adapter.previous_steps))
            self.notes = [note for note in self.notes if note not in starting]
        self.state, self._saved_step = loaded, loaded.step
        self.learning_rate = parse_learning_rate(config.learning_rate_text, config.steps, loaded.previous_steps)
        changed = sorted(key for key in now if key != "steps" and now[key] != loaded.config.get(key))
        if changed:
            self.notes.append(f"Settings changed since the state was saved: {', '.join(changed)}.")
        self.state.config = now

    # -- running

    def stop(self) -> None:
        """Stop after the current step, with everything saved; any thread may call this."""
        self._stop = True

    def run(self, callback: Callback | None = None) -> Result:
        """Train to the end and write the output.

        Args:
            callback: Called with an event after each step.

        Raises:
            DivergedError: The loss became NaN or infinite. The saved states are kept.
            HypernetworkError: The output cannot be written, or another training run is writing it.
        """
        with locked(self.output) if self._is_main else contextlib.nullcontext():
            if self._is_main:
                # Files that a killed training run left half-written.
                remove_leftovers([self.folder, self.folder / "cache", self.folder / "previews", self.output.parent])
            return self._run(callback or (lambda event: None))

    def _run(self, callback: Callback) -> Result:
        def tell(message: str) -> None:
            if message:
                callback(self._event(message=message))

        for note in [*self.notes, self._trackers.start() if self._is_main else ""]:
            tell(note)
        device = self.task.device
        algorithms = deterministic_algorithms(device) if self.config.deterministic else contextlib.nullcontext()
        with stop_signals(self.stop, once=self._several), self.adapter.attached(), algorithms:
            reason = self._loop(callback, tell)
            if self._saved_step != self.state.step:
                saved, message = self._save(self.state.step, now=True)
                callback(self._event(saved, message))
            remark = self.validator.remark(self.state, str(self._best_path))
            tell(remark)
        self._trackers.end()
        self._write(self.output)
        self._report(reason, remark)
        state = self.state
        best = None if state.best is None else BestWeights(*state.best, self._best_path)
        return Result(self.output, state.step, reason, best, state.history, state.initial_loss)

    def _loop(self, callback: Callback, tell: Callable[[str], None]) -> Reason:
        """Run the steps; return why they ended."""
        state = self.state
        if state.step == 0:
            self._validate_first()
        for step in range(state.step + 1, self.config.steps + 1):
            start = time.monotonic()
            with self._pace.measured("step"):
                loss = self._step_or_fall_back(step, tell)
            state.loss = loss if state.loss is None else _LOSS_SMOOTHING * state.loss + (1 - _LOSS_SMOOTHING) * loss
            state.step = step
            state.seconds += time.monotonic() - start
            improving = self._validate(step)
            saved, message = self._save(step)
            callback(self._event(saved, message or self._preview(step) or self._track(loss)))
            if len(validation_losses(state)) == _VALIDATIONS_TO_REMARK and state.history[-1]["step"] == step:
                tell(self.validator.remark(state, str(self._best_path)))
            interrupted, converged = self._any_process(self._stop, not improving)
            if interrupted:
                return "interrupted"
            if converged:
                return "early_stopped"
        return "done"

    # -- a step

    def _step_or_fall_back(self, step: int, tell: Callable[[str], None]) -> float:
        """Run a step; if torch has no deterministic algorithm for an operation, run it with any algorithm."""
        try:
            return self.train_step(step)
        except RuntimeError as error:
            if not allow_nondeterministic(error):
                raise
            reason = textwrap.shorten(str(error), 200)
        tell(f"This training run is not deterministic: {reason}")
        self.optimizer.zero_grad(set_to_none=True)
        return self.train_step(step)

    def train_step(self, step: int) -> float:
        """Run one step, counted from 1, and return its loss."""
        try:
            return self._train_step(step)
        except torch.cuda.OutOfMemoryError as error:
            smaller = "batch_size to 1" if self.config.batch_size > 1 else "data.resolution lower"
            advice = f"Set gradient_checkpointing to true, precision to bfloat16, or {smaller}."
            raise HypernetworkError(f"Step {step} ran out of memory. {advice}") from error

    def _train_step(self, step: int) -> float:
        config, parameters = self.config, self.adapter.parameters
        # Dropout uses torch's global generator.
        torch.manual_seed(random_below(generator_for(config.seed, "dropout", step), 2**31))
        losses: list[Tensor] = []
        with self.adapter.enabled(training=True):
            for part in range(config.gradient_accumulation_steps):
                loss = self.task.loss(self._batch_index(step, part))
                self.scaler.scale(loss / config.gradient_accumulation_steps).backward()
                losses.append(loss.detach())
        # Read only now, so that the device is synchronized once.
        total = sum(float(loss) / config.gradient_accumulation_steps for loss in losses)
        self._average_gradients()
        self._gradients.check(step)
        self.scaler.unscale_(self.optimizer)
        # The scaler skips a step whose gradients are too large for float16, and then scales less.
        may_skip = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not math.isfinite(total) or not (self._gradients.all_finite() or may_skip):
            raise self._diverged(step, total)
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        rate = self.learning_rate.at(step, scheduler=config.lr_scheduler, warmup_steps=config.lr_warmup_steps)
        set_learning_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(step)
        return total

    def _batch_index(self, step: int, part: int) -> int:
        index = (step - 1) * self.config.gradient_accumulation_steps + part
        if self._accelerator is None:
            return index
        return int(index * self._accelerator.num_processes + self._accelerator.process_index)

    def _average_gradients(self) -> None:
        """Average the gradients of all processes."""
        if not self._several:
            return
        for parameter in self.adapter.parameters:
            if parameter.grad is not None:
                parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")

    def _any_process(self, *here: bool) -> list[bool]:
        """Return what holds in any process, so that all processes stop after the same step."""
        if not self._several:
            return list(here)
        found = torch.tensor(here, dtype=torch.float32, device=self.task.device)
        return [count > 0 for count in self._accelerator.reduce(found, reduction="sum").tolist()]

    def _diverged(self, step: int, loss: float) -> DivergedError:
        saved = states(self.folder)
        newest = f"The newest saved state is {saved[-1]}." if saved else "No state was saved."
        return DivergedError(
            f"Step {step}: training diverged, the loss is {loss:g}. {newest} Lower learning_rate (now "
            f"{self.learning_rate.at(step):g}), raise lr_warmup_steps or set max_grad_norm; then use --resume."
        )

    def _check_divergence(self, step: int) -> None:
        """Raise DivergedError if the newest validation losses are far above the initial one."""
        first, newest = self.state.initial_loss, validation_losses(self.state)[-_DIVERGED_VALIDATIONS:]
        # The loss in a state can be anything; no loss before the first step is 0 or less.
        if first is None or not first > 0 or len(newest) < _DIVERGED_VALIDATIONS:
            return
        if all(loss > _DIVERGED_RATIO * first or not math.isfinite(loss) for loss, _ in newest):
            loss, best = newest[-1][0], self.state.best
            kept = f" {self._best_path} holds the weights of step {best[1]:,}." if best and best[0] < first else ""
            raise DivergedError(
                f"Step {step}: training diverged, the validation loss is {loss:.3g}, and it was {first:.3g} before the "
                f"first step.{kept} Lower learning_rate (now {self.learning_rate.at(step):g}) or raise "
                "lr_warmup_steps, and use --restart."
            )

    # -- validation

    def _validate_first(self) -> None:
        """Measure the loss before the first step, to notice a training run that does not improve."""
        if not self.config.validate_every_n_steps:
            return
        with self._pace.measured("validation"):
            self.state.initial_loss = loss = self.validator.loss()
        if self.task.has_validation:
            self.state.history.append({"step": 0.0, "learning_rate": self._rate, "validation_loss": loss})

    def _validate(self, step: int) -> bool:
        """Measure the validation loss if it is due; return False after too many without improvement."""
        config, state = self.config, self.state
        every = config.validate_every_n_steps
        if not every or not (step % every == 0 or step == config.steps):
            return True
        entry = {"step": float(step), "loss": state.loss or 0.0, "learning_rate": self._rate}
        state.history.append(entry)
        if not self.task.has_validation:
            return True
        with self._pace.measured("validation"):
            entry["validation_loss"] = loss = self.validator.loss()
        self._check_divergence(step)
        if math.isfinite(loss) and (state.best is None or loss < state.best[0]):
            state.best, state.validations_since_best = (loss, step), 0
            with contextlib.suppress(HypernetworkError):  # saving the state reports a full disk
                self._write(self._best_path)
        else:
            state.validations_since_best += 1
        patience = config.early_stopping_patience
        return not patience or state.validations_since_best < patience

    # -- files

    def _save(self, step: int, *, now: bool = False) -> tuple[Path | None, str]:
        """Save the state if it is due, or now; return its path, and a failure or ""."""
        config = self.config
        if not (now or step % config.save_every_n_steps == 0 or step == config.steps) or not self._is_main:
            return None, ""
        self.state.scaler = self.scaler.state_dict()
        parameters, limit = self.adapter.parameters, config.save_total_limit
        try:
            with self._pace.measured("save"):
                path = save_state(self.folder, self.state, parameters, self.ema.values, self.optimizer, limit)
        except HypernetworkError as error:
            return None, f"Step {step}: the state was not saved. {error} Training continues."
        self._saved_step = step
        return path, ""

    def _preview(self, step: int) -> str:
        """Make previews if they are due; return a failure or ""."""
        config, folder = self.config.previews, self.folder / "previews"
        due = step in (1, self.config.steps) or (config.every_n_steps and step % config.every_n_steps == 0)
        if not config.every_n_steps or not due or not self._is_main:
            return ""
        try:
            with self.ema.applied(), self._pace.measured("preview"):
                made = self.task.preview(folder, step)
        except (HypernetworkError, OSError) as error:
            return f"Step {step}: the previews were not saved. {error} Training continues."
        self._report("running")
        return self._trackers.log_previews(made, step)

    def _track(self, loss: float) -> str:
        """Send the numbers of the step to the trackers; return a failure or ""."""
        state = self.state
        newest = state.history[-1] if state.history and state.history[-1]["step"] == state.step else {}
        validation_loss = newest.get("validation_loss")
        numbers = {"loss": loss, "mean_loss": state.loss, "validation_loss": validation_loss}
        return self._trackers.log({**numbers, "learning_rate": self._rate}, state.step)

    def _report(self, ended: str, remark: str = "") -> None:
        """Write the HTML report; a failure is ignored."""
        if self._is_main:
            rows = {"status": ended, "model": self.task.model.name} | ({"remark": remark} if remark else {})
            path = self.folder / "report.html"
            with contextlib.suppress(HypernetworkError, OSError):
                write_report(path, self.config, self.state, self.task, rows)

    def _write(self, path: Path) -> None:
        """Write the current weights as a file."""
        if not self._is_main:
            return
        make_folder(path.parent)
        with self.ema.applied():
            self.adapter.save(path, self.state.previous_steps + self.state.step, self.task.model)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the current weights to the model while this is active, as they would be written now."""
        with self.ema.applied(), self.adapter.enabled(training=False):
            yield

    @property
    def _best_path(self) -> Path:
        return self.folder / f"best{self.output.suffix}"

    @property
    def _is_main(self) -> bool:
        return self._accelerator is None or bool(self._accelerator.is_main_process)

    @property
    def _several(self) -> bool:
        return self._accelerator is not None and self._accelerator.num_processes > 1

    @property
    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _event(self, saved: Path | None = None, message: str = "") -> Event:
        state = self.state
        losses = (each["validation_loss"] for each in reversed(state.history) if "validation_loss" in each)
        return Event(
            step=state.step,
            steps=self.config.steps,
            loss=state.loss or 0.0,
            learning_rate=self._rate,
            validation_loss=next(losses, None),
            saved=saved,
            message=message,
            seconds_left=self._pace.left(state.step),
        )


def _starting_notes(config: Config, previous_steps: int) -> Iterator[str]:
    if previous_steps:
        yield (
            f"{config.start_from} was trained for {counted(previous_steps, 'step')}. These count for a learning_rate "
            f"with steps, and the output will state {previous_steps + config.steps:,}."
        )


def _loss_scaler(task: Task) -> Any:
    """Return a scaler, which is enabled for float16, where small gradients would become zero."""
    enabled = task.dtype == torch.float16
    scaler = getattr(torch.amp, "GradScaler", None)
    # Before torch 2.3 it exists only for CUDA.
    if scaler is None:
        return torch.cuda.amp.GradScaler(enabled=enabled)
    return scaler(task.device.type, enabled=enabled)
