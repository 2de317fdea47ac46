"""The attention weights of a UNet in files, read one by one under the names of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hnloader.attention.layout import AttentionSite, block_of
from hnloader.conversion.lora.layer_names import diffusers_name
from hnloader.errors import ModelError
from hnloader.formats.weight_file import open_weights

__all__ = ["UNetWeights", "weight_files"]

_PREFIX = re.compile(r"^(?:model\.diffusion_model\.|diffusion_model\.|unet\.)")
_DOWNSAMPLER = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight")
_RESNET = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")
# Prefixes of the text encoders in a whole checkpoint.
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.")
_SECTIONS = {"down": 0, "mid": 1, "up": 2}


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a UNet folder: safetensors before .bin, full weights before variants (fp16)."""
    for suffix in (".safetensors", ".bin"):
        found = sorted(folder.glob(f"diffusion_pytorch_model*{suffix}"))
        plain = [file for file in found if file.name.count(".") == 1]
        if found:
            return plain or found
    raise ModelError(f"{folder}: found no diffusion_pytorch_model.safetensors. Save the UNet again with diffusers.")


class UNetWeights:
    """The tensors of a UNet in files.

    Attributes:
        label: Name in messages.
        whole: The files hold a text encoder too.
        layers: `layers_per_block` of the UNet.
    """

    def __init__(self, files: list[Path]) -> None:
        self.label = str(files[0] if len(files) == 1 else files[0].parent)
        self.whole = False
        self._stored: dict[str, tuple[Path, str]] = {}  # name without prefix -> file, name in it
        self._pickled: dict[tuple[Path, str], tuple[int, ...]] = {}  # shapes of the tensors in pickles
        for file in files:
            for name in self._names(file):
                self.whole |= name.startswith(_TEXT_ENCODERS)
                self._stored[_PREFIX.sub("", name)] = file, name
        self.layers = self._layers()
        self._by_diffusers = {diffusers_name(name, self.layers) or name: place for name, place in self._stored.items()}

    @property
    def names(self) -> Iterator[str]:
        """The names of diffusers."""
        return iter(self._by_diffusers)

    @property
    def original(self) -> bool:
        """The files use the original names."""
        return any(name.startswith("input_blocks.") for name in self._stored)

    def place(self, name: str) -> tuple[Path, str]:
        """Return the file of a tensor and its name there, given its name in diffusers. Raises ModelError."""
        if name not in self._by_diffusers:
            raise ModelError(f"{self.label}: {name} is missing. Give a complete model.")
        return self._by_diffusers[name]

    def read(self, name: str) -> Tensor:
        """Read a tensor by its name in diffusers. Raises ModelError."""
        file, stored = self.place(name)
        if (file, stored) in self._pickled:
            with open_weights(file) as weights:
                return weights.tensors[stored].get()
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(stored)
                return tensor
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: cannot be read: {error}") from error

    def sites(self) -> tuple[AttentionSite, ...]:
        """Return the sites that `find_sites` would find in the model, with modules that hold no data."""
        suffix = ".to_k.weight"
        names = [name.removesuffix(suffix) for name in self.names if name.endswith(suffix)]
        names = sorted((name for name in names if block_of(name)), key=_running_order)
        return tuple(self._site(index, name) for index, name in enumerate(names))

    def _site(self, index: int, name: str) -> AttentionSite:
        width = self._width(f"{name}.to_k.weight")
        # attn1 is cross-attention too in some models; then its context and its queries differ in width.
        cross = name.endswith("attn2") or width != self._width(f"{name}.to_q.weight")
        return AttentionSite(index, name, block_of(name) or "", "cross" if cross else "self", width, nn.Module())

    def _width(self, name: str) -> int:
        """Return the number of input features of a weight, from the header of its file."""
        file, stored = self._by_diffusers[name]
        if (file, stored) in self._pickled:
            return self._pickled[file, stored][1]
        with safe_open(file, framework="pt") as opened:
            return int(opened.get_slice(stored).get_shape()[1])

    def _names(self, file: Path) -> list[str]:
        if file.suffix.lower() == ".safetensors":
            try:
                with safe_open(file, framework="pt") as opened:
                    return list(opened.keys())
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file}: the safetensors file is damaged: {error}") from error
        with open_weights(file) as weights:
            self._pickled |= {(file, name): tensor.shape for name, tensor in weights.tensors.items()}
            return list(weights.tensors)

    def _layers(self) -> int:
        first_downsampler = min(
            (int(match[1]) for name in self._stored if (match := _DOWNSAMPLER.match(name))), default=0
        )
        if first_downsampler:
            return first_downsampler - 1
        return max((int(match[1]) for name in self._stored if (match := _RESNET.match(name))), default=1) + 1


def _running_order(name: str) -> tuple[object, ...]:
    section = (block_of(name) or "").partition(".")[0]
    return _SECTIONS[section], *(int(part) for part in name.split(".") if part.isdigit()), name[-1]
