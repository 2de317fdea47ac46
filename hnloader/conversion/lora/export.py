"""Export hypernetworks as a LoRA or LyCORIS file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hnloader._version import __version__
from hnloader.affine import AffineMap
from hnloader.attention import Application
from hnloader.attention.layout import AttentionSite
from hnloader.conversion.lora import lora_file
from hnloader.conversion.lora.base_model import BaseModel, Projection, open_base
from hnloader.conversion.lora.context_samples import Layer, Progress, Sampling, Statistics, random_contexts, sample
from hnloader.conversion.lora.decoder_export import export_decoder_lora
from hnloader.conversion.lora.export_result import ALPHA, POOR_FIT, Errors, LayerChange, LoraExport, Refinement
from hnloader.conversion.lora.fitting import fit_context_map, measure, rank_directions
from hnloader.conversion.lora.image_grid import image_grid
from hnloader.conversion.lora.layer_names import NameStyle
from hnloader.conversion.lora.lora_chain import Chain
from hnloader.conversion.lora.lora_options import KIND_NAMES, LoraOptions, prompt_lines
from hnloader.conversion.lora.lora_sources import Item, check_family, check_mixing, load_applications
from hnloader.conversion.lora.refining import refine
from hnloader.errors import HypernetworkError
from hnloader.files import check_free, replacing_together, same_file
from hnloader.language_models import is_language_model, load_language_model
from hnloader.network import SIDES, Hypernetwork, SideName

__all__ = ["export_lora", "source_metadata"]

# Prompts in the folder of a model, which suit it better than the general ones.
_OWN_PROMPTS = "prompts.txt"
_PROMPTS = Path(__file__).with_name("prompts.txt")
_PROJECTIONS: Mapping[SideName, Projection] = {"k": "to_k", "v": "to_v"}


def _quiet(done: int, total: int, text: str) -> None:
    """Show no progress."""


def export_lora(
    hypernetworks: Item | Sequence[Item],
    base: Any,
    target: str | os.PathLike[str],
    options: LoraOptions | None = None,
    *,
    grid: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = _quiet,
) -> LoraExport:
    """Write a LoRA or LyCORIS file that changes the keys and values of a model as hypernetworks do.

    Keys and values are fitted by reduced-rank regression (A. J. Izenman, Journal of Multivariate Analysis 5, 1975).

    Args:
        hypernetworks: One, or several that are chained in this order, as in `hnloader.attach`: hypernetworks, paths
            of files, pairs of these and a strength, or `Application`s without start and end.
        base: The model that the file is for: anything that `hnloader.conversion.lora.open_base` opens, or the
            `BaseModel` that it returns, to use one for many files; or the path of a language model, a folder of
            transformers or a `.gguf` file.
        target: The file to write, `.safetensors`; for a language model, the folder to write for peft.
        options: Settings. Default: `LoraOptions()`, a LoRA with a fidelity of 0.95.
        grid: A `.png` to write with images without the hypernetworks, with them, and with the file. Default: None.
        overwrite: Replace `target` and `grid` if they exist; otherwise raise an error. Default: True.
        note: Receives remarks on the way. Default: drop them.
        progress: Called with `(done, total, step)`. Default: show nothing.

    Returns:
        The file with its ranks and errors, which its metadata also states.

    Raises:
        ExistingFileError: A file exists, and `overwrite` is False.
        NoMatchingSitesError: A hypernetwork is made for another family of models.
        ModelError: The model is missing, damaged, or something else than Stable Diffusion.
        HypernetworkError: A setting is impossible, such as a rank over the width, or the file cannot be written. No
            file is left behind.

    Example:
        >>> import hnloader.demo, tempfile
        >>> outline = hnloader.demo.hypernetwork_paths()["outline"]
        >>> base = hnloader.demo.pipeline_folder()
        >>> options = hnloader.LoraOptions(kind="lycoris", strength=0.8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = hnloader.export_lora(outline, base, f"{folder}/outline.safetensors", options)
        >>> made.kind, made.exact
        ('lycoris', True)
    """
    options = options or LoraOptions()
    if isinstance(base, (str, os.PathLike)) and is_language_model(base):
        if grid is not None:
            raise HypernetworkError(f"{os.fspath(base)}: a language model makes no images. Leave out grid.")
        language = load_language_model(base, dtype="float32")
        return export_decoder_lora(
            hypernetworks, language, target, options, base=os.fspath(base), overwrite=overwrite, progress=progress
        )
    path = _checked_target(target)
    written = [path, *([] if grid is None else [Path(grid)])]
    if not overwrite:
        for each in written:
            check_free(each)
    applications, sources, files = load_applications(hypernetworks, options.strength)
    for application in applications:
        check_mixing(cast("Hypernetwork", application.hypernetwork))
    _check_sources(written, files)
    model = base if isinstance(base, BaseModel) else open_base(base, note=note)
    for application in applications:
        check_family(cast("Hypernetwork", application.hypernetwork), model, note)
    job = _Job(model, Chain(applications, model.sites), options, _sampling(options, model))
    statistics = job.sample(progress)
    changes, errors = job.fit(statistics, progress)
    refinement = None
    if options.refine:
        changes, refinement = refine(model, job.chain, job.sampling, changes, statistics, options.refine, progress)
        errors = job.errors(changes, statistics)
        if refinement is None or refinement.interrupted:  # now finish the file
            progress = _quiet
    image = differences = None
    if grid is not None:
        image, differences = _image_grid(job, applications, changes, progress)
    warnings = _warnings(job, changes, errors, statistics, refinement)
    style = _style(options, model)
    ranks = {change.rank for change in changes}
    metadata = lora_file.kohya_metadata(ranks, ALPHA, options.kind, model.family, model.name, path.stem, style)
    metadata |= _result_metadata(job, errors, statistics, warnings, differences)
    if refinement is not None:
        metadata["hnloader.refinement"] = json.dumps(dataclasses.asdict(refinement))
    metadata |= source_metadata(sources, model, options)
    tensors = _tensors(changes, style, job)
    with replacing_together(dict.fromkeys(reversed(written), files), overwrite=overwrite) as (*grids, temporary):
        size = lora_file.write(temporary, tensors, metadata)
        if image is not None:
            image.save(grids[0], format="PNG")
    return LoraExport(
        path=path,
        kind=options.kind,
        base=model.name,
        family=model.family,
        exact=job.exact,
        ranks={change.name: change.rank for change in changes if change.rank is not None},
        errors=errors,
        statistics=statistics.description,
        warnings=warnings,
        image_differences=differences,
        size=size,
        refinement=refinement,
    )


def source_metadata(sources: Sequence[Mapping[str, object]], base: BaseModel, options: LoraOptions) -> dict[str, str]:
    """Return the metadata about the sources, the model and the settings of a file."""
    sampling = _sampling(options, base)
    settings: dict[str, object] = {
        "dtype": options.dtype_name,
        "names": _style(options, base),
        **({"bias": options.bias} if options.kind == "lycoris" else {"rank": options.rank}),
        **({"refine": options.refine} if options.refine else {}),
        **({"fidelity": options.fidelity} if options.kind == "lora" and options.rank == "auto" else {}),
        "prompts_sha256": hashlib.sha256("\n".join(sampling.prompts).encode()).hexdigest(),
        **{name: getattr(sampling, name) for name in ("images", "steps", "seed", "guidance")},
    }
    return {
        "hnloader.kind": options.kind,
        "hnloader.sources": json.dumps(sources),
        "hnloader.base": json.dumps({"name": base.name, "family": base.family, "fingerprint": base.fingerprint()}),
        "hnloader.settings": json.dumps(settings),
    }


# -- arguments


def _checked_target(target: str | os.PathLike[str]) -> Path:
    path = Path(target)
    if path.suffix.lower() != ".safetensors":
        raise HypernetworkError(f"{path}: found the suffix {path.suffix!r}. LoRA files end in .safetensors.")
    if path.is_dir():
        raise HypernetworkError(f"{path}: this is a folder. Name a file to write.")
    if not path.absolute().parent.is_dir():
        raise HypernetworkError(f"{path}: the folder does not exist. Create it first.")
    return path


def _check_sources(written: Sequence[Path], files: Sequence[Path]) -> None:
    for each, file in itertools.product(written, files):
        if same_file(each, file):
            raise HypernetworkError(f"{each}: this is one of the hypernetworks. Write the result elsewhere.")


def _style(options: LoraOptions, base: BaseModel) -> NameStyle:
    return lora_file.name_style(base.family) if options.names == "auto" else options.names


def _sampling(options: LoraOptions, base: BaseModel) -> Sampling:
    prompts = _prompts(options.prompts, base)
    return Sampling(prompts, options.images, options.steps, options.seed, options.guidance)


def _prompts(given: Sequence[str] | str | os.PathLike[str] | None, base: BaseModel) -> tuple[str, ...]:
    """Return the prompts without repetitions. Raises HypernetworkError."""
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return tuple(dict.fromkeys(given))
    path = _PROMPTS
    if given is not None:
        path = Path(given)
    elif base.folder is not None and (base.folder / _OWN_PROMPTS).is_file():
        path = base.folder / _OWN_PROMPTS
    return tuple(dict.fromkeys(line.strip() for line in prompt_lines(path) if line.strip()))


# -- the work


@dataclass
class _Job:
    """An export with all decisions made."""

    base: BaseModel
    chain: Chain
    options: LoraOptions
    sampling: Sampling

    def sides(self) -> Iterator[tuple[AttentionSite, SideName]]:
        """Yield every projection that the chain changes."""
        return ((site, side) for site in self.base.sites for side in SIDES if self.chain.links(site, side))

    @property
    def affine(self) -> bool:
        """The chain is an affine map at every layer."""
        return all(self.chain.affine(site, side) is not None for site, side in self.sides())

    @property
    def exact(self) -> bool:
        """The result needs no fit, and so no samples."""
        return self.options.kind == "lycoris" and self.affine

    def sample(self, progress: Progress) -> Statistics:
        """Sample contexts, after checking the rank: sampling can take hours."""
        rank = self.options.rank
        if isinstance(rank, int) and self.options.kind == "lora":
            for site, side in self.sides():
                self._check_rank(rank, site, side)
        if self.exact:
            return random_contexts(self.base.sites, self.chain, self.sampling.seed)
        return sample(self.base, self.chain, self.sampling, progress)

    def fit(self, statistics: Statistics, progress: Progress) -> tuple[list[LayerChange], Errors]:
        """Return the changes of all layers, and their errors."""
        changes: list[LayerChange] = []
        errors = Errors()
        maps: dict[tuple[int, SideName], AffineMap] = {}  # cross-attention layers share samples, and so maps
        sides = list(self.sides())
        full = self.options.kind == "lycoris"
        for index, (site, side) in enumerate(sides):
            layer = statistics.of(site)
            key = (id(layer), side)
            if key not in maps:
                maps[key] = fit_context_map(layer, side, with_bias=full)
            weight = self.base.weight(site, _PROJECTIONS[side]).double()
            bias = None
            if full:
                made, bias = self._full(site, side, weight, maps[key])
            else:
                made = [self._low_rank(site, side, weight, maps[key], layer)]
            errors.add(site, side, measure(weight, layer, side, made[0].delta(), bias))
            changes += made
            progress(index + 1, len(sides), "Fitting layers")
        if not any(change.delta().any() for change in changes):
            raise HypernetworkError("The hypernetworks change nothing at this strength. Give a larger one.")
        return changes, errors

    def errors(self, changes: Sequence[LayerChange], statistics: Statistics) -> Errors:
        """Return the errors of low-rank changes."""
        errors = Errors()
        own = [change for change in changes if change.projection in _PROJECTIONS.values()]
        for (site, side), change in zip(self.sides(), own, strict=True):
            weight = self.base.weight(site, _PROJECTIONS[side]).double()
            errors.add(site, side, measure(weight, statistics.of(site), side, change.delta()))
        return errors

    def _low_rank(
        self, site: AttentionSite, side: SideName, weight: Tensor, change: AffineMap, layer: Layer
    ) -> LayerChange:
        ranked = rank_directions(weight, change.matrix, layer, side)
        rank = len(ranked.down) if self.options.rank == "full" else self.options.rank
        if rank == "auto":
            rank = ranked.rank_for(self.options.allowed_error)
        assert isinstance(rank, int)
        up, down = ranked.up[:, :rank], ranked.down[:rank]
        # Split the size evenly between both factors, so that both stay in the range of half precision.
        share = (down.norm(dim=1).clamp_min(1e-30) * (rank / ALPHA)).sqrt()
        up, down = up * share, down * ((rank / ALPHA) / share)[:, None]
        dtype = self.options.dtype
        return LayerChange(site, _PROJECTIONS[side], down=down.to(dtype), up=up.to(dtype))

    def _full(
        self, site: AttentionSite, side: SideName, weight: Tensor, change: AffineMap
    ) -> tuple[list[LayerChange], Tensor | None]:
        dtype, projection = self.options.dtype, _PROJECTIONS[side]
        diff, constant = (weight @ change.matrix).to(dtype), weight @ change.bias
        plain = LayerChange(site, projection, diff=diff)
        if not constant.any():
            return [plain], None
        if self.options.bias == "projection":
            stored = constant.to(dtype)
            return [replace(plain, diff_b=stored)], stored
        if side == "k":  # attention ignores it
            return [plain], None
        output = self.base.weight(site, "to_out.0").double()
        # AUTOMATIC1111's webui reads a diff_b only beside a diff.
        zeros = torch.zeros(output.shape, dtype=dtype)
        return [plain, LayerChange(site, "to_out.0", diff=zeros, diff_b=(output @ constant).to(dtype))], constant

    def _check_rank(self, rank: int, site: AttentionSite, side: SideName) -> None:
        width = min(self.base.weight(site, _PROJECTIONS[side]).shape)
        if rank > width:
            raise HypernetworkError(
                f"Rank {rank} is over the width of {site.name}, {width}. Give {width} or less, 'auto', or 'full' for "
                "the width of each layer."
            )


def _tensors(changes: Sequence[LayerChange], style: NameStyle, job: _Job) -> dict[str, Tensor]:
    """Return the tensors of the file. Raises HypernetworkError for values out of the range of the dtype."""
    tensors = lora_file.named_tensors(changes, style, job.base.layers)
    if (name := lora_file.overflowing(tensors)) is not None:
        raise HypernetworkError(f"{name}: the values do not fit into {job.options.dtype_name}. Use float32.")
    return tensors


def _image_grid(
    job: _Job, applications: Sequence[Application], changes: Sequence[LayerChange], progress: Progress
) -> tuple[Any, dict[str, float]]:
    pipeline, _ = job.base.runnable()
    if pipeline is None:
        raise HypernetworkError(f"{job.base.name}: this is a UNet alone. Give a whole model to make images with.")
    return image_grid(pipeline, applications, changes, job.sampling, KIND_NAMES[job.options.kind], progress)


# -- remarks


def _warnings(
    job: _Job,
    changes: Sequence[LayerChange],
    errors: Errors,
    statistics: Statistics,
    refinement: Refinement | None,
) -> tuple[str, ...]:
    keys, values = (errors.overall(side).of_change for side in SIDES)
    low_rank = job.options.kind == "lora"
    warnings = []
    if job.options.refine and refinement is None:
        warnings.append(
            "Not refined: the time ended or the run was interrupted before the first step. This is the fit alone. Give "
            "more minutes."
        )
    if refinement is not None:  # which improves outputs, and not the keys and values of each layer
        if refinement.after > POOR_FIT:
            warnings.append(
                f"Poor fit: the output of the UNet is off by {refinement.after:.0%} of the hypernetwork's change, on "
                f"trajectories that were never learned from. Up to {POOR_FIT:.0%} is a good fit. Refine longer."
            )
    elif max(keys, values) > POOR_FIT:
        warnings.append(
            f"Poor fit: keys are off by {keys:.0%} and values by {values:.0%} of the hypernetwork's change, on "
            f"contexts that the fit never saw. Up to {POOR_FIT:.0%} is a good fit. "
            + ("A higher rank fits better." if job.affine else "No rank makes a nonlinear network linear.")
        )
    elif low_rank and job.options.rank == "auto" and max(keys, values) > job.options.allowed_error:
        warnings.append(
            f"Fidelity below {job.options.fidelity:g}: keys are off by {keys:.1%} and values by {values:.1%} of the "
            "hypernetwork's change, on contexts that the fit never saw."
        )
    if low_rank and statistics.description.startswith("UNet alone"):
        warnings.append(
            "A UNet alone has no text encoder: the error on real prompts can be larger than stated. A whole model "
            "gives a better fit."
        )
    held = sum(tensor.numel() for change in changes for tensor in change.tensors().values())
    full = sum(
        len(change.up) * change.down.shape[1] for change in changes if change.up is not None and change.down is not None
    )
    if low_rank and refinement is None and held > full:
        warnings.append("At these ranks a LyCORIS file would be smaller and more accurate than this LoRA.")
    return tuple(warnings)


def _result_metadata(
    job: _Job, errors: Errors, statistics: Statistics, warnings: tuple[str, ...], images: Mapping[str, float] | None
) -> dict[str, str]:
    about = {
        "hnloader.version": __version__,
        "hnloader.exact": str(job.exact).lower(),
        "hnloader.errors": json.dumps(errors.to_json()),
        "hnloader.statistics": statistics.description,
    }
    if warnings:
        about["hnloader.warning"] = " ".join(warnings)
    if images is not None:
        about["hnloader.images"] = json.dumps({name: round(value, 2) for name, value in images.items()})
    return about
