"""Train a LoRA on a language model; the output is a folder, as peft writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from hnloader.attention.decoders import decoder_of, is_transposed
from hnloader.attention.layout import find_sites
from hnloader.conversion.lora.peft_folder import write_peft_folder
from hnloader.errors import ConfigError
from hnloader.training.adapters import NamedModel, settings_text
from hnloader.training.lora_adapter import LoraAdapter, down_of, up_of


class DecoderLoraAdapter(LoraAdapter):
    """A LoRA on the decoder of a language model."""

    def _targets(self) -> tuple[str, ...]:
        names = tuple(decoder_target_names(self.unet, self.config.lora.targets))
        if not names:
            raise ConfigError(
                "Setting 'lora.targets': the model has one matrix for queries, keys and values, and 'kv' needs one for "
                "each. Use attention."
            )
        return names

    def _read(self, path: Path) -> tuple[dict[str, Tensor], int, float, int]:
        raise ConfigError(
            f"Setting 'start_from': found {path}, and a LoRA of a language model cannot be trained further. Use "
            "--resume with the same settings and more steps."
        )

    def save(self, path: Path, step: int, model: NamedModel) -> None:
        """See `Adapter`; the names are peft's."""
        layers = {
            name: tuple(part.weight.detach().cpu().contiguous().clone() for part in (down_of(layer), up_of(layer)))
            for name, layer in self.layers.items()
        }
        metadata = {"step": str(step), "training_config": settings_text(self.config)}
        transposed = any(is_transposed(layer.get_base_layer()) for layer in self.layers.values())
        write_peft_folder(
            path,
            {name: (down, up) for name, (down, up) in layers.items()},
            self.alpha,
            self.config.model,
            metadata,
            transposed=transposed,
        )


def decoder_target_names(model: nn.Module, targets: str) -> Iterator[str]:
    """Yield the layers that a LoRA changes: "kv", "attention" or "all" (with feed-forward); none for fused "kv"."""
    sites = find_sites(model)
    if targets == "kv":
        if all({"k_proj", "v_proj"} == set(site.slots) for site in sites):
            yield from (f"{site.name}.{slot}" for site in sites for slot in site.slots)
        return
    decoder = decoder_of(model)
    within = set(decoder.modules()) if targets == "all" and decoder is not None else set()
    within |= {part for site in sites for part in site.module.modules()}
    for name, module in model.named_modules():
        if module in within and (isinstance(module, nn.Linear) or is_transposed(module)):
            yield name
