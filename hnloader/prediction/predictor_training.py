"""Train a predictor: it reads some images of a style, and the model denoises another one with what it predicts."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hnloader.attention.layout import find_sites
from hnloader.errors import ConfigError, DivergedError, HypernetworkError
from hnloader.files import expanded, make_folder
from hnloader.pipelines import Model, load_model
from hnloader.prediction.model_sample import sample_of
from hnloader.prediction.predicting import spread_of
from hnloader.prediction.predictor import Predictor
from hnloader.prediction.predictor_config import PredictorConfig
from hnloader.prediction.predictor_file import About, save_predictor
from hnloader.prediction.row_hooks import RowHooks
from hnloader.prediction.style_batches import StyleBatch, StyleBatches
from hnloader.prediction.style_folders import StyleFolders, read_styles
from hnloader.scopes import Scope
from hnloader.training import schema
from hnloader.training.cache import Cache
from hnloader.training.denoiser import Denoiser
from hnloader.training.ema import Ema
from hnloader.training.events import BestWeights, Event, Reason, Result
from hnloader.training.learning_rate import parse_learning_rate
from hnloader.training.optimizers import make_optimizer, set_learning_rate
from hnloader.training.preparation import check_output, check_precision, remove_states
from hnloader.training.run_folder import locked, run_folder
from hnloader.training.sampler import split
from hnloader.training.state import State, load_state, save_state, states
from hnloader.training.stop_signals import stop_signals
from hnloader.training.validation import validation_losses

_LOSS_SMOOTHING = 0.98
_MOST_VALIDATION_STYLES = 12
# Share of the validation styles whose images count as related.
_RELATED = 0.95

Callback = Callable[[Event], None]


class PredictorTrainer:
    """One training run of a predictor; after an interruption, a new one resumes from the saved state.

    Args:
        config: Checked settings.
        denoiser: The model.
        folders: The styles.
        model: The name and the hash of the model.
    """

    def __init__(self, config: PredictorConfig, denoiser: Denoiser, folders: StyleFolders, model: Model) -> None:
        self.config, self.denoiser, self.model = config, denoiser, model
        self.output, self.notes = Path(config.output), list(folders.notes)
        self.folder = run_folder(self.output)
        self.state = State(
            config=schema.plain(config), model=denoiser.fingerprint("unet"), images=folders.fingerprint()
        )
        training, validation = split(len(folders.styles), config.validation_split, config.seed)
        self.styles = [folders.styles[index] for index in training]
        self.validation_styles = [folders.styles[index] for index in validation[:_MOST_VALIDATION_STYLES]]
        torch.manual_seed(config.seed)
        self.predictor = Predictor(_scopes(config, denoiser), denoiser.vae.config.latent_channels, config.design)
        self.predictor.to(denoiser.device)
        parameters = list(self.predictor.parameters())
        self._sample = sample_of(denoiser)
        self.learning_rate = parse_learning_rate(f"{config.learning_rate:g}", config.steps)
        self.optimizer = make_optimizer("adamw", parameters, self.learning_rate.at(1), config.weight_decay)
        self.ema = Ema(parameters, config.ema_decay)
        multiple = denoiser.size_multiple
        self.resolution = max((config.resolution or denoiser.resolution) // multiple, 1) * multiple
        self._batches = StyleBatches(
            config, denoiser, Cache(self.folder / "cache", denoiser, config.data, self.resolution)
        )
        self._hooks = RowHooks(denoiser.unet)
        self._stop, self._saved_step = False, 0

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.predictor.parameters())

    def resume(self) -> bool:
        """Load the newest readable state; return False if there is none.

        Raises:
            HypernetworkError: The states are for another model or design.
        """
        found = states(self.folder)
        for path in reversed(found):
            try:
                loaded = load_state(path, self._parameters, self.ema.values, self.optimizer)
            except HypernetworkError as error:
                if path == found[0]:
                    raise
                self.notes.append(f"Skipped a saved state. {error}")
                continue
            if loaded.model != self.state.model:
                raise ConfigError(f"{path}: trained on another model. Resume with that model, or use --restart.")
            if loaded.images != self.state.images:
                self.notes.append("The styles changed since the state was saved.")
            loaded.model, loaded.images, loaded.config = self.state.model, self.state.images, self.state.config
            self.state, self._saved_step = loaded, loaded.step
            return True
        return False

    def stop(self) -> None:
        """Stop after the current step, with everything saved; any thread may call this."""
        self._stop = True

    def run(self, callback: Callback | None = None) -> Result:
        """Train to the end and write the predictor.

        Args:
            callback: Called with an event after each step.

        Raises:
            DivergedError: The loss became NaN or infinite. The saved states are kept.
            HypernetworkError: The output cannot be written, or another training run is writing it.
        """
        report = callback or (lambda event: None)
        with locked(self.output), stop_signals(self.stop), self._hooks.attached():
            for note in self.notes:
                report(self._event(message=note))
            reason = self._loop(report)
            if self._saved_step != self.state.step:
                saved, message = self._save()
                report(self._event(saved, message))
            self._write(self.output)
        state = self.state
        best = None if state.best is None else BestWeights(*state.best, self._best_path)
        return Result(self.output, state.step, reason, best, state.history, state.initial_loss)

    def _loop(self, report: Callback) -> Reason:
        config, state = self.config, self.state
        if state.step == 0 and config.validate_every_n_steps and self.validation_styles:
            state.initial_loss = self.losses()[0]
        for step in range(state.step + 1, config.steps + 1):
            start = time.monotonic()
            loss = self.train_step(step)
            state.loss = loss if state.loss is None else _LOSS_SMOOTHING * state.loss + (1 - _LOSS_SMOOTHING) * loss
            state.step = step
            state.seconds += time.monotonic() - start
            every = config.validate_every_n_steps
            if every and (step % every == 0 or step == config.steps):
                self._validate(step)
            due = step % config.save_every_n_steps == 0 or step == config.steps
            saved, message = self._save() if due else (None, "")
            report(self._event(saved, message))
            if self._stop:
                return "interrupted"
        return "done"

    def train_step(self, step: int) -> float:
        """Run one step, counted from 1, and return its loss."""
        config = self.config
        loss = self._loss(self._batches.training(step, self.styles))
        loss.backward()
        total = float(loss.detach())
        norm = nn.utils.clip_grad_norm_(self._parameters, config.max_grad_norm or math.inf)
        if not (math.isfinite(total) and math.isfinite(float(norm))):
            raise DivergedError(
                f"Step {step}: training diverged, the loss is {total:g}. Lower learning_rate (now "
                f"{config.learning_rate:g}) or raise lr_warmup_steps; then use --resume."
            )
        rate = self.learning_rate.at(step, scheduler=config.lr_scheduler, warmup_steps=config.lr_warmup_steps)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(step)
        return total

    def _loss(self, batch: StyleBatch) -> Tensor:
        sides = self.predictor.sides(self.predictor.emit(self._styles(batch.references)))
        with self._hooks.applied(sides):
            return self.denoiser.losses(batch.target).mean()

    def _styles(self, references: Tensor) -> Tensor:
        encoder = self.predictor.encoder
        summaries = encoder.summaries(references.flatten(0, 1))
        style: Tensor = encoder(summaries.unflatten(0, references.shape[:2]))
        return style

    # -- validation

    @torch.no_grad()
    def losses(self) -> tuple[float, float, float]:
        """Return the validation losses: with predicted hypernetworks, with those of other styles, and without."""
        found: list[list[float]] = [[], [], []]
        with self.ema.applied(), self._hooks.attached():
            for batch in self._batches.validation(self.validation_styles):
                styles = self._styles(batch.references)
                for values, given in zip(found, (styles, styles.roll(1, 0), None), strict=True):
                    sides = None if given is None else self.predictor.sides(self.predictor.emit(given))
                    with self._hooks.applied(sides):
                        values.append(float(self.denoiser.losses(batch.target).mean()))
        own, other, without = (sum(values) / len(values) for values in found)
        return own, other, without

    def _validate(self, step: int) -> None:
        state = self.state
        entry = {"step": float(step), "loss": state.loss or 0.0, "learning_rate": self._rate}
        state.history.append(entry)
        if not self.validation_styles:
            return
        own, other, without = self.losses()
        entry |= {"validation_loss": own, "other_style": other, "without": without}
        if math.isfinite(own) and (state.best is None or own < state.best[0]):
            state.best = (own, step)
            with contextlib.suppress(HypernetworkError):  # saving the state reports a full disk
                self._write(self._best_path)

    @torch.no_grad()
    def _spread(self) -> float:
        """Return the largest usual spread of the images of one style."""
        spreads = []
        for style in self.validation_styles:
            references = self._batches.references(style.images)
            spreads.append(spread_of(self.predictor.emit(self._styles(references.unsqueeze(1)))))
        return sorted(spreads)[int(_RELATED * (len(spreads) - 1))] if spreads else 0.0

    # -- files

    def _save(self) -> tuple[Path | None, str]:
        """Save the state; return its path, and a failure or ""."""
        try:
            path = save_state(
                self.folder,
                self.state,
                self._parameters,
                self.ema.values,
                self.optimizer,
                self.config.save_total_limit,
            )
        except HypernetworkError as error:
            return None, f"Step {self.state.step}: the state was not saved. {error} Training continues."
        self._saved_step = self.state.step
        return path, ""

    def _write(self, path: Path) -> None:
        make_folder(path.absolute().parent)
        with self.ema.applied():
            about = About(
                model=self.model.name,
                resolution=self.resolution,
                step=self.state.step,
                styles=len(self.styles),
                spread=self._spread(),
                training=schema.plain(self.config),
            )
            save_predictor(path, self.predictor, about, self._sample)

    @property
    def _best_path(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _event(self, saved: Path | None = None, message: str = "") -> Event:
        state, losses = self.state, validation_losses(self.state)
        newest = losses[-1][0] if losses else None
        return Event(state.step, self.config.steps, state.loss or 0.0, self._rate, newest, saved, message)


def prepare_predictor(
    config: PredictorConfig, *, resume: bool = False, restart: bool = False, device: str = "auto"
) -> PredictorTrainer:
    """Check the settings, read the styles and load the model, without a step.

    Raises:
        HypernetworkError: A setting is wrong, the styles or the model cannot be read, or the output exists.
    """
    config.check()
    output = Path(config.output)
    saved = states(run_folder(output))
    check_output(output, saved, resume=resume, restart=restart)
    check_precision(config.precision, device)
    folders = read_styles(expanded(config.styles), config.data)
    model = load_model(
        config.model,
        device=device,
        dtype=config.precision,
        config=Path(config.model_config) if config.model_config else None,
    )
    trainer = PredictorTrainer(config, Denoiser(model.pipeline), folders, model)
    if restart:
        with locked(output):
            remove_states(saved)
    elif resume:
        trainer.resume()
    return trainer


def _scopes(config: PredictorConfig, denoiser: Denoiser) -> Sequence[Scope]:
    """Return the scopes of the hypernetworks: the model's widths, or its layers."""
    if not config.design.per_layer:
        return [Scope(width) for width in denoiser.widths]
    return [Scope.of(site.width, [site.index], site.kind) for site in find_sites(denoiser.unet)]
