"""Find the attention layers of the decoders of transformers, by their names and the structure of their modules.

Most layers have `k_proj` and `v_proj`. Others have one fused matrix, whose order of rows only their code tells; those
orders are listed here. transformers itself is never imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from hnloader.attention.output_rows import Rows

__all__ = [
    "DecoderLayer",
    "decoder_layers",
    "decoder_of",
    "input_width",
    "is_falcon_linear",
    "is_transposed",
    "output_width",
    "why_no_decoder",
]

_SEPARATE: Mapping[str, Rows] = {"k_proj": Rows(("k",)), "v_proj": Rows(("v",))}
# A layer's name: the module that holds the list of layers, the list, the number in it, and the rest.
_NAME = re.compile(r"(?:(?P<root>.*?)\.)?(?P<list>[^.0-9][^.]*)\.(?P<number>\d+)\.(?P<rest>.+)")
# Parts of other models, such as the image encoder beside a decoder, and attention to another model's output.
_OTHERS = re.compile(r"(?:^|\.)(?:[^.]*encoder|[^.]*(?:vision|visual|audio|cross)[^.]*|encoder_attn)(?:\.|$)")


class DecoderLayer(NamedTuple):
    """An attention layer of a decoder: its name, its module, its projections, and where it is.

    Attributes:
        name: Dotted name.
        module: The attention layer.
        slots: The names of its projections for keys and values, with the parts of their outputs.
        root: Name of the module that holds the list of layers, which every call of the decoder calls.
        number: Number in that list.
    """

    name: str
    module: nn.Module
    slots: Mapping[str, Rows]
    root: str
    number: int


def decoder_of(model: nn.Module) -> nn.Module | None:
    """Return the module with the list of a language model's layers. Every use of the model calls it."""
    layers = decoder_layers(model)
    return model.get_submodule(layers[0].root) if layers else None


def decoder_layers(model: nn.Module) -> tuple[DecoderLayer, ...]:
    """Return the attention layers of a decoder in the order in which they run. Empty for other models.

    Of a model with several lists of layers, those within its `get_decoder()` count. Layers that share a projection do
    not count, because each needs its own inputs.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return ()
    found = _layers(model)
    if _shared(found):
        return ()
    if len({layer.root for layer in found}) > 1:
        get_decoder = getattr(model, "get_decoder", None)
        decoder = get_decoder() if callable(get_decoder) else None
        own = set(decoder.modules()) if isinstance(decoder, nn.Module) else set()
        found = [layer for layer in found if layer.module in own]
        if len({layer.root for layer in found}) > 1:
            return ()
    return tuple(sorted(found, key=lambda layer: layer.number))


def why_no_decoder(model: nn.Module) -> str:
    """Return what a model without sites has instead of a decoder that hypernetworks act on, empty if unknown."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "a model with an encoder and a decoder"
    found = _layers(model)
    if shared := _shared(found):
        return f"one module for {' and '.join(shared)}"
    roots = dict.fromkeys(layer.root for layer in found)
    if len(roots) > 1:
        return f"several decoders ({', '.join(roots)})"
    for name, module in model.named_modules():
        fused = [slot for slot in _UNKNOWN if isinstance(module._modules.get(slot), nn.Module)]
        if fused and "attention" in type(module).__name__.lower():
            return f"the fused projection {name}.{fused[0]} of {type(module).__name__}, whose order is unknown"
        part = module._modules.get("k_proj")
        if isinstance(part, nn.Module) and "v_proj" in module._modules and not input_width(part):
            return f"the projection {name}.k_proj of {type(part).__name__}, whose width is unknown"
    return ""


def _layers(model: nn.Module) -> list[DecoderLayer]:
    """Return the causal layers; all layers of a decoder whose prompt is bidirectional, such as that of PaliGemma."""
    found = []
    for name, module in model.named_modules():
        slots = _slots(module)
        match = _NAME.fullmatch(name) if slots else None
        if match is not None and _OTHERS.search(name) is None:
            found.append(DecoderLayer(name, module, slots, match["root"] or "", int(match["number"])))
    return [layer for layer in found if getattr(layer.module, "is_causal", True)] or found


def _shared(layers: Sequence[DecoderLayer]) -> list[str]:
    """Return the names of projections that are one module; empty if each projection has its own."""
    names: dict[nn.Module | None, list[str]] = {}
    for layer in layers:
        for slot in layer.slots:
            names.setdefault(layer.module._modules[slot], []).append(f"{layer.name}.{slot}")
    return next((found for found in names.values() if len(found) > 1), [])


def _slots(module: nn.Module) -> Mapping[str, Rows]:
    """Return the projections of an attention layer with the parts of their outputs. Empty for other modules."""
    if all(isinstance(module._modules.get(slot), nn.Module) for slot in _SEPARATE):
        return _SEPARATE if input_width(module._modules["k_proj"]) else {}
    if module._modules.keys() & _FUSED_SLOTS and not getattr(module, "is_cross_attention", False):
        for kind in type(module).__mro__:
            slot, rows_of = _FUSED.get(kind.__name__, ("", _thirds))
            if isinstance(module._modules.get(slot), nn.Module):
                return {slot: rows_of(module, output_width(module._modules[slot]))}
    return {}


def is_transposed(module: nn.Module) -> bool:
    """Return True for the `Conv1D` of transformers, a Linear whose weight is [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_falcon_linear(module: nn.Module) -> bool:
    """Return True for Falcon's Linear, which multiplies and adds in two operations."""
    return type(module).__name__ == "FalconLinear" and type(module).__module__.startswith("transformers.")


def input_width(projection: Any) -> int:
    """Return the number of input features of a projection, plain, wrapped by peft or quantized; 0 if unknown."""
    while hasattr(projection, "base_layer"):
        projection = projection.base_layer
    if isinstance(projection, nn.Module) and is_transposed(projection):
        return int(projection._parameters["weight"].shape[0])  # type: ignore[union-attr]
    if hasattr(projection, "in_features"):
        return int(projection.in_features)
    # Packed weights have another shape than their matrix.
    weight = getattr(projection, "weight", None)
    for holder in (getattr(weight, "quant_state", None), weight):
        for shape in (getattr(holder, "real_shape", None), getattr(holder, "shape", None)):
            if shape is not None and len(shape) == 2:
                return int(shape[1])
    return 0


def output_width(projection: Any) -> int:
    """Return the number of output features of a projection, plain or wrapped by peft; 0 if unknown."""
    while hasattr(projection, "base_layer"):
        projection = projection.base_layer
    return int(getattr(projection, "out_features", getattr(projection, "nf", 0)))


# -- the orders of fused projections, from the code of each class; `outputs` is the number of all rows


def _thirds(layer: Any, outputs: int) -> Rows:
    return Rows((None, "k", "v"))


def _by_head(layer: Any, outputs: int) -> Rows:
    return Rows((None, "k", "v"), groups=layer.num_heads)


def _neox(layer: Any, outputs: int) -> Rows:
    return Rows((None, "k", "v"), groups=outputs // (3 * layer.head_size))


def _falcon(layer: Any, outputs: int) -> Rows:
    size = layer.head_dim
    if layer.new_decoder_architecture:
        queries = layer.num_heads // layer.num_kv_heads * size
        return Rows((None, "k", "v"), (queries, size, size), layer.num_kv_heads)
    if layer.multi_query:
        return Rows((None, "k", "v"), (layer.num_heads * size, size, size))
    return _by_head(layer, outputs)


def _phi3(layer: Any, outputs: int) -> Rows:
    keys = layer.num_key_value_heads * layer.head_dim
    return Rows((None, "k", "v"), (outputs - 2 * keys, keys, keys))


def _big_code(layer: Any, outputs: int) -> Rows:
    if layer.multi_query:
        return Rows((None, "k", "v"), (layer.embed_dim, layer.kv_dim, layer.kv_dim))
    return _by_head(layer, outputs)


def _codegen(layer: Any, outputs: int) -> Rows:
    return Rows((None, "v", "k"), groups=4)  # the order of values and keys, for four processors


_FUSED: Mapping[str, tuple[str, Callable[[Any, int], Rows]]] = {
    "BloomAttention": ("query_key_value", _by_head),
    "CodeGenAttention": ("qkv_proj", _codegen),
    "FalconAttention": ("query_key_value", _falcon),
    "GPT2Attention": ("c_attn", _thirds),
    "GPTBigCodeAttention": ("c_attn", _big_code),
    "GPTNeoXAttention": ("query_key_value", _neox),
    "MptAttention": ("Wqkv", _thirds),
    "PersimmonAttention": ("query_key_value", _by_head),
    "Phi3Attention": ("qkv_proj", _phi3),
}
_FUSED_SLOTS = frozenset(slot for slot, _ in _FUSED.values())
_UNKNOWN = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "wqkv", "W_pack", "qkv", "att_proj", "kv_b_proj")
