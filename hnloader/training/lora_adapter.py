"""Train a LoRA on the attention layers of the UNet; the text encoders are frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hnloader.attention import find_sites
from hnloader.attention.decoders import is_transposed
from hnloader.attention.layout import family_of_sites
from hnloader.conversion.lora.layer_names import lora_name
from hnloader.conversion.lora.lora_file import kohya_metadata, load, name_style, write
from hnloader.errors import ConfigError, MissingExtraError, install_advice
from hnloader.files import replacing
from hnloader.training.adapters import Adapter, NamedModel, settings_text, step_count
from hnloader.training.config import Config
from hnloader.training.sampler import generator_for, random_below

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_PARTS = {"kv": ("to_k", "to_v"), "attention": _ATTENTION, "all": _ATTENTION}
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_STEPS = "ss_steps"  # kohya's key
_NAME = "default"  # peft's name of the only adapter


class LoraAdapter(Adapter):
    """A LoRA of peft's layers, which are in the UNet only while they act.

    Attributes:
        layers: The layers by their dotted names in the UNet.
    """

    has_strength = True

    def __init__(self, config: Config, unet: nn.Module) -> None:
        self.config, self.unet = config, unet
        self._names = self._targets()
        given: dict[str, Tensor] = {}
        self.rank, self.alpha, self.previous_steps = config.lora.rank, config.lora.alpha, 0
        if config.start_from:
            given, self.rank, self.alpha, self.previous_steps = self._read(Path(config.start_from))
        self.alpha = self.alpha or float(self.rank)
        self.layers = self._make()
        self._load(given)
        self._bases = {name: layer.get_base_layer() for name, layer in self.layers.items()}
        self.parameters = [
            parameter
            for layer in self.layers.values()
            for part in (down_of(layer), up_of(layer))
            for parameter in part.parameters()
        ]
        self._in_use = False

    def _targets(self) -> tuple[str, ...]:
        return target_names(self.unet, self.config.lora.targets)

    def _make(self) -> dict[str, Any]:
        """Make the layers with the seed of the training run, and put the UNet's own back."""
        peft = _peft()
        unet, dropout = self.unet, self.config.lora.dropout
        settings = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=dropout,
            target_modules=list(self._names),
            fan_in_fan_out=any(is_transposed(unet.get_submodule(name)) for name in self._names),
        )
        bases = {name: unet.get_submodule(name) for name in self._names}
        known = set(vars(unet))
        seed = random_below(generator_for(self.config.seed, "lora", 0), 2**31)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                peft.inject_adapter_in_model(settings, unet, adapter_name=_NAME)
            layers = {name: unet.get_submodule(name) for name in self._names}
        finally:
            for name, base in bases.items():
                _put(unet, name, base)
            for name in set(vars(unet)) - known:
                delattr(unet, name)
        for layer in layers.values():
            for part in (down_of(layer), up_of(layer)):
                part.float().to(next(unet.parameters()).device).requires_grad_(True)
        return layers

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """See `Adapter`."""
        if self._in_use:
            yield
            return
        self._set(self.layers)
        self._in_use = True
        try:
            yield
        finally:
            self._set(self._bases)
            self._in_use = False

    @contextlib.contextmanager
    def enabled(self, *, training: bool) -> Iterator[None]:
        """See `Adapter`."""
        with self.attached():
            self._train(training)
            try:
                yield
            finally:
                self._train(False)

    @contextlib.contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """See `Adapter`."""
        before = [dict(layer.scaling) for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.scaling[_NAME] *= strength
        try:
            yield
        finally:
            for layer, scaling in zip(self.layers.values(), before, strict=True):
                layer.scaling.update(scaling)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter`."""
        self._set(self._bases)
        try:
            yield
        finally:
            self._set(self.layers)

    def _train(self, training: bool) -> None:
        for layer in self.layers.values():
            layer.lora_dropout.train(training)

    def _set(self, modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            _put(self.unet, name, module)

    # -- files

    def save(self, path: Path, step: int, model: NamedModel) -> None:
        """See `Adapter`; the names are kohya's, which all programs read."""
        tensors = {
            f"{self._file_name(name)}.{part}": tensor.detach().cpu().contiguous().clone()
            for name, layer in self.layers.items()
            for part, tensor in {
                "lora_down.weight": down_of(layer).weight,
                "lora_up.weight": up_of(layer).weight,
                "alpha": torch.tensor(self.alpha),
            }.items()
        }
        family = self._family
        metadata = kohya_metadata(
            {self.rank}, self.alpha, "lora", family, model.name or "", self.config.name, name_style(family)
        )
        if model.hash:
            metadata["ss_sd_model_hash"] = model.hash
        with replacing(path) as temporary:
            write(temporary, tensors, metadata | {_STEPS: str(step), "training_config": settings_text(self.config)})

    @property
    def _family(self) -> str | None:
        found = family_of_sites(find_sites(self.unet))
        return None if found is None else found.name

    def _file_name(self, name: str) -> str:
        layers = int(getattr(self.unet.config, "layers_per_block", 2))
        return lora_name(name, name_style(self._family), layers)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], int, float, int]:
        """Return the tensors, rank, alpha and steps of a file for these layers."""
        try:
            tensors, metadata = load(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"Setting 'start_from': {path} cannot be read as a LoRA ({error}).") from error
        wanted = {self._file_name(name) for name in self._names}
        found = {name.partition(".")[0] for name in tensors}
        downs = [tensor for name, tensor in tensors.items() if name.endswith(".lora_down.weight")]
        ranks = {len(tensor) for tensor in downs}
        alphas = {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")}
        if found != wanted or len(downs) != len(wanted):
            raise ConfigError(
                f"Setting 'start_from': {path} has {len(found)} layers, and lora.targets {self.config.lora.targets!r} "
                f"of this model {len(wanted)}. Use a LoRA for these layers, or set lora.targets."
            )
        if len(ranks) != 1 or len(alphas) > 1:
            raise ConfigError(f"Setting 'start_from': {path} has several ranks or alphas. Use one with a single rank.")
        rank = ranks.pop()
        steps = metadata.get(_STEPS, "")
        return tensors, rank, alphas.pop() if alphas else float(rank), step_count(int(steps) if steps.isdigit() else 0)

    def _load(self, given: dict[str, Tensor]) -> None:
        for name, layer in self.layers.items() if given else ():
            for part, module in (("lora_down", down_of(layer)), ("lora_up", up_of(layer))):
                value = given.get(f"{self._file_name(name)}.{part}.weight")
                if value is None or value.shape != module.weight.shape:
                    raise ConfigError(f"Setting 'start_from': {self.config.start_from} is for another model ({name}).")
                with torch.no_grad():
                    module.weight.copy_(value)


def target_names(unet: nn.Module, targets: str) -> tuple[str, ...]:
    """Return the dotted names of the layers that a LoRA changes: "kv", "attention" or "all" (with feed-forward)."""
    sites = find_sites(unet)
    names = [f"{site.name}.{part}" for site in sites for part in _PARTS[targets]]
    if targets == "all":
        blocks = dict.fromkeys(site.name.rpartition(".")[0] for site in sites)
        names += [f"{block}.{part}" for block in blocks for part in _FEED_FORWARD]
    modules = dict(unet.named_modules())
    return tuple(name for name in names if isinstance(modules.get(name), nn.Linear))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(f"Training a LoRA requires peft. {install_advice('train')}.") from error
    return peft


def down_of(layer: Any) -> nn.Linear:
    """Return the matrix of a peft layer that reduces the width to the rank."""
    found: nn.Linear = layer.lora_A[_NAME]
    return found


def up_of(layer: Any) -> nn.Linear:
    """Return the matrix of a peft layer that leads from the rank to the outputs."""
    found: nn.Linear = layer.lora_B[_NAME]
    return found


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
