"""Find the attention layers of a model.

Only this module knows the layouts of models: the patterns of the families and the layout of the original code.
Everything else works on `AttentionSite`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hnloader.attention.decoders import decoder_layers, decoder_of, input_width
from hnloader.attention.output_rows import Rows
from hnloader.families import Family, all_families, family_of_model
from hnloader.scopes import Kind

# The blocks in the layout of the original code, which the webuis keep: one list of modules for all the down blocks and
# another for all the up blocks.
_ORIGINAL = re.compile(
    r"(?:^|\.)(?:(?P<block>(?:input|output)_blocks\.\d+)|middle_block)"
    r"\.\d+\.transformer_blocks\.\d+\.attn[12]$"
)
# The projections of an attention layer that receive the context, and the parts of their output. diffusers keeps to_k
# and to_v when it adds the fused projections, and keeps those when it goes back.
SLOTS: Mapping[str, Rows] = {
    "to_k": Rows(("k",)),
    "to_v": Rows(("v",)),
    "to_qkv": Rows((None, "k", "v")),
    "to_kv": Rows(("k", "v")),
}
# Section of the layers of a decoder.
_LAYER = "layer"
_ORDER = {"down": 0, "mid": 1, "up": 2}


@dataclass(frozen=True, eq=False)
class AttentionSite:
    """One attention layer of a model. `find_sites` returns them.

    Attributes:
        index: Position among the model's sites in the order in which they run, in a UNet down, mid, up.
        name: Dotted name of the layer's module, such as `down_blocks.1.attentions.0.transformer_blocks.0.attn2`, or in
            a webui `input_blocks.4.1.transformer_blocks.0.attn2`.
        block: `down.0`, `down.1`, ..., `mid`, `up.0`, ..., numbered as in diffusers in both layouts. In a language
            model `layer.0`, `layer.1`, ...
        kind: `self` if the context is the layer's own normalized input, `cross` if it is the text.
        width: Last dimension of the context that its projections receive.
        module: The attention layer. In a UNet, it has `to_k` and `to_v`, and `to_qkv` or `to_kv` after fusing.
        slots: The names of its projections for keys and values, with the parts of their outputs.

    Example:
        >>> from hnloader.attention import find_sites
        >>> from hnloader.demo import pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> site = find_sites(load_model(pipeline_folder(), device="cpu").pipeline.unet)[0]
        >>> site.block, site.section, site.kind, site.width
        ('down.0', 'down', 'self', 64)
    """

    index: int
    name: str
    block: str
    kind: Kind
    width: int
    module: nn.Module = field(repr=False)
    slots: Mapping[str, Rows] = field(default_factory=lambda: SLOTS, repr=False)

    @property
    def slots_in_use(self) -> tuple[str, ...]:
        """The names of the projections that the layer calls now: diffusers keeps the others after fusing."""
        if self.slots is not SLOTS:
            return tuple(self.slots)
        return ("to_qkv", "to_kv") if getattr(self.module, "fused_projections", False) else ("to_k", "to_v")

    @property
    def section(self) -> str:
        """`down`, `mid` or `up`; `layer` in a language model."""
        return self.block.partition(".")[0]


def unet_of(model: Any) -> nn.Module | None:
    """Return the UNet of a pipeline, or the model itself, without the wrapper of `torch.compile`; None if neither."""
    found = model if isinstance(model, nn.Module) else getattr(model, "unet", None)
    while isinstance(found, nn.Module) and "_orig_mod" in found._modules:
        found = found._modules["_orig_mod"]
    return found if isinstance(found, nn.Module) else None


def host_of(model: Any) -> nn.Module | None:
    """Return the module whose calls hypernetworks follow: the UNet of a model, or the decoder of a language model.

    A decoder is called in every use of its model: with a head, by `generate`, within peft, or alone.
    """
    found = unet_of(model)
    if found is None:
        found = unet_of(getattr(model, "model", None))
    if found is None or any(True for _ in _unet_layers(found)):
        return found
    return decoder_of(found) or found


def is_decoder(sites: Sequence[AttentionSite]) -> bool:
    """Return True if attention layers are those of a language model's decoder."""
    return bool(sites) and sites[0].section == _LAYER


def find_sites(model: nn.Module) -> tuple[AttentionSite, ...]:
    """Find the attention layers that hypernetworks act on.

    Args:
        model: A diffusers UNet or ControlNet, a UNet in the layout of the original code, as in the webuis, or a
            language model of transformers.

    Returns:
        The sites in the order in which they run: the self- and cross-attention layers of a UNet's transformer blocks,
        or the self-attention layers of a decoder. Empty for other models, such as VAEs and text encoders.

    Example:
        >>> from hnloader.attention import find_sites
        >>> from hnloader.demo import pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> unet = load_model(pipeline_folder(), device="cpu").pipeline.unet
        >>> len(find_sites(unet)), sorted({site.width for site in find_sites(unet)})
        (20, [64, 96, 112, 128])
    """
    found = list(_unet_layers(model))
    if not found:
        return tuple(
            AttentionSite(index, name, f"{_LAYER}.{number}", "self", _input_width(module, slots), module, slots)
            for index, (name, module, slots, _, number) in enumerate(decoder_layers(model))
        )
    found.sort(key=lambda entry: _ORDER[entry[0].partition(".")[0]])  # stable: the order within a section stays
    return tuple(
        AttentionSite(index, name, block, _kind(model, name, module), input_width(module.to_k), module)
        for index, (block, name, module) in enumerate(found)
    )


def _unet_layers(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Yield block, name and module of the attention layers of a UNet."""
    levels = _levels(model)
    for name, module in model.named_modules():
        if module._modules and all(isinstance(getattr(module, part, None), nn.Module) for part in ("to_k", "to_v")):
            block = _block(name, levels)
            if block:
                yield block, name, module


def family_of_sites(sites: Iterable[AttentionSite]) -> Family | None:
    """Return the family of a model with these attention layers, or None for an unknown one."""
    widths: dict[Kind, set[int]] = {"cross": set(), "self": set()}
    for site in sites:
        widths[site.kind].add(site.width)
    return family_of_model(widths["cross"], widths["self"])


def block_of(name: str, *, nested: bool = False) -> str | None:
    """Return the block that a family gives an attention layer of this name, or None for another layer.

    With `nested` the UNet may be a part of a larger model.
    """
    for pattern in dict.fromkeys(family.attention_layers for family in all_families()):
        match = re.fullmatch(rf"(?:.*\.)?{pattern}" if nested else pattern, name)
        if match is not None:
            return f"{match['section']}.{match['number']}" if match["section"] else "mid"
    return None


def _block(name: str, levels: Mapping[str, str]) -> str | None:
    """Return the block of an attention layer, or None for every other module."""
    block = block_of(name, nested=True)
    if block is not None:
        return block
    match = _ORIGINAL.search(name)
    if match is None:
        return None
    return levels.get(name[: match.end("block")]) if match["block"] else "mid"


def _levels(model: nn.Module) -> dict[str, str]:
    """Return `down.0`, ... and `up.0`, ... for the members of the original layout's lists, by their names.

    A level ends with the module that halves or doubles the resolution.
    """
    found = {}
    for name, module in model.named_modules():
        listed = name.rpartition(".")[2]
        if listed not in ("input_blocks", "output_blocks"):
            continue
        level = 0
        for number, member in module.named_children():
            found[f"{name}.{number}"] = f"{'down' if listed == 'input_blocks' else 'up'}.{level}"
            level += any(type(part).__name__ in ("Downsample", "Upsample") for part in member.children())
    return found


def _kind(model: nn.Module, name: str, module: nn.Module) -> Kind:
    """Return the kind that the layer itself states: in some models `attn1` is cross- or `attn2` self-attention."""
    if name.endswith("attn1") and getattr(model.get_submodule(name.rpartition(".")[0]), "disable_self_attn", False):
        return "cross"
    return "cross" if getattr(module, "is_cross_attention", name.endswith("attn2")) else "self"


def _input_width(module: nn.Module, slots: Mapping[str, Rows]) -> int:
    return input_width(module._modules[next(iter(slots))])
