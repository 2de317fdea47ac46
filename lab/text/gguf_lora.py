"""Compare a LoRA with the GGUF file that llama.cpp's converter made of it: `python -m lab.text.gguf_lora`.

The converter is `convert_lora_to_gguf.py --base FOLDER --outfile FILE.gguf --outtype f32 LORA`, in the sources of
llama.cpp. It renames tensors, and orders the rows of a llama's keys as llama.cpp rotates them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_SLOTS = {"k_proj": "attn_k", "v_proj": "attn_v"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; return 1 if the files differ."""
    parser = argparse.ArgumentParser(prog="python -m lab.text.gguf_lora", description=__doc__)
    parser.add_argument("lora", type=Path, help="folder of `hnloader export-lora`")
    parser.add_argument("file", type=Path, help="file of the converter")
    parser.add_argument("--base", type=Path, required=True, help="folder with the model's config.json")
    given = parser.parse_args(arguments)
    config = json.loads((given.base / "config.json").read_text(encoding="utf-8"))
    expected = {
        gguf_name(name): gguf_rows(name, tensor, config["num_key_value_heads"])
        for name, tensor in load_file(given.lora / "adapter_model.safetensors").items()
    }
    found = read_gguf(given.file)
    print(f"{given.lora}: {len(expected)} tensors; {given.file}: {len(found)} tensors.")
    if expected.keys() != found.keys():
        print(f"The names differ: {sorted(expected.keys() ^ found.keys())[:8]}.")
        return 1
    differing = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    print(f"{len(expected) - len(differing)} of {len(expected)} tensors are equal to the bit.")
    return int(bool(differing))


def gguf_name(name: str) -> str:
    """Return the converter's name of a tensor of peft."""
    *_, layer, _, slot, part, _ = name.split(".")
    return f"blk.{layer}.{_SLOTS[slot]}.weight.{part.lower()}"


def gguf_rows(name: str, tensor: Tensor, heads: int) -> Tensor:
    """Return a tensor with the rows of rotated keys in llama.cpp's order: pairs of rows lie side by side."""
    if not name.endswith("k_proj.lora_B.weight"):
        return tensor
    return tensor.reshape(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)


def read_gguf(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file in float32."""
    from gguf import GGUFReader

    return {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in GGUFReader(path).tensors}


if __name__ == "__main__":
    sys.exit(main())
