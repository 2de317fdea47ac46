"""Settings that contradict each other or have no effect, named before the first step."""

from __future__ import annotations

from collections.abc import Iterator

from hnloader.training.config import Config

__all__ = ["conflicts"]

# The average of weights covers about 1 / (1 - decay) steps.
_FEWEST_AVERAGES = 2


def conflicts(config: Config, *, has_validation: bool) -> Iterator[str]:
    """Yield a sentence for each conflict, which names the settings and what to change.

    Args:
        config: The settings.
        has_validation: There are data for validation.
    """
    yield from _of_rates(config)
    yield from _of_validation(config, has_validation)
    yield from _of_hypernetwork(config)
    if config.ema_decay and (span := 1 / (1 - config.ema_decay)) * _FEWEST_AVERAGES > config.steps:
        yield (
            f"ema_decay {config.ema_decay:g} averages over about {span:,.0f} of {config.steps:,} steps, so the output "
            "stays near the initial weights. Lower ema_decay, or set it to 0."
        )
    if config.prior.weight and config.method == "embedding":
        yield "prior.weight has no effect on an embedding, which other prompts do not contain. Set it to 0."


def _of_rates(config: Config) -> Iterator[str]:
    in_pieces = "," in config.learning_rate_text or ":" in config.learning_rate_text
    if in_pieces and config.lr_scheduler not in ("constant", Config().lr_scheduler):
        yield (
            f"lr_scheduler {config.lr_scheduler} has no effect on a learning_rate with steps. Set lr_scheduler to "
            "constant, or give a single learning_rate."
        )
    if config.lr_warmup_steps >= config.steps:
        yield (
            f"lr_warmup_steps {config.lr_warmup_steps:,} is not below steps {config.steps:,}, so the learning rate is "
            "never reached. Lower lr_warmup_steps."
        )
    if config.optimizer == "prodigy" and config.learning_rate not in ("auto", 1, 1.0, "1", "1.0"):
        yield (
            f"optimizer prodigy finds the rate itself, and learning_rate {config.learning_rate_text} scales it. Use 1 "
            "or auto."
        )


def _of_validation(config: Config, has_validation: bool) -> Iterator[str]:
    patience = config.early_stopping_patience
    if patience and not (config.validate_every_n_steps and has_validation):
        yield (
            f"early_stopping_patience {patience} has no effect without validation. Set validate_every_n_steps and "
            "data.validation_split."
        )
    elif patience and patience * config.validate_every_n_steps >= config.steps:
        yield (
            f"early_stopping_patience {patience} spans {patience * config.validate_every_n_steps:,} steps, and there "
            f"are {config.steps:,}, so it never acts. Lower it or validate_every_n_steps."
        )


def _of_hypernetwork(config: Config) -> Iterator[str]:
    settings = config.hypernetwork
    if config.method != "hypernetwork" or config.start_from:
        return
    if settings.initialization != "Normal" and not settings.norm:
        yield (
            f"hypernetwork.initialization is {settings.initialization} without hypernetwork.norm, so images or "
            "texts are broken at first. Use Normal, or norm: true."
        )
    if settings.dropout and len(settings.architecture().layer_structure) < 3:
        yield "hypernetwork.dropout has no effect without inner layers. Add one to hypernetwork.layer_structure."
    if settings.activate_output and settings.architecture().activation is None:
        yield "hypernetwork.activate_output has no effect with activation linear. Turn it off."
    elif settings.activate_output and settings.initialization == "Normal" and settings.activation == "relu":
        yield (
            "hypernetwork.activate_output with relu can only add positive values to the context. Turn it off, or use "
            "another activation."
        )
