"""Small random language models of many families, and an independent reference for hypernetworks on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hnloader.network import Hypernetwork, SideName

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 3, 4, 64

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
# A token uses two of four experts.
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_OLD = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# By family: the name of the classes, and the values of the config.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "gemma": ("Gemma", {**_GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "gemma3": (
        "Gemma3",
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3", _GROUPED),
    "phi": ("Phi", _COMMON),
    "smollm3": ("SmolLM3", {**_GROUPED}),
    "gpt2": ("GPT2", {**_OLD, **_IDS}),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_layers": 2,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 128,
            **_IDS,
        },
    ),
    "gptj": ("GPTJ", {**_OLD, "rotary_dim": 4, **_IDS}),
    "gpt_neox": ("GPTNeoX", _COMMON),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **_IDS}),
    "falcon": ("Falcon", {**_COMMON, "multi_query": False, "bias": True}),
    "falcon_multi_query": ("Falcon", {**_COMMON, "multi_query": True}),
    "falcon_new": ("Falcon", {**_COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": (
        "Mpt",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "max_seq_len": 128,
            "expansion_ratio": 2,
            **_IDS,
        },
    ),
    "opt": (
        "OPT",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": 48,
            "word_embed_proj_dim": WIDTH,
            "max_position_embeddings": 128,
            **_IDS,
        },
    ),
    "xglm": (
        "XGLM",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "num_layers": LAYERS,
            "attention_heads": HEADS,
            "ffn_dim": 48,
            "max_position_embeddings": 128,
            **_IDS,
        },
    ),
    "stablelm": ("StableLm", _GROUPED),
    "starcoder2": ("Starcoder2", _GROUPED),
    "codegen": ("CodeGen", {**_OLD, "rotary_dim": 4, **_IDS}),
    "gpt_bigcode": ("GPTBigCode", {**_OLD, "multi_query": True, **_IDS}),
    "gpt_bigcode_heads": ("GPTBigCode", {**_OLD, "multi_query": False, **_IDS}),
    "persimmon": ("Persimmon", _COMMON),
    "mixtral": ("Mixtral", {**_EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24}),
    "olmoe": ("Olmoe", {**_EXPERTS, "num_experts": 4}),
    "phimoe": ("Phimoe", {**_EXPERTS, "num_local_experts": 4}),
}


def available() -> list[str]:
    """Return the families that the installed transformers has."""
    return [name for name, (kind, _) in FAMILIES.items() if hasattr(transformers, _head(kind))]


def _head(kind: str) -> str:
    return "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"


def make_decoder(name: str = "llama", **changes: Any) -> Any:
    """Make a random language model in eval mode, with weights large enough for effects to show."""
    kind, values = FAMILIES[name]
    for_text = "TextConfig" if kind == "Gemma3" else "Config"
    config = getattr(transformers, f"{kind}{for_text}")(**{**values, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, _head(kind))(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        elif parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def attention_layers(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Return the attention layers with the names of their projections for keys and values."""
    names = ("k_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj", "Wqkv")
    found = [(module, [name for name in names if name in module._modules]) for module in model.modules()]
    return [(module, held) for module, held in found if held]


def _cache(model: Any) -> list[Tensor]:
    ids = torch.arange(5)[None] + 5
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
    layer = past[0] if not hasattr(past, "layers") else (past.layers[0].keys, past.layers[0].values)
    # GPT-BigCode of old releases keeps both in one tensor.
    keys, values = layer.chunk(2, -1) if isinstance(layer, Tensor) else layer[:2]
    return [keys.clone(), values.clone()]


def sides_of_rows(model: Any) -> list[SideName | None]:
    """Return the side of each row of a fused matrix by experiment: whether it changes the cached keys or values."""
    module, (name, *_) = attention_layers(model)[0]
    weight = module._modules[name].weight
    if type(module._modules[name]).__name__ == "Conv1D":
        weight = weight.T
    plain = _cache(model)
    found: list[SideName | None] = []
    for row in range(len(weight)):
        before = weight[row].clone()
        weight[row] += 1
        changed = [not torch.equal(*pair) for pair in zip(_cache(model), plain, strict=True)]
        weight[row] = before
        assert not all(changed)
        found.append("k" if changed[0] else "v" if changed[1] else None)
    return found


def reference(model: Any, change: Callable[[int, SideName, Tensor], Tensor]) -> Any:
    """Return a copy of a model whose contexts for keys and values are changed by hooks, layer by layer."""
    made = copy.deepcopy(model)
    rows = None
    for number, (module, names) in enumerate(attention_layers(made)):
        if len(names) == 2:
            for name, side in zip(names, "kv", strict=True):
                module._modules[name].register_forward_pre_hook(  # type: ignore[union-attr]
                    lambda _, args, number=number, side=side: (change(number, side, args[0]),)
                )
            continue
        rows = rows or sides_of_rows(model)
        module._modules[names[0]].register_forward_hook(_replaced(rows, number, change))  # type: ignore[union-attr]
    return made


def _replaced(
    rows: Sequence[SideName | None], number: int, change: Callable[[int, SideName, Tensor], Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        result = output.clone()
        for side in ("k", "v"):
            own = torch.tensor([row == side for row in rows])
            result[..., own] = module.forward(change(number, side, args[0]))[..., own]  # type: ignore[arg-type]
        return result

    return hook


def applied(hypernetwork: Hypernetwork, strength: float) -> Callable[[int, SideName, Tensor], Tensor]:
    """Return the change of contexts by one hypernetwork, in float32."""

    def change(number: int, side: SideName, context: Tensor) -> Tensor:
        scope = hypernetwork.scope_at(WIDTH, "self", number)
        if scope is None:
            return context
        return hypernetwork.side(scope, side)(context.float(), strength).to(context.dtype)

    return change
