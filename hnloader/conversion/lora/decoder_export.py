"""Export hypernetworks for a language model as a LoRA of peft.

Keys and values are fitted as in `hnloader.conversion.lora.export`, with one difference: with rotary positions,
attention does not ignore a constant that is added to all keys, so keys are treated as values are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader._version import __version__
from hnloader.affine import AffineMap
from hnloader.attention import attach, attachments
from hnloader.attention.decoders import is_transposed
from hnloader.attention.layout import AttentionSite, find_sites
from hnloader.attention.matching import check_match
from hnloader.conversion.lora.context_samples import ROLES, Layer, Progress
from hnloader.conversion.lora.export_result import POOR_FIT, Errors, LoraExport
from hnloader.conversion.lora.fitting import Ranked, fit_context_map, measure, rank_directions
from hnloader.conversion.lora.lora_chain import Chain, Links
from hnloader.conversion.lora.lora_options import LoraOptions, prompt_lines
from hnloader.conversion.lora.lora_sources import Item, check_mixing, load_applications
from hnloader.conversion.lora.peft_folder import CONFIG_NAME, WEIGHTS_NAME, write_peft_folder
from hnloader.errors import HypernetworkError
from hnloader.files import check_free
from hnloader.language_models import LanguageModel
from hnloader.network import SIDES, Hypernetwork, SideName
from hnloader.writing import WritingSettings, prompt_tokens, write_text

__all__ = ["export_decoder_lora"]

# Tokens of each text that the model writes to sample contexts.
_TOKENS = 96
# An exact LoRA has a smaller error than this, from rounding.
_ROUNDING = 1e-5


def export_decoder_lora(
    hypernetworks: Item | Sequence[Item],
    language: LanguageModel,
    target: str | os.PathLike[str],
    options: LoraOptions | None = None,
    *,
    base: str = "",
    overwrite: bool = True,
    progress: Progress = lambda done, total, text: None,
) -> LoraExport:
    """Write a folder of peft whose LoRA changes the keys and values of a language model as hypernetworks do.

    Args:
        hypernetworks: As in `hnloader.export_lora`.
        language: The model.
        target: The folder to write.
        options: Settings. `prompts` are texts that the model continues, to sample contexts; by default, it writes from
            nothing. `images` is the number of texts. The file has one rank: the largest of those that `auto` finds.
        base: The name of the model in the folder, such as its path. Default: that of `language`.
        overwrite: Replace the files in the folder if they exist; otherwise raise an error. Default: True.
        progress: Called with `(done, total, step)`. Default: show nothing.

    Returns:
        The folder with its ranks and errors, which the metadata of its file also state.

    Raises:
        ExistingFileError: A file exists, and `overwrite` is False.
        NoMatchingSitesError: A hypernetwork is made for another model.
        HypernetworkError: A setting is impossible, or the folder cannot be written.
    """
    folder, options = Path(target), options or LoraOptions()
    if folder.suffix.lower() == ".safetensors" or (folder.exists() and not folder.is_dir()):
        raise HypernetworkError(f"{folder}: a LoRA of a language model is a folder. Name one.")
    if options.kind != "lora":
        raise HypernetworkError(f"Found the kind {options.kind!r}. For a language model, use 'lora'.")
    for name in () if overwrite else (WEIGHTS_NAME, CONFIG_NAME):
        check_free(folder / name)
    applications, sources, _ = load_applications(hypernetworks, options.strength)
    if attachments(language.model):
        raise HypernetworkError("Hypernetworks are attached to the model. Detach them before the export.")
    sites = find_sites(language.model)
    for application in applications:
        check_mixing(cast("Hypernetwork", application.hypernetwork))
        check_match(cast("Hypernetwork", application.hypernetwork), sites)
    job = _Job(language, sites, Chain(applications, sites), options)
    with attach(language.model, applications):
        job.sample(progress)
    layers, rank, errors = job.fit(progress)
    exact = job.affine and errors.worst < _ROUNDING
    description = f"{options.images} texts of up to {_TOKENS} tokens that the model wrote"
    warnings = _warnings(errors, options, affine=job.affine)
    metadata = {
        "hnloader.version": __version__,
        "hnloader.kind": "lora",
        "hnloader.sources": json.dumps(sources),
        "hnloader.exact": json.dumps(exact),
        "hnloader.errors": json.dumps(errors.to_json()),
        "hnloader.statistics": description,
    }
    size = write_peft_folder(
        folder, layers, rank, base or language.name, metadata, transposed=job.transposed, overwrite=overwrite
    )
    ranks = dict.fromkeys(layers, rank)
    return LoraExport(folder, "lora", language.name, None, exact, ranks, errors, description, warnings, None, size)


class _OneSide:
    """One side of a chain under the name "v", for which `fitting` subtracts nothing."""

    def __init__(self, chain: Chain, side: SideName) -> None:
        self._chain, self._side = chain, side

    def links(self, site: AttentionSite, side: SideName) -> Links:
        return self._chain.links(site, self._side) if side == "v" else ()

    def change(self, site: AttentionSite, side: SideName, context: Tensor) -> Tensor:
        return self._chain.change(site, self._side, context)

    def affine(self, site: AttentionSite, side: SideName) -> AffineMap | None:
        return self._chain.affine(site, self._side) if side == "v" else None


class _Job:
    """An export with all decisions made."""

    def __init__(
        self, language: LanguageModel, sites: Sequence[AttentionSite], chain: Chain, options: LoraOptions
    ) -> None:
        self.language, self.chain, self.options = language, chain, options
        self.changed = [(site, side) for site in sites for side in SIDES if chain.links(site, side)]
        if not self.changed:
            raise HypernetworkError("The hypernetworks change nothing at this strength. Give a larger one.")
        self.samples = {
            (site.index, side): Layer(site, cast("Chain", _OneSide(chain, side))) for site, side in self.changed
        }
        self.affine = all(chain.affine(site, side) is not None for site, side in self.changed)
        self.transposed = any(is_transposed(module) for site, _ in self.changed for module in _projections(site))

    def sample(self, progress: Progress) -> None:
        """Let the model write texts, and run it on them."""
        options, tokenizer = self.options, self.language.tokenizer
        prompts = _prompts(options.prompts)
        for index in range(options.images):
            prompt = prompts[index % len(prompts)]
            text = prompt + write_text(self.language, prompt, WritingSettings(_TOKENS, 1.0, options.seed + index))
            ids = torch.tensor([prompt_tokens(tokenizer, text)], device=self.language.device)
            with self._watched(ROLES[index % len(ROLES)]), torch.no_grad():
                self.language.model(input_ids=ids[:, : self.language.positions], use_cache=False)
            progress(index + 1, options.images, "Sampling contexts")

    def _watched(self, role: Any) -> _Hooks:
        hooks = _Hooks()
        for site in dict.fromkeys(site for site, _ in self.changed):

            def add(_: nn.Module, args: tuple[Any, ...], given: Mapping[str, Any], site: AttentionSite = site) -> None:
                context = given.get("hidden_states", args[0] if args else None)
                for side in SIDES:
                    if (site.index, side) in self.samples:
                        self.samples[site.index, side].add(cast("Tensor", context), role)

            hooks.handles.append(site.module.register_forward_pre_hook(add, with_kwargs=True))
        return hooks

    def fit(self, progress: Progress) -> tuple[dict[str, tuple[Tensor, Tensor]], int, Errors]:
        """Return the factors by the name of the layer, their rank, and the errors."""
        ranked: dict[tuple[int, SideName], Ranked] = {}
        for number, (site, side) in enumerate(self.changed, 1):
            layer = self.samples[site.index, side]
            found = fit_context_map(layer, "v", with_bias=False)
            ranked[site.index, side] = rank_directions(_weight(site, side), found.matrix, layer, "v")
            progress(number, len(self.changed), "Fitting layers")
        rank = self._rank(ranked.values())
        errors, layers = Errors(), dict[str, tuple[Tensor, Tensor]]()
        for site in dict.fromkeys(site for site, _ in self.changed):
            for slot, rows in site.slots.items():
                own = [side for side in rows.sides if side is not None and (site.index, side) in ranked]
                if own:
                    factors = {side: self._factors(ranked[site.index, side], rank) for side in own}
                    layers[f"{site.name}.{slot}"] = _joined(site, slot, factors)
        # One rank for all programs; a fused matrix takes the factors of keys and values.
        total = max(len(down) for down, _ in layers.values())
        layers = {name: _padded(down, up, total) for name, (down, up) in layers.items()}
        for site, side in self.changed:
            up, down = ranked[site.index, side].up[:, :rank], ranked[site.index, side].down[:rank]
            delta = (up @ down).to(self.options.dtype)
            errors.add(site, side, measure(_weight(site, side), self.samples[site.index, side], "v", delta))
        return layers, total, errors

    def _rank(self, ranked: Collection[Ranked]) -> int:
        wanted = self.options.rank
        widths = [len(each.down) for each in ranked]
        if wanted == "full":
            return max(widths)
        if wanted == "auto":
            return max(each.rank_for(self.options.allowed_error) for each in ranked)
        assert isinstance(wanted, int)
        if wanted > max(widths):
            raise HypernetworkError(f"Rank {wanted} is over the width of the layers, {max(widths)}. Give less.")
        return wanted

    def _factors(self, ranked: Ranked, rank: int) -> tuple[Tensor, Tensor]:
        """Return down [rank, inputs] and up [outputs, rank], which share the size of the change evenly."""
        up, down = ranked.up[:, :rank], ranked.down[:rank]
        share = down.norm(dim=1).clamp_min(1e-30).sqrt()
        dtype = self.options.dtype
        return (down / share[:, None]).to(dtype).contiguous(), (up * share).to(dtype).contiguous()


class _Hooks:
    """Hooks that end with the block."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _projections(site: AttentionSite) -> Iterator[Any]:
    for slot in site.slots:
        found: Any = site.module.get_submodule(slot)
        while hasattr(found, "base_layer"):  # peft's wrapper
            found = found.base_layer
        yield found


def _matrix(projection: Any) -> Tensor:
    weight: Tensor = projection.weight.detach().cpu().double()
    return weight.T if is_transposed(projection) else weight


def _weight(site: AttentionSite, side: SideName) -> Tensor:
    """Return the rows of keys or values, [outputs, inputs], in float64."""
    for rows, projection in zip(site.slots.values(), _projections(site), strict=True):
        for name, part in zip(rows.sides, rows.split(_matrix(projection), 0), strict=True):
            if name == side:
                return part
    raise AssertionError(f"{site.name} has no {side}.")


def _joined(site: AttentionSite, slot: str, factors: Mapping[SideName, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the factors of a projection: those of its keys and values below each other, and zeros for queries."""
    rows = site.slots[slot]
    matrix = _matrix(dict(zip(site.slots, _projections(site), strict=True))[slot])
    down = torch.cat([own for own, _ in factors.values()])
    ups = []
    for side, part in zip(rows.sides, rows.split(matrix, 0), strict=True):
        of_part = [up if own == side else up.new_zeros(len(part), up.shape[1]) for own, (_, up) in factors.items()]
        ups.append(torch.cat(of_part, 1))
    return down, rows.join(ups, 0).contiguous()


def _padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors with more rows and columns of zeros."""
    missing = rank - len(down)
    return functional.pad(down, (0, 0, 0, missing)), functional.pad(up, (0, missing))


def _prompts(given: Any) -> Sequence[str]:
    if given is None:
        return ("",)
    if isinstance(given, (str, os.PathLike)):
        given = prompt_lines(given)
    found = [line for line in given if line.strip()]
    if not found:
        raise HypernetworkError("Found no prompts. Give at least one.")
    return found


def _warnings(errors: Errors, options: LoraOptions, *, affine: bool) -> tuple[str, ...]:
    worst = errors.worst
    if worst > POOR_FIT:
        advice = "A higher rank fits better." if affine else "No rank makes a nonlinear network linear."
        return (f"Poor fit: in texts that the fit never saw, {worst:.0%} of the change is missing. {advice}",)
    if options.rank == "auto" and worst > options.allowed_error:
        return (f"Fidelity below {options.fidelity:g}: {worst:.1%} of the hypernetwork's change is missing.",)
    return ()
