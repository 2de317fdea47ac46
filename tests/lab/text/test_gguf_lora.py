"""Names and rows of a LoRA in a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lab.text import gguf_lora
from lab.text.gguf_lora import gguf_name, gguf_rows, main

A = "base_model.model.model.layers.11.self_attn.k_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def test_names_are_those_of_the_converter() -> None:
    assert gguf_name(A) == "blk.11.attn_k.weight.lora_a"
    assert gguf_name(B.replace("k_proj", "v_proj")) == "blk.11.attn_v.weight.lora_b"


def test_rows_are_those_that_transformers_undoes() -> None:
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    tensor = torch.arange(24 * 5).reshape(24, 5)
    ordered = gguf_rows(B, tensor, 3)
    undone = LlamaTensorProcessor()._reverse_permute_weights(ordered.numpy(), 3, 3)
    assert not torch.equal(ordered, tensor)
    assert torch.equal(torch.from_numpy(undone), tensor)
    assert torch.equal(gguf_rows(A, tensor, 3), tensor)


def test_a_different_tensor_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {A: torch.randn(2, 8), B: torch.randn(8, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_key_value_heads": 2}))
    converted = {gguf_name(name): gguf_rows(name, tensor, 2) for name, tensor in tensors.items()}
    given = [str(tmp_path), "made.gguf", "--base", str(tmp_path)]

    def read(path: Path) -> dict[str, Tensor]:
        return converted

    monkeypatch.setattr(gguf_lora, "read_gguf", read)
    assert main(given) == 0
    converted[gguf_name(B)] = tensors[B]
    assert main(given) == 1
    del converted[gguf_name(A)]
    assert main(given) == 1
