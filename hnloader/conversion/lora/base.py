"""The model that a LoRA is made for: its attention layers, their weights, and running it.

Weights are read one tensor at a time from the model's files, so an exact conversion neither loads nor runs the
model. diffusers is imported only where it runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hnloader.attention.sites import AttentionSite, block_of, find_sites, unet_of
from hnloader.conversion.lora.names import diffusers_name
from hnloader.conversion.lora.running import Denoiser, DiffusersDenoiser
from hnloader.errors import HypernetworkError, ModelError
from hnloader.families import family_named, family_of_model
from hnloader.files import expanded, read_regular
from hnloader.formats.checkpoint import load_plain
from hnloader.formats.outgoing import tensor_bytes
from hnloader.pipelines import CHECKPOINT_SUFFIXES, choose_device, choose_dtype, load_model, quiet

Projection = Literal["to_k", "to_v", "to_out.0"]

_PREFIX = re.compile(r"^(?:model\.diffusion_model\.|diffusion_model\.|unet\.)")
_DOWNSAMPLER = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight")
_RESNET = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")
# What a whole checkpoint has besides the UNet.
_TEXT_ENCODERS = ("cond_stage_model.", "conditioner.")


class BaseModel:
    """A model's attention layers and their weights.

    Attributes:
        name: For messages and metadata: the file's or folder's name, or the class.
        sites: The attention layers, in the order in which they run. Read from files, their modules hold no data.
        layers: `layers_per_block`, which the original names depend on.
        folder: The model's folder, of one that is read from a folder.
        program: What runs the model instead of diffusers, where a program has it in memory.
    """

    def __init__(
        self,
        name: str,
        sites: tuple[AttentionSite, ...],
        layers: int,
        read: Callable[[str], Tensor],
        run: Callable[[], tuple[Any, nn.Module]],
        folder: Path | None = None,
    ) -> None:
        self.name, self.sites, self.layers, self.folder = name, sites, layers, folder
        self._read, self._run = read, run
        self._runnable: tuple[Any, nn.Module] | None = None
        self.program: Denoiser | None = None

    @property
    def family(self) -> str | None:
        """`SD 1`, `SD 2`, `SDXL`, or None for a model of no known family."""
        text = {site.width for site in self.sites if site.kind == "cross"}
        family = family_of_model(text, {site.width for site in self.sites if site.kind == "self"})
        return family.name if family else None

    def weight(self, site: AttentionSite, projection: Projection) -> Tensor:
        """The weight [outputs, inputs] of a layer's projection, as stored, on the CPU."""
        return self._read(f"{site.name}.{projection}.weight")

    def fingerprint(self) -> str:
        """16 digits that tell models apart: of the sha256 of the first layer's key weight, in float32."""
        weight = self.weight(self.sites[0], "to_k").float().contiguous()
        return hashlib.sha256(tensor_bytes(weight)).hexdigest()[:16]

    def denoiser(self) -> Denoiser | None:
        """What makes images with the model, None where there is a UNet alone. Raises ModelError."""
        if self.program is not None:
            return self.program
        pipeline, _ = self.runnable()
        return None if pipeline is None else DiffusersDenoiser(pipeline)

    def runnable(self) -> tuple[Any, nn.Module]:
        """(pipeline or None, UNet), loaded at the first call. Raises ModelError."""
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
        source: A pipeline or UNet of diffusers; or a path: a diffusers folder, the UNet folder of one, a single
            file (a checkpoint with the original's names, or a UNet alone with either names), `.safetensors` or
            `.ckpt`; or a name on the Hugging Face hub.
        config: As in `hnloader.pipelines.load_model`: a diffusers folder that says how a single file is built.
        device, dtype: Where and how it runs, if it has to.
        program: A program that has the model of a single file in memory, and runs it instead of diffusers.
        note: Told what is worth saying, such as that a checkpoint's text encoder could not be loaded.

    Raises:
        ModelError: It is missing, damaged, or no Stable Diffusion model.
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


# -- a model in memory


def _of_modules(name: str, pipeline: Any, unet: nn.Module) -> BaseModel:
    sites = find_sites(unet)
    if not sites:
        raise ModelError(f"{name} has no attention layers that hypernetworks act on: give a Stable Diffusion model.")

    def read(tensor: str) -> Tensor:
        module: Any = unet.get_submodule(tensor.removesuffix(".weight"))
        while hasattr(module, "base_layer"):  # peft's wrapper around the layer
            module = module.base_layer
        weight: Tensor = module.weight.detach().cpu()
        return weight

    layers = max(int(match[1]) for key, _ in unet.named_parameters() if (match := _RESNET.match(key))) + 1
    return BaseModel(name, sites, layers, read, lambda: (pipeline, unet))


# -- a model in files


def _of_folder(path: Path, device: str, dtype: str) -> BaseModel:
    whole = (path / "model_index.json").is_file()
    folder = path / "unet" if whole else path
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{path} is no diffusers model: it has neither a model_index.json nor a UNet's config.json. Give a "
            "folder saved by diffusers, its unet folder, or a checkpoint file."
        )

    def run() -> tuple[Any, nn.Module]:
        if whole:
            pipeline = load_model(path, device=device, dtype=dtype).pipeline
            return pipeline, pipeline.unet
        return None, _load_unet_folder(path, device, dtype)

    tensors = _Tensors(_weight_files(folder))
    return _of_tensors(path.resolve().name, tensors, run, path)


def _weight_files(folder: Path) -> list[Path]:
    """The files with the UNet's weights: safetensors before .bin, and full weights before a variant's (fp16)."""
    for suffix in (".safetensors", ".bin"):
        found = sorted(folder.glob(f"diffusion_pytorch_model*{suffix}"))
        plain = [file for file in found if file.name.count(".") == 1]
        if found:
            return plain or found
    raise ModelError(f"{folder} has no weights: there is no diffusion_pytorch_model.safetensors in it.")


def _of_file(
    path: Path, config: str | os.PathLike[str] | None, device: str, dtype: str, note: Callable[[str], None]
) -> BaseModel:
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise ModelError(f"{path} is no model file: models end in {' or '.join(CHECKPOINT_SUFFIXES)}.")
    tensors = _Tensors([path])

    def run() -> tuple[Any, nn.Module]:
        if tensors.whole:
            try:
                pipeline = load_model(path, device=device, dtype=dtype, config=config).pipeline
                return pipeline, pipeline.unet
            except ModelError as error:
                if config is not None:
                    raise
                note(f"{error} Its UNet is used without its text encoder.")
        return None, _load_unet_file(path, tensors, base.family, config, device, dtype)

    base = _of_tensors(path.stem, tensors, run, None)
    return base


def _of_tensors(
    name: str, tensors: _Tensors, run: Callable[[], tuple[Any, nn.Module]], folder: Path | None
) -> BaseModel:
    sites = tuple(_sites(tensors))
    if not sites:
        raise ModelError(
            f"{tensors.label} has no attention layers of a Stable Diffusion UNet. Give a diffusers folder, its unet "
            "folder, or a checkpoint of SD 1, SD 2 or SDXL."
        )
    return BaseModel(name, sites, tensors.layers, tensors.read, run, folder)


class _Tensors:
    """The UNet tensors of some files under diffusers' names, read one by one."""

    def __init__(self, files: list[Path]) -> None:
        self.label = str(files[0] if len(files) == 1 else files[0].parent)
        self.whole = False
        self._stored: dict[str, tuple[Path, str]] = {}  # name without prefix -> file, name in it
        self._loaded: dict[Path, Mapping[str, Tensor]] = {}
        for file in files:
            for name in self._names(file):
                self.whole |= name.startswith(_TEXT_ENCODERS)
                self._stored[_PREFIX.sub("", name)] = file, name
        self.layers = self._layers()
        self._by_diffusers = {diffusers_name(name, self.layers) or name: place for name, place in self._stored.items()}

    @property
    def names(self) -> Iterator[str]:
        """The names as diffusers has them."""
        return iter(self._by_diffusers)

    @property
    def original(self) -> bool:
        """Whether the files use the original's names."""
        return any(name.startswith("input_blocks.") for name in self._stored)

    def read(self, name: str) -> Tensor:
        """The tensor that diffusers calls `name`. Raises ModelError."""
        if name not in self._by_diffusers:
            raise ModelError(f"{self.label} has no {name}: the model is incomplete.")
        file, stored = self._by_diffusers[name]
        if file in self._loaded:
            return self._loaded[file][stored]
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(stored)
                return tensor
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error

    def width(self, name: str) -> int:
        """Number of input features of a weight, from the file's header alone."""
        file, stored = self._by_diffusers[name]
        if file in self._loaded:
            return int(self._loaded[file][stored].shape[1])
        with safe_open(file, framework="pt") as opened:
            return int(opened.get_slice(stored).get_shape()[1])

    def _names(self, file: Path) -> list[str]:
        if file.suffix.lower() == ".safetensors":
            try:
                with safe_open(file, framework="pt") as opened:
                    return list(opened.keys())
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file} is no sound safetensors file: {error}") from error
        try:
            content = load_plain(file)
        except HypernetworkError as error:
            raise ModelError(
                f"{file} cannot be read as plain weights ({str(error).strip().splitlines()[0][:120]}). Give the model "
                "as .safetensors or as a diffusers folder."
            ) from error
        if not isinstance(content, dict):
            raise ModelError(f"{file} holds a {type(content).__name__} where a dict of weights was expected.")
        content = content.get("state_dict", content)
        self._loaded[file] = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
        return list(self._loaded[file])

    def _layers(self) -> int:
        first_downsampler = min(
            (int(match[1]) for name in self._stored if (match := _DOWNSAMPLER.match(name))), default=0
        )
        if first_downsampler:
            return first_downsampler - 1
        return max((int(match[1]) for name in self._stored if (match := _RESNET.match(name))), default=1) + 1


_SECTIONS = {"down": 0, "mid": 1, "up": 2}


def _sites(tensors: _Tensors) -> Iterator[AttentionSite]:
    """What `find_sites` would find in the model, with modules that hold no data."""
    suffix = ".to_k.weight"
    names = [name.removesuffix(suffix) for name in tensors.names if name.endswith(suffix)]
    names = sorted((name for name in names if block_of(name)), key=_running_order)
    for index, name in enumerate(names):
        width = tensors.width(f"{name}{suffix}")
        # Some models have cross-attention in attn1 as well; its context is then not what the queries come from.
        cross = name.endswith("attn2") or width != tensors.width(f"{name}.to_q.weight")
        yield AttentionSite(index, name, block_of(name) or "", "cross" if cross else "self", width, nn.Module())


def _running_order(name: str) -> tuple[object, ...]:
    section = (block_of(name) or "").partition(".")[0]
    return _SECTIONS[section], *(int(part) for part in name.split(".") if part.isdigit()), name[-1]


# -- running a UNet alone


def _load_unet_folder(path: Path, device: str, dtype: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    try:
        with quiet():
            unet = UNet2DConditionModel.from_pretrained(path, local_files_only=True)
    except Exception as error:  # safetensors, json and diffusers each raise their own
        raise ModelError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return _placed(unet, device, dtype)


def _load_unet_file(
    path: Path, tensors: _Tensors, family: str | None, config: str | os.PathLike[str] | None, device: str, dtype: str
) -> nn.Module:
    from diffusers import UNet2DConditionModel

    settings = _unet_config(path, family, config)
    try:
        with quiet():
            if tensors.original:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "config.json").write_text(json.dumps(settings), encoding="utf-8")
                    unet = UNet2DConditionModel.from_single_file(os.fspath(path), config=folder, local_files_only=True)
            else:
                unet = UNet2DConditionModel.from_config(settings)
                unet.load_state_dict({name: tensors.read(name) for name in tensors.names})
    except Exception as error:  # safetensors, torch and diffusers each raise their own
        raise ModelError(f"{path} cannot be loaded as a UNet: {str(error).strip().splitlines()[0]}") from error
    return _placed(unet, device, dtype)


def _unet_config(path: Path, family: str | None, config: str | os.PathLike[str] | None) -> dict[str, object]:
    if config is not None:
        for file in (Path(config) / "unet" / "config.json", Path(config) / "config.json"):
            if file.is_file():
                found: dict[str, object] = json.loads(read_regular(file))
                return found
        raise ModelError(f"{config} has no unet/config.json: give a diffusers folder of the same kind of model.")
    known = family_named(family)
    if known is None or not known.takes_hypernetworks:
        raise ModelError(
            f"{path} is a UNet of no known family, so how it is built has to be said: give a diffusers folder of the "
            "same kind of model as config."
        )
    return known.unet_config()


def _placed(unet: Any, device: str, dtype: str) -> nn.Module:
    target = choose_device(device)
    with quiet():
        placed: nn.Module = unet.to(device=target, dtype=choose_dtype(dtype, target)).eval()
    return placed
