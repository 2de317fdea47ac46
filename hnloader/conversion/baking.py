"""Bake affine hypernetworks into the weights of a checkpoint.

An affine chain changes a context to c + A c + b. Keys W c become (W + W A) c + W b. The constant W b adds the same
number to all logits of a query, which the softmax ignores: it is left out. Values get the same constant at every token,
and attention weights sum to 1, so it reaches the output projection unchanged. The bias of that projection holds it.
So the result is exact for every model whose output projections have a bias, as those of Stable Diffusion have.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hnloader._version import __version__
from hnloader.affine import AffineMap
from hnloader.attention.layout import AttentionSite
from hnloader.conversion.lora.base_model import BaseModel, open_base
from hnloader.conversion.lora.lora_chain import Chain
from hnloader.conversion.lora.lora_sources import Item, check_family, load_applications
from hnloader.conversion.lora.unet_weights import UNetWeights, weight_files
from hnloader.errors import ExistingFileError, HypernetworkError, ModelError, NotMergeableError
from hnloader.files import copied, expanded, new_folder, replacing, same_file
from hnloader.formats.outgoing import STORED_DTYPES, Lazy
from hnloader.formats.safetensors import write_lazily
from hnloader.formats.weight_file import WeightFile, open_weights
from hnloader.network import SIDES, Hypernetwork, SideName
from hnloader.pipelines import CHECKPOINT_SUFFIXES
from hnloader.texts import shown

__all__ = ["Baked", "bake"]

Progress = Callable[[int, int, str], None]

# Key of the header with what was baked.
BAKED_KEY = "hnloader.baked"
# Keys with a hash of the data, which change with it.
_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# Largest error with float32 weights, relative to the largest output: float32 rounds at 6e-8.
_EXACT = 1e-5
_ROWS = 16


@dataclass(frozen=True)
class Baked:
    """The result of `hnloader.bake`.

    Attributes:
        path: The new checkpoint: a `.safetensors` file or a diffusers folder.
        base: Name of the model that it was made from.
        layers: Number of attention layers that changed.
        dtypes: Types of the changed weights, such as `float16`.
        error: Largest difference of keys, values and biases from those with the hypernetworks, relative to the largest
            one, on random contexts.

    Example:
        >>> import hnloader.demo, tempfile
        >>> outline = hnloader.demo.hypernetwork_paths()["outline"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = hnloader.bake((outline, 0.8), hnloader.demo.pipeline_folder(), f"{folder}/outlined")
        >>> made.layers, made.dtypes
        (20, ('float16',))
    """

    path: Path
    base: str
    layers: int
    dtypes: tuple[str, ...]
    error: float


def bake(
    hypernetworks: Item | Sequence[Item],
    base: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, total, text: None,
) -> Baked:
    """Write a copy of a checkpoint whose weights have the effect of affine hypernetworks.

    Each changed weight is computed in float64 and rounded once, to its stored type. All other tensors are copied bit
    for bit. Tensors are read and written one at a time.

    Args:
        hypernetworks: One, or several that are chained in this order, as in `hnloader.attach`, without start and end.
        base: The checkpoint: a diffusers folder, its `unet` folder, or a `.safetensors` or `.ckpt` file. It is only
            read.
        target: The checkpoint to write: a new folder for a folder, a `.safetensors` file for a file.
        overwrite: Replace an existing file. Folders are never replaced. Default: False.
        note: Receives remarks on the way. Default: drop them.
        progress: Called with `(done, total, step)` after each file or changed tensor. Default: show nothing.

    Returns:
        The checkpoint and its error.

    Raises:
        NotMergeableError: A hypernetwork is nonlinear, or a weight cannot hold the result.
        NoMatchingSitesError: A hypernetwork is made for another family of models.
        ExistingFileError: The target exists.
        ModelError: The base is missing, damaged, or something else than Stable Diffusion.
        HypernetworkError: A file cannot be read or written.

    Example:
        >>> import hnloader.demo, tempfile
        >>> outline = hnloader.demo.hypernetwork_paths()["outline"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = hnloader.bake(outline, hnloader.demo.pipeline_folder(), f"{folder}/outlined")
        ...     made.error < 1e-3
        True
    """
    source, path = expanded(base), expanded(target)
    if not source.exists():
        raise ModelError(f"{source}: found no such file or folder. Download the model, and give its path.")
    _check_target(source, path, overwrite=overwrite)
    model = open_base(source, note=note)
    assert model.weights is not None
    applications, sources, files = load_applications(hypernetworks, 1.0)
    for application in applications:
        check_family(_affine(application.hypernetwork), model, note)
    job = _Job(model, model.weights, Chain(applications, model.sites), progress)
    text = json.dumps({"version": __version__, "base": model.name, "fingerprint": model.fingerprint(), "from": sources})
    if source.is_dir():
        _write_folder(job, source, path, text, files)
    else:
        with replacing(path, overwrite=overwrite, sources=[source, *files]) as temporary:
            job.write(source, temporary, text)
    layers = {site.index for site, _ in job.sides()}
    return Baked(path, model.name, len(layers), tuple(sorted(job.dtypes)), job.error)


def _affine(hypernetwork: object) -> Hypernetwork:
    assert isinstance(hypernetwork, Hypernetwork)
    for scope in hypernetwork.scopes:
        if any(hypernetwork.side(scope, side).affine_map() is None for side in SIDES):
            raise NotMergeableError(
                f"{hypernetwork.name or 'Hypernetwork'}: found a nonlinear network "
                f"({hypernetwork.architecture or 'a composition'}), which no weights can replace. Keep it as a "
                "hypernetwork, or export a LoRA with hnloader export-lora, which states its error."
            )
    return hypernetwork


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    if source.is_dir():
        if os.path.lexists(target):
            raise ExistingFileError(f"{target}: it exists. A folder needs a new name: choose another one.")
        if source.resolve() in target.absolute().parent.resolve().joinpath(target.name).parents:
            raise HypernetworkError(f"{target}: this is inside of {source}, which stays unchanged. Write it elsewhere.")
    elif target.suffix.lower() != ".safetensors":
        raise HypernetworkError(f"{target}: found the suffix {shown(target.suffix)}. Name a .safetensors file.")
    elif same_file(source, target):
        raise HypernetworkError(f"{target}: this is the checkpoint itself. Write the result elsewhere.")
    elif os.path.lexists(target) and not overwrite:
        raise ExistingFileError(f"{target}: the file exists. Overwrite it or choose another name.")


class _Job:
    """The changed tensors of a model, which are computed while they are written.

    Attributes:
        dtypes: Types of the tensors that were changed so far.
        error: Their largest error so far.
    """

    def __init__(self, base: BaseModel, weights: UNetWeights, chain: Chain, progress: Progress) -> None:
        self._base, self._weights, self._chain, self._progress = base, weights, chain, progress
        self.dtypes: set[str] = set()
        self.error = 0.0
        self._done = 0
        # By file and stored name: how to change the tensor there.
        self._changes: dict[tuple[Path, str], Callable[[Tensor], Tensor]] = {}
        for site, side in self.sides():
            change = self._map(site, side)
            if change.matrix.any():
                self._plan(f"{site.name}.to_{side}.weight", partial(self._weight, site, side))
            if side == "v" and change.bias.any():
                self._plan(f"{site.name}.to_out.0.bias", partial(self._bias, site))
        if not self._changes:
            raise HypernetworkError("The hypernetworks change nothing at this strength. Give a larger one.")

    def sides(self) -> Iterator[tuple[AttentionSite, SideName]]:
        """Yield every projection that the chain changes."""
        return ((site, side) for site in self._base.sites for side in SIDES if self._chain.links(site, side))

    def write(self, source: Path, target: Path, about: str) -> None:
        """Write a file of the model with its changed tensors."""
        with open_weights(source) as opened:
            tensors = dict(opened.tensors)
            for (file, name), change in self._changes.items():
                if file == source:
                    tensors[name] = self._changed(name, tensors[name], change)
            _check_dtypes(source, tensors)
            metadata = {key: text for key, text in opened.metadata.items() if key not in _HASHES}
            write_lazily(target, tensors, {"format": "pt", **metadata, BAKED_KEY: _history(opened, about)})

    def _plan(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        try:
            self._changes[self._weights.place(name)] = change
        except ModelError as error:
            raise NotMergeableError(
                f"{self._base.name}: {name} is missing, so the weights cannot hold the constant of the values. Keep "
                "the hypernetwork as a file."
            ) from error

    def _map(self, site: AttentionSite, side: SideName) -> AffineMap:
        found = self._chain.affine(site, side)
        assert found is not None  # every hypernetwork is affine
        return found

    def _changed(self, name: str, stored: Lazy, change: Callable[[Tensor], Tensor]) -> Lazy:
        def get() -> Tensor:
            tensor = change(stored.get()).contiguous()
            if not torch.isfinite(tensor).all():
                raise NotMergeableError(
                    f"{name}: the values do not fit into {stored.dtype}. Bake into a checkpoint of float32 or bfloat16."
                )
            self.dtypes.add(stored.dtype)
            self._done += 1
            self._progress(self._done, len(self._changes), "Baking")
            return tensor

        return Lazy(stored.shape, stored.dtype, get)

    def _weight(self, site: AttentionSite, side: SideName, stored: Tensor) -> Tensor:
        """Return W + W A in the dtype of W, and measure it on random contexts."""
        weight, change = stored.double(), self._map(site, side)
        made = (weight + weight @ change.matrix).to(stored.dtype)
        generator = torch.Generator().manual_seed(site.index)
        context = torch.randn(1, _ROWS, site.width, generator=generator)
        wanted = (context.double() + self._chain.change(site, side, context)) @ weight.T
        # Without the constant, which attention ignores or the output's bias holds.
        found = context.double() @ made.double().T + weight @ change.bias
        self._measure(found, wanted, stored.dtype)
        return made

    def _bias(self, site: AttentionSite, stored: Tensor) -> Tensor:
        """Return the bias of the output projection with the constant of the values."""
        values, output = (self._base.weight(site, name).double() for name in ("to_v", "to_out.0"))
        wanted = stored.double() + output @ (values @ self._map(site, "v").bias)
        made = wanted.to(stored.dtype)
        self._measure(made.double(), wanted, stored.dtype)
        return made

    def _measure(self, found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
        error = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if dtype == torch.float32 and not error < _EXACT:
            raise NotMergeableError(
                f"The result differs from the hypernetworks by {error:.1e}. This is a bug: please report it."
            )
        self.error = max(self.error, error)


def _check_dtypes(source: Path, tensors: Mapping[str, Lazy]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_DTYPES:
            raise ModelError(f"{source}: {name} has the type {tensor.dtype}. Give a checkpoint of float16 or float32.")


def _history(opened: WeightFile, about: str) -> str:
    """Return what was baked into a file, the latest last."""
    earlier: list[object] = []
    with contextlib.suppress(ValueError):
        found = json.loads(opened.metadata.get(BAKED_KEY, "[]"))
        earlier = found if isinstance(found, list) else []
    return json.dumps([*earlier, json.loads(about)])


def _write_folder(job: _Job, source: Path, target: Path, about: str, files: Sequence[Path]) -> None:
    """Write a diffusers folder: the changed weights of its UNet, and copies of everything else."""
    unet = source / "unet" if (source / "model_index.json").is_file() else source
    weights = weight_files(unet)
    pickled = weights[0].suffix != ".safetensors"
    if pickled and len(weights) > 1:
        raise ModelError(f"{unet}: found weights in several .bin files. Save the UNet again with diffusers.")
    with new_folder(target) as temporary:
        for file in _others(source, unet, pickled=pickled):
            copy = temporary / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copied(file, copy)
        for file in weights:
            made = (temporary / file.relative_to(source)).with_suffix(".safetensors")
            made.parent.mkdir(parents=True, exist_ok=True)
            with replacing(made, overwrite=False, sources=[file, *files]) as part:
                job.write(file, part, about)


def _others(source: Path, unet: Path, *, pickled: bool) -> Iterator[Path]:
    """Yield the files to copy: all but the weights of the UNet, checkpoints beside the model, and hidden files."""
    for file in sorted(source.rglob("*")):
        parts = file.relative_to(source).parts
        if any(part.startswith(".") for part in parts) or not file.is_file():
            continue
        if file.parent == unet and file.name.startswith("diffusion_pytorch_model"):
            if pickled or not file.name.endswith(".index.json"):
                continue
        elif len(parts) == 1 and file.suffix.lower() in (*CHECKPOINT_SUFFIXES, ".bin"):
            continue
        yield file
