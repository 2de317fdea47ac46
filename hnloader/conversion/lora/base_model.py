"""The model that a LoRA is made for: its attention layers and their weights.

Weights are read one by one from the files of the model, so an exact export neither loads nor runs it. diffusers is
imported only to run it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from hnloader.attention.layout import AttentionSite, family_of_sites, find_sites, unet_of
from hnloader.conversion.lora.model_runner import Denoiser, DiffusersDenoiser
from hnloader.conversion.lora.unet_loading import load_unet_file, load_unet_folder
from hnloader.conversion.lora.unet_weights import UNetWeights, weight_files
from hnloader.errors import ModelError
from hnloader.families import family_list
from hnloader.files import expanded
from hnloader.formats.outgoing import tensor_bytes
from hnloader.pipelines import CHECKPOINT_SUFFIXES, load_model

__all__ = ["BaseModel", "Projection", "open_base"]

Projection = Literal["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
_Runnable: TypeAlias = "tuple[Any, nn.Module]"  # pipeline or None, UNet
_RESNET = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")


class BaseModel:
    """The attention layers and weights of a model. Made by `open_base`.

    Attributes:
        name: Name in messages and metadata: that of the file or folder, or the class.
        sites: The attention layers in running order. Those read from files have modules without data.
        layers: `layers_per_block` of the UNet, which the original names depend on.
        folder: Folder of the model, or None.
        weights: Its weights in files, or None for a model in memory.
        program: A program that runs the model in place of diffusers, or None.
    """

    def __init__(
        self,
        name: str,
        sites: tuple[AttentionSite, ...],
        layers: int,
        read: Callable[[str], Tensor],
        run: Callable[[], _Runnable],
        folder: Path | None = None,
        weights: UNetWeights | None = None,
    ) -> None:
        self.name, self.sites, self.layers, self.folder, self.weights = name, sites, layers, folder, weights
        self._read, self._run = read, run
        self._runnable: _Runnable | None = None
        self.program: Denoiser | None = None

    @property
    def family(self) -> str | None:
        """`SD 1`, `SD 2`, `SDXL`, or None for other models."""
        family = family_of_sites(self.sites)
        return family.name if family else None

    def weight(self, site: AttentionSite, projection: Projection) -> Tensor:
        """Return the weight [outputs, inputs] of a projection in its stored dtype, on the CPU."""
        return self._read(f"{site.name}.{projection}.weight")

    def fingerprint(self) -> str:
        """Return 16 hex digits of the sha256 of the first layer's key weight in float32."""
        weight = self.weight(self.sites[0], "to_k").float().contiguous()
        return hashlib.sha256(tensor_bytes(weight)).hexdigest()[:16]

    def denoiser(self) -> Denoiser | None:
        """Return the runner of the model, or None for a UNet alone. Raises ModelError."""
        if self.program is not None:
            return self.program
        pipeline, _ = self.runnable()
        return None if pipeline is None else DiffusersDenoiser(pipeline)

    def runnable(self) -> _Runnable:
        """Return (pipeline or None, UNet), loaded at the first call. Raises ModelError."""
        if self._runnable is None:
            self._runnable = self._run()
        return self._runnable


def open_base(
    source: Any,
    *,
    config: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    program: Denoiser | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> BaseModel:
    """Open the model that a LoRA is made for, without loading it.

    Args:
        source: A pipeline or UNet of diffusers; the path of a diffusers folder or of its `unet` folder; the path of a
            single `.safetensors` or `.ckpt` file (a checkpoint with the original names, or a UNet with either names);
            or a name on the Hugging Face Hub.
        config: A diffusers folder of the same kind of model, which describes a single file. Default: None, diffusers
            looks it up.
        device: Device that the model runs on, if it has to: `auto`, `cpu`, `cuda`, ... Default: `auto`.
        dtype: Type that the model runs in. Default: `auto`.
        program: A program that has the model of a single file in memory and runs it in place of diffusers.
            Default: None.
        note: Receives remarks, such as one about a text encoder that cannot be loaded. Default: drop them.

    Returns:
        The model.

    Raises:
        ModelError: The model is missing, damaged, or something else than Stable Diffusion.

    Example:
        >>> import hnloader.demo
        >>> from hnloader.conversion.lora import open_base
        >>> len(open_base(hnloader.demo.pipeline_folder()).sites)
        20
    """
    unet = unet_of(source)
    if unet is not None:
        return _of_modules(type(source).__name__, None if source is unet else source, unet)
    path = expanded(source)
    if path.is_dir():
        return _of_folder(path, device, dtype)
    if path.is_file():
        base = _of_file(path, config, device, dtype, note)
        base.program = program
        return base
    model = load_model(str(source), device=device, dtype=dtype, config=config)
    return _of_modules(model.name, model.pipeline, model.pipeline.unet)


def _of_modules(name: str, pipeline: Any, unet: nn.Module) -> BaseModel:
    sites = find_sites(unet)
    if not sites:
        raise ModelError(f"{name}: found no attention layers for hypernetworks. Give a Stable Diffusion model.")

    def read(tensor: str) -> Tensor:
        module: Any = unet.get_submodule(tensor.removesuffix(".weight"))
        while hasattr(module, "base_layer"):  # peft's wrapper around the layer
            module = module.base_layer
        weight: Tensor = module.weight.detach().cpu()
        return weight

    layers = max(int(match[1]) for key, _ in unet.named_parameters() if (match := _RESNET.match(key))) + 1
    return BaseModel(name, sites, layers, read, lambda: (pipeline, unet))


def _of_folder(path: Path, device: str, dtype: str) -> BaseModel:
    whole = (path / "model_index.json").is_file()
    folder = path / "unet" if whole else path
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{path}: found neither a model_index.json nor the config.json of a UNet. Give a folder of diffusers, its "
            "unet folder, or a checkpoint file."
        )

    def run() -> _Runnable:
        if not whole:
            return None, load_unet_folder(path, device, dtype)
        pipeline = load_model(path, device=device, dtype=dtype).pipeline
        return pipeline, pipeline.unet

    return _of_weights(path.resolve().name, UNetWeights(weight_files(folder)), run, path)


def _of_file(
    path: Path, config: str | os.PathLike[str] | None, device: str, dtype: str, note: Callable[[str], None]
) -> BaseModel:
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise ModelError(f"{path}: found the suffix {path.suffix!r}. Give a {' or '.join(CHECKPOINT_SUFFIXES)} file.")
    weights = UNetWeights([path])

    def run() -> _Runnable:
        if weights.whole:
            try:
                pipeline = load_model(path, device=device, dtype=dtype, config=config).pipeline
                return pipeline, pipeline.unet
            except ModelError as error:
                if config is not None:
                    raise
                note(f"{error} Using its UNet without its text encoder.")
        return None, load_unet_file(path, weights, base.family, config, device, dtype)

    base = _of_weights(path.stem, weights, run, None)
    return base


def _of_weights(name: str, weights: UNetWeights, run: Callable[[], _Runnable], folder: Path | None) -> BaseModel:
    sites = weights.sites()
    if not sites:
        raise ModelError(
            f"{weights.label}: found no attention layers of a Stable Diffusion UNet. Give a diffusers folder, its unet "
            f"folder, or a checkpoint of {family_list()}."
        )
    return BaseModel(name, sites, weights.layers, weights.read, run, folder, weights)
