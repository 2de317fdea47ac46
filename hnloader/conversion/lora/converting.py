"""Make a LoRA or LyCORIS file of hypernetworks."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from hnloader.activations import MIXING
from hnloader.affine import AffineMap
from hnloader.attention import Application
from hnloader.attention.matching import check_match
from hnloader.attention.sites import AttentionSite
from hnloader.attention.strengths import Strength
from hnloader.conversion.lora.base import BaseModel, open_base
from hnloader.conversion.lora.chain import Chain
from hnloader.conversion.lora.compare import compare
from hnloader.conversion.lora.fitting import fit_context_map, measure, rank_directions
from hnloader.conversion.lora.names import NameStyle
from hnloader.conversion.lora.result import ALPHA, KIND_NAMES, POOR, Errors, Kind, LayerChange, LoraExport
from hnloader.conversion.lora.statistics import Layer, Progress, Sampling, Statistics, random_contexts, sample
from hnloader.conversion.lora.writing import describe, name_style, named_tensors, overflowing, write
from hnloader.errors import HypernetworkError, NoMatchingSitesError
from hnloader.families import families_of
from hnloader.files import check_free, read_regular, replacing_together, same_file
from hnloader.formats.reading import files_of
from hnloader.inspection import FileInfo
from hnloader.network import SIDES, Hypernetwork, SideName

Source: TypeAlias = "Hypernetwork | str | os.PathLike[str]"
Item: TypeAlias = "Source | tuple[Source, Strength] | Application"
Rank: TypeAlias = "int | Literal['auto', 'full']"
BiasPlace = Literal["output", "projection"]

PROMPTS = Path(__file__).with_name("prompts.txt")
# Beside a model, prompts that it understands better than the general ones.
OWN_PROMPTS = "prompts.txt"


def to_lora(
    hypernetworks: Item | Sequence[Item],
    base: Any,
    target: str | os.PathLike[str],
    *,
    kind: Kind = "lora",
    strength: Strength = 1.0,
    rank: Rank = "auto",
    fidelity: float = 0.95,
    prompts: Sequence[str] | str | os.PathLike[str] | None = None,
    images: int = 10,
    steps: int = 8,
    seed: int = 0,
    guidance: float = 5.0,
    dtype: torch.dtype = torch.float32,
    names: NameStyle | Literal["auto"] = "auto",
    bias: BiasPlace = "output",
    compare_to: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
    device: str = "auto",
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, total, text: None,
) -> LoraExport:
    """Write a LoRA or LyCORIS file that changes a model's keys and values as hypernetworks do.

    Args:
        hypernetworks: One, or several that are chained in this order, as in `hnloader.attach`: hypernetworks, paths
            of files, pairs of these and a strength, or `Application`s without start and end.
        base: The model that the file is for: a diffusers pipeline or UNet; the path of a diffusers folder, of its
            `unet` folder, or of a single file; a name on the Hugging Face hub. Or an opened `BaseModel`, to use one
            for many files.
        target: The file to write, `.safetensors`.
        kind: `lora`: low-rank, for every program. `lycoris`: full differences, exact for affine hypernetworks.
        strength: Of those that come without their own; by block as in `hnloader.attach`.
        rank: Of every layer of a LoRA; `auto`: per projection the least for `fidelity`; `full`: the width's.
        fidelity: With `auto`, 1 less the error of keys and of values, relative to the hypernetworks' change.
        prompts: To sample contexts with: at least 5, or the path of a file with one on each line. Default: the
            model folder's own `prompts.txt`, else a list of neutral prompts.
        images: How many are denoised to sample self-attention contexts.
        steps: Sampling steps of each.
        seed: Of the first image.
        guidance: Classifier-free guidance scale.
        dtype: Of the tensors in the file.
        names: `diffusers` or `original` layer names; `auto`: the original ones for SDXL, as all programs read them.
        bias: Where a LyCORIS file puts the constant part of values. `output`: in the bias of the attention's output
            projection, which every program applies, and which is exactly the same. `projection`: as `diff_b` of
            `to_k` and `to_v`, which programs leave out whose layers have no bias there.
        compare_to: A `.png` to write with images without the hypernetworks, with them, and with the file.
        config: For a single-file `base`: a diffusers folder of the same kind of model.
        overwrite: Replace `target` and `compare_to` where they exist; False raises an error instead.
        device: Where the model runs: `auto`, `cpu`, `cuda`, ...
        note: Told what is worth knowing on the way.
        progress: Told `(done, total, what)` on the way.

    Returns:
        The file with its ranks and errors, which its metadata state as well.

    Raises:
        ExistingFileError: A file exists and is to stay.
        NoMatchingSitesError: A hypernetwork is made for another family of models.
        ModelError: The model is missing, damaged, or no Stable Diffusion.
        HypernetworkError: A setting is impossible (a rank over the width), or the file cannot be written. Whatever
            is raised, nothing is written.
    """
    path = _checked_target(target)
    _check_settings(rank, fidelity)
    written = [path, *([] if compare_to is None else [Path(compare_to)])]
    if not overwrite:
        for each in written:
            check_free(each)
    applications, sources, files = _loaded(hypernetworks, strength)
    for each, file in itertools.product(written, files):
        if same_file(each, file):
            raise HypernetworkError(f"{each} is one of the hypernetworks. Write the result elsewhere.")
    model = base if isinstance(base, BaseModel) else open_base(base, config=config, device=device, note=note)
    for application in applications:
        assert isinstance(application.hypernetwork, Hypernetwork)
        check_family(application.hypernetwork, model, note)
    chain = Chain(applications, model.sites)
    sampling = Sampling(prompt_list(prompts, model), images, steps, seed, guidance)
    style = name_style(model.family) if names == "auto" else names
    job = _Job(model, chain, kind, rank, 1 - fidelity, dtype, bias)
    statistics = _statistics(job, sampling, progress)
    changes, errors = job.run(statistics, progress)
    if not changes:
        raise HypernetworkError("The hypernetworks change nothing at this strength, so there is nothing to write.")
    warnings = _warnings(job, changes, errors, statistics)
    grid = differences = None
    if compare_to is not None:
        grid, differences = _compared(model, applications, changes, sampling, kind, progress)
    metadata = describe(changes, kind, model.family, model.name, path.stem, style)
    metadata |= _own_metadata(job, errors, statistics, warnings, differences)
    metadata |= stated(sources, model, kind, settings_of(kind, rank, fidelity, sampling, dtype, style, bias))
    tensors = named_tensors(changes, style, model.layers)
    if (name := overflowing(tensors)) is not None:
        raise HypernetworkError(f"{name} does not fit into {str(dtype).removeprefix('torch.')}: take float32.")
    with replacing_together(dict.fromkeys(reversed(written), files), overwrite=overwrite) as (*grids, temporary):
        size = write(temporary, tensors, metadata)
        if grid is not None:
            grid.save(grids[0], format="PNG")
    ranks = {change.name: change.rank for change in changes if change.rank is not None}
    return LoraExport(
        path,
        kind,
        model.name,
        model.family,
        job.exact,
        ranks,
        errors,
        statistics.description,
        warnings,
        differences,
        size,
    )


# -- what was asked for


def _checked_target(target: str | os.PathLike[str]) -> Path:
    path = Path(target)
    if path.suffix.lower() != ".safetensors":
        raise HypernetworkError(f"{path} does not end in .safetensors, which LoRA and LyCORIS files are.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        wrong = "is a folder" if path.is_dir() else "is in no existing folder"
        raise HypernetworkError(f"{path} {wrong}: name a file to write.")
    return path


def _check_settings(rank: Rank, fidelity: float) -> None:
    if rank not in ("auto", "full") and not (isinstance(rank, int) and rank >= 1):
        raise HypernetworkError(f"The rank is {rank!r}; it is a whole number from 1, 'auto', or 'full'.")
    if not 0 < fidelity < 1:
        raise HypernetworkError(f"The fidelity is {fidelity}; it is above 0 and below 1, such as 0.95.")


def _loaded(
    items: Item | Sequence[Item], strength: Strength
) -> tuple[list[Application], list[dict[str, object]], list[Path]]:
    """The applications with their hypernetworks loaded, what the metadata say of each, and their files."""
    from hnloader.inspection import inspect
    from hnloader.loading import load

    single = isinstance(items, (Hypernetwork, Application, str, os.PathLike)) or (
        isinstance(items, tuple) and len(items) == 2 and isinstance(items[1], (int, float, dict))
    )
    applications, sources, files = [], [], []
    for item in [items] if single else items:  # type: ignore[union-attr]
        given = item if isinstance(item, Application) else None
        if given is None:
            source, own = item if isinstance(item, tuple) else (item, strength)
            given = Application(source, own)
        if given.windowed:
            raise HypernetworkError("A LoRA acts during the whole sampling: leave out start and end.")
        about: dict[str, object] = {"strength": given.strength}
        found = given.hypernetwork
        if not isinstance(found, Hypernetwork):
            about["sha256"] = inspect(found).sha256
            files += files_of(Path(found))
            found = load(found)
        _check_by_itself(found)
        if given.k != 1 or given.v != 1:
            about |= {"k": given.k, "v": given.v}
        applications.append(replace(given, hypernetwork=found))
        sources.append({"name": found.name, **about})
    if not applications:
        raise HypernetworkError("No hypernetwork was given.")
    return applications, sources, files


def _check_by_itself(hypernetwork: Hypernetwork) -> None:
    """Raise HypernetworkError where what becomes of a context depends on the images beside it in the batch."""
    mixing = next((type(module).__name__ for module in hypernetwork.modules() if isinstance(module, MIXING)), None)
    if mixing is not None:
        raise HypernetworkError(
            f"{hypernetwork.name}: its activation {mixing.lower()} looks at all images of a batch, and a LoRA looks at "
            f"one. Use the hypernetwork itself."
        )


def check_family(made: Hypernetwork | FileInfo, base: BaseModel, note: Callable[[str], None]) -> None:
    """Compare the widths of a hypernetwork with the model's, and tell of those that the model does not have.

    Raises:
        NoMatchingSitesError: It is made for another family.
    """
    remark = check_match(cast("Hypernetwork", made), base.sites)  # which asks for name and widths
    if remark is None:
        return
    named = families_of(made.widths)
    text = {site.width for site in base.sites if site.kind == "cross"}
    wrong = base.family not in named if named and base.family else not text & set(made.widths)
    if wrong:
        raise NoMatchingSitesError(f"{remark}. Give a base model of the kind that the file was trained on.")
    note(remark)


def prompt_list(given: Sequence[str] | str | os.PathLike[str] | None, base: BaseModel) -> tuple[str, ...]:
    """The prompts to sample with, each once. Raises HypernetworkError for a file that cannot be read."""
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return tuple(dict.fromkeys(given))
    path = PROMPTS
    if given is not None:
        path = Path(given)
    elif base.folder is not None and (base.folder / OWN_PROMPTS).is_file():
        path = base.folder / OWN_PROMPTS
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HypernetworkError(f"{path} cannot be read as a list of prompts: {error}") from error
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def settings_of(
    kind: Kind, rank: Rank, fidelity: float, sampling: Sampling, dtype: torch.dtype, style: NameStyle, bias: BiasPlace
) -> dict[str, object]:
    """What a file was made with, as its metadata state it."""
    settings: dict[str, object] = {"dtype": str(dtype).removeprefix("torch."), "names": style}
    settings |= {"bias": bias} if kind == "lycoris" else {"rank": rank}
    if kind == "lora" and rank == "auto":
        settings["fidelity"] = fidelity
    words = hashlib.sha256("\n".join(sampling.prompts).encode()).hexdigest()
    sampled = {"prompts_sha256": words, "images": sampling.images, "steps": sampling.steps}
    return settings | sampled | {"seed": sampling.seed, "guidance": sampling.guidance}


def stated(
    sources: Sequence[Mapping[str, object]], base: BaseModel, kind: Kind, settings: Mapping[str, object]
) -> dict[str, str]:
    """The metadata that say what a file was made of, for which model, and with which settings."""
    return {
        "hnloader.kind": kind,
        "hnloader.sources": json.dumps(sources),
        "hnloader.base": json.dumps({"name": base.name, "family": base.family, "fingerprint": base.fingerprint()}),
        "hnloader.settings": json.dumps(settings),
    }


# -- the work


@dataclass
class _Job:
    """A conversion with everything in it decided."""

    base: BaseModel
    chain: Chain
    kind: Kind
    rank: Rank
    error: float
    dtype: torch.dtype
    bias: BiasPlace

    def sides(self) -> Iterator[tuple[AttentionSite, SideName]]:
        """Every projection that the chain changes."""
        return ((site, side) for site in self.base.sites for side in SIDES if self.chain.links(site, side))

    @property
    def affine(self) -> bool:
        """The chain is an affine map at every layer."""
        return all(self.chain.affine(site, side) is not None for site, side in self.sides())

    @property
    def exact(self) -> bool:
        """Nothing has to be fitted, so nothing has to be sampled."""
        return self.kind == "lycoris" and self.affine

    def run(self, statistics: Statistics, progress: Progress) -> tuple[list[LayerChange], Errors]:
        """The changes of all layers, and their errors."""
        if isinstance(self.rank, int) and self.kind == "lora":
            self._check_rank(self.rank)
        changes: list[LayerChange] = []
        errors = Errors()
        maps: dict[tuple[int, SideName], AffineMap] = {}  # cross-attention layers share samples, and so maps
        sides = list(self.sides())
        for index, (site, side) in enumerate(sides):
            layer = statistics.of(site)
            key = (id(layer), side)
            if key not in maps:
                maps[key] = fit_context_map(layer, side, with_bias=self.kind == "lycoris")
            weight = self.base.weight(site, "to_k" if side == "k" else "to_v").double()
            convert = self._low_rank if self.kind == "lora" else self._full
            made, bias = convert(site, side, weight, maps[key], layer)
            errors.add(site, side, measure(weight, layer, side, made[0].delta(), bias))
            changes += made
            progress(index + 1, len(sides), "Fitting layers")
        return ([] if all(not change.delta().any() for change in changes) else changes), errors

    def _low_rank(
        self, site: AttentionSite, side: SideName, weight: Tensor, change: AffineMap, layer: Layer
    ) -> tuple[list[LayerChange], None]:
        ranked = rank_directions(weight, change.matrix, layer, side)
        if self.rank == "auto":
            rank = ranked.rank_for(self.error)
        else:
            rank = len(ranked.down) if self.rank == "full" else self.rank
        up, down = ranked.up[:, :rank], ranked.down[:rank]
        # Both factors get the same share of the size, so that neither leaves the range of half precision.
        share = (down.norm(dim=1).clamp_min(1e-30) * (rank / ALPHA)).sqrt()
        up, down = up * share, down * ((rank / ALPHA) / share)[:, None]
        projection = "to_k" if side == "k" else "to_v"
        return [LayerChange(site, projection, down=down.to(self.dtype), up=up.to(self.dtype))], None  # type: ignore[arg-type]

    def _full(
        self, site: AttentionSite, side: SideName, weight: Tensor, change: AffineMap, layer: Layer
    ) -> tuple[list[LayerChange], Tensor | None]:
        diff, constant = (weight @ change.matrix).to(self.dtype), weight @ change.bias
        if not constant.any():
            return [LayerChange(site, "to_k" if side == "k" else "to_v", diff=diff)], None
        if self.bias == "projection":
            projection = "to_k" if side == "k" else "to_v"
            stored = constant.to(self.dtype)
            return [LayerChange(site, projection, diff=diff, diff_b=stored)], stored  # type: ignore[arg-type]
        if side == "k":  # attention takes no notice of it
            return [LayerChange(site, "to_k", diff=diff)], None
        output = self.base.weight(site, "to_out.0").double()
        at_output = LayerChange(
            site,
            "to_out.0",
            # AUTOMATIC1111's webui reads a diff_b only beside a diff.
            diff=torch.zeros(output.shape, dtype=self.dtype),
            diff_b=(output @ constant).to(self.dtype),
        )
        return [LayerChange(site, "to_v", diff=diff), at_output], constant

    def _check_rank(self, rank: int) -> None:
        for site, side in self.sides():
            width = min(self.base.weight(site, "to_k" if side == "k" else "to_v").shape)
            if rank > width:
                raise HypernetworkError(
                    f"Rank {rank} is over the width of {site.name}, {width}, which is the most that a LoRA of this "
                    f"layer can have. Take {width} or less, 'auto', or 'full' for each layer's own width."
                )


def _statistics(job: _Job, sampling: Sampling, progress: Progress) -> Statistics:
    if isinstance(job.rank, int) and job.kind == "lora":
        job._check_rank(job.rank)  # before hours of sampling
    if job.exact:
        return random_contexts(job.base.sites, job.chain, sampling.seed)
    return sample(job.base, job.chain, sampling, progress)


def _compared(
    base: BaseModel,
    applications: Sequence[Application],
    changes: Sequence[LayerChange],
    sampling: Sampling,
    kind: Kind,
    progress: Progress,
) -> tuple[Any, dict[str, float]]:
    pipeline, _ = base.runnable()
    if pipeline is None:
        raise HypernetworkError(f"{base.name} is a UNet alone: images to compare need a whole model.")
    return compare(pipeline, applications, changes, sampling, KIND_NAMES[kind], progress)


# -- what is said about it


def _warnings(job: _Job, changes: Sequence[LayerChange], errors: Errors, statistics: Statistics) -> tuple[str, ...]:
    keys, values = (errors.overall(side).of_change for side in SIDES)
    said = []
    if max(keys, values) > POOR:
        said.append(
            f"Not well represented: keys are off by {keys:.0%} and values by {values:.0%} of the hypernetwork's "
            f"change, on contexts that nothing was fitted to; up to {POOR:.0%} counts as well represented. "
            + ("A higher rank comes closer." if job.affine else "No rank makes a linear map of what it computes.")
        )
    elif job.kind == "lora" and job.rank == "auto" and max(keys, values) > job.error:
        said.append(
            f"The fidelity of {1 - job.error:g} was not reached: keys are off by {keys:.1%} and values by "
            f"{values:.1%} of the hypernetwork's change, on contexts that nothing was fitted to."
        )
    if job.kind == "lora" and not job.exact and statistics.description.startswith("UNet alone"):
        said.append(
            "Only a UNet was given, so nothing is known of real text contexts: the error on real prompts can be "
            "larger than stated. A whole model gives a better fit."
        )
    low_rank = [change for change in changes if change.rank is not None]
    if sum(change.values for change in low_rank) > sum(change.full_values for change in low_rank):
        said.append("At these ranks the LoRA is larger than full differences are: LyCORIS would be smaller and closer.")
    return tuple(said)


def _own_metadata(
    job: _Job, errors: Errors, statistics: Statistics, warnings: tuple[str, ...], images: Mapping[str, float] | None
) -> dict[str, str]:
    from hnloader._version import __version__

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
