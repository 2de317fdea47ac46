"""Train a hypernetwork on the attention layers of a frozen model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from hnloader.attention.attach import Attachment, attach
from hnloader.attention.layout import AttentionSite, find_sites, is_decoder
from hnloader.attention.matching import scope_at
from hnloader.errors import ConfigError, OtherModelError
from hnloader.files import expanded
from hnloader.inspection import inspect
from hnloader.loading import load, save
from hnloader.network import Hypernetwork
from hnloader.scopes import Scope, ScopeLike
from hnloader.training.adapters import Adapter, Context, NamedModel, settings_text, step_count
from hnloader.training.config import EACH_LAYER, Config
from hnloader.training.initialization import initialize
from hnloader.training.lora_start import read_lora, start_from_lora


class HypernetworkAdapter(Adapter):
    """A hypernetwork on a frozen model, such as a UNet."""

    has_strength = True

    def __init__(self, config: Config, frozen: nn.Module) -> None:
        self.config, self.frozen = config, frozen
        sites = find_sites(frozen)
        lora = _is_lora(config)
        made = _loaded(config, sites) if config.start_from and not lora else _new(config, sites)
        if lora:
            layers = int(getattr(getattr(frozen, "config", None), "layers_per_block", 2))
            self.notes = (_follow_lora(made, config, sites, layers),)
        self.hypernetwork = made.to(next(frozen.parameters()).device)
        self.hypernetwork.requires_grad_(True)
        self.hypernetwork.eval()
        self.parameters = list(self.hypernetwork.parameters())
        self.previous_steps = step_count(made.metadata.get("step")) if config.start_from else 0
        self._attachment: Attachment | None = None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """See `Adapter`."""
        if self._attachment is not None:
            yield
            return
        try:
            with attach(self.frozen, self.hypernetwork, 1.0) as self._attachment:
                yield
        finally:
            self._attachment = None

    @contextlib.contextmanager
    def enabled(self, *, training: bool) -> Iterator[None]:
        """See `Adapter`."""
        before = self.hypernetwork.training
        self.hypernetwork.train(training)
        try:
            with self.attached():
                yield
        finally:
            self.hypernetwork.train(before)

    def disabled(self) -> Context:
        """See `Adapter`."""
        return self.at(0.0)

    @contextlib.contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """See `Adapter`."""
        assert self._attachment is not None
        self._attachment.set_strength(strength)
        try:
            yield
        finally:
            self._attachment.set_strength(1.0)

    def save(self, path: Path, step: int, model: NamedModel) -> None:
        """See `Adapter`."""
        hypernetwork = copy.deepcopy(self.hypernetwork).cpu().requires_grad_(False)
        hypernetwork.metadata |= {
            "step": step,
            "name": self.config.name,
            "sd_checkpoint": model.hash,
            "sd_checkpoint_name": model.name,
            "training_config": settings_text(self.config),
        }
        save(hypernetwork, path)


def _is_lora(config: Config) -> bool:
    """Return True if `start_from` is another kind of model than a hypernetwork, which may be a LoRA."""
    if not config.start_from:
        return False
    try:
        inspect(config.start_from)
    except OtherModelError as error:
        if "a LoRA" in str(error):
            return True
        raise
    return False


def _follow_lora(made: Hypernetwork, config: Config, sites: Sequence[AttentionSite], layers: int) -> str:
    """Set a new hypernetwork to follow the LoRA of `start_from`; return a note about the error."""
    if is_decoder(sites):
        raise ConfigError(
            f"Setting 'start_from': found {config.start_from}, a LoRA, which cannot start a hypernetwork of a language "
            "model. Use a hypernetwork."
        )
    deltas, others = read_lora(expanded(config.start_from), sites, layers)
    return start_from_lora(made, sites, deltas, others).note(config.start_from)


def _loaded(config: Config, sites: Sequence[AttentionSite]) -> Hypernetwork:
    found = load(config.start_from)
    if found.architecture is None:
        raise ConfigError(f"Setting 'start_from': {config.start_from} is a composition. Name one of its members.")
    used = {scope_at(found, site) for site in sites}
    unused = [scope for scope in found.scopes if scope not in used]
    if unused:
        raise ConfigError(
            f"Setting 'start_from': {config.start_from} holds sides for {unused[0].label}, and the model has "
            f"{', '.join(map(str, _widths(sites)))}. Use a hypernetwork for this model."
        )
    limited = [scope for scope in found.scopes if not scope.whole]
    if limited and Path(config.output).suffix.lower() == ".pt":
        raise ConfigError(
            f"Setting 'output': expected a .safetensors file for the {limited[0].label} of {config.start_from}, got "
            f"{config.output}. Change the ending."
        )
    return found.float()


def _widths(sites: Sequence[AttentionSite]) -> tuple[int, ...]:
    return tuple(sorted({site.width for site in sites}))


def _default_scopes(sites: Sequence[AttentionSite]) -> tuple[ScopeLike, ...]:
    """Return the widths of a UNet, which webuis read, or the self-attention of a decoder."""
    widths = _widths(sites)
    return tuple(f"{width}:self" for width in widths) if is_decoder(sites) else widths


def _new(config: Config, sites: Sequence[AttentionSite]) -> Hypernetwork:
    settings, widths = config.hypernetwork, _widths(sites)
    if settings.scopes == EACH_LAYER:
        scopes = [Scope.of(site.width, [site.index], site.kind) for site in sites]
    else:
        scopes = [Scope.parse(text) for text in settings.scopes]
    unused = [scope for scope in scopes if not any(scope.holds(site.width, site.kind, site.index) for site in sites)]
    if unused:
        raise ConfigError(
            f"Setting 'hypernetwork.scopes': the model has no layer of {unused[0].label}. It has {len(sites)} layers "
            f"of width {', '.join(map(str, widths))}."
        )
    missing = [width for width in settings.widths if width not in widths]
    if missing:
        raise ConfigError(
            f"Setting 'hypernetwork.widths': expected widths of the model ({', '.join(map(str, widths))}), "
            f"got {missing[0]}."
        )
    made = Hypernetwork.new(
        tuple(scopes) or settings.widths or _default_scopes(sites),
        settings.architecture(),
        name=config.name,
        metadata={"weight_initialization": settings.initialization},
    )
    initialize(made, settings.initialization, config.seed)
    return made
