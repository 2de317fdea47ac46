"""Say what a file is that is not a hypernetwork, and what to do with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice

from hnloader.families import vector_widths
from hnloader.formats.pickles import TensorRef
from hnloader.texts import as_text, shown

__all__ = ["are_vectors", "kind_of_bytes", "kind_of_names", "kind_of_tree"]

# -- other files than models, by their first bytes

_MAGICS: tuple[tuple[bytes, str], ...] = (
    (
        b"\x89PNG\r\n",
        "a PNG image; a hypernetwork is never stored in one (a textual-inversion embedding may be)",
    ),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (WebP image, audio or video)"),
    (b"%PDF", "a PDF document"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive; unpack it and use the file inside"),
    (b"Rar!", "a RAR archive; unpack it and use the file inside"),
    (b"\x1f\x8b", "a gzip archive; unpack it and use the file inside"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"GGUF", "a GGUF language or diffusion model"),
    (b"\x89HDF", "an HDF5 model"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"MZ", "a Windows program; do not run it"),
    (b"\x7fELF", "a Linux program; do not run it"),
)


def kind_of_bytes(head: bytes, endings: Iterable[str]) -> str:
    """Return what a file of an unknown format is and what to do with it; `endings` are those of wanted files."""
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    text = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<script")) or b"<html" in text:
        return "a web page (HTML) instead of the file: log in on the site and download again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run 'git lfs pull' in its repository"
    if text.startswith((b"{", b"[")):
        return "a JSON or other text file, not a model"
    if not head.strip(b"\0"):
        return "a file of zeros, from a failed download or copy: download it again"
    if all(byte >= 32 or byte in (9, 10, 12, 13, 27) for byte in head[:1024]):
        return "a text file, not a model"
    return f"of an unknown format; a hypernetwork is a file that ends in {', '.join(endings)}"


# -- models of other kinds, by their contents

_EMBEDDING = (
    "a textual-inversion embedding, not a hypernetwork: put it in the embeddings folder of a webui, "
    "or call pipe.load_textual_inversion"
)
_LORA = "a LoRA, not a hypernetwork: use it as <lora:name:1> in a webui, or call pipe.load_lora_weights"
_CHECKPOINT = (
    "a full checkpoint (a whole model), not a hypernetwork: put it in the models folder of a webui, "
    "or call StableDiffusionPipeline.from_single_file"
)
_VAE = "a VAE, not a hypernetwork: choose it as the VAE of a webui, or call AutoencoderKL.from_single_file"
_CONTROLNET = "a ControlNet, not a hypernetwork: load it with a ControlNet program or ControlNetModel"
_UNET = "a UNet in the diffusers layout, not a hypernetwork: it belongs in the unet folder of a pipeline"
_TEXT_ENCODER = "a text encoder, not a hypernetwork: it belongs in the text_encoder folder of a pipeline"
_UPSCALER = "an upscaler (such as ESRGAN), not a hypernetwork: put it in the ESRGAN folder of a webui"
_IP_ADAPTER = "an IP-Adapter, not a hypernetwork: load it with pipe.load_ip_adapter"
_PREDICTOR = "a predictor of hypernetworks, not a hypernetwork: give it to `hnloader predict --predictor`"
_OPTIMIZER = (
    "the optimizer state of a hypernetwork's training (.pt.optim), not the hypernetwork: load the .pt file of that name"
)

# Parts of tensors' names by kind of model; the first one that any name contains decides.
_NAME_PARTS: tuple[tuple[str, str], ...] = (
    (_PREDICTOR, "model.probe"),
    (_LORA, "lora_up. lora_down. .lora_A. .lora_B. lora_linear_layer. _lora.down. _lora.up. .lora.down. .lora.up."),
    (_LORA, "lycoris_ hada_w1 lokr_w"),
    (_LORA, "lora_unet_ lora_te"),
    (_CONTROLNET, "control_model. controlnet_cond_embedding."),
    (_CHECKPOINT, "model.diffusion_model. cond_stage_model."),
    (_VAE, "first_stage_model. encoder.down quant_conv."),
    (_UNET, "down_blocks.0.attentions down_blocks.0.resnets"),
    (_TEXT_ENCODER, "text_model.encoder."),
    (_UPSCALER, "RDB1.conv1 conv_first."),
    (_CHECKPOINT, "input_blocks."),
)
_EMBEDDING_NAMES = {"emb_params", "clip_l", "clip_g", "t5xxl"}
# Values per vector of T5, the third text encoder of SD 3.
_T5_WIDTH = 4096
_MOST_VECTORS = 256


def kind_of_tree(tree: object) -> str | None:
    """Return what the object in a `.pt` file is and what to do with it; None for a hypernetwork."""
    if isinstance(tree, TensorRef):
        return (
            f"a single tensor of shape {shown(list(tree.shape))}, not a hypernetwork (perhaps an aesthetic embedding)"
        )
    if not isinstance(tree, dict):
        return f"a saved {type(tree).__name__}, not a hypernetwork: that is a dict with one key per width"
    if any(type(key) is int for key in tree):
        return None
    if "string_to_param" in tree or "string_to_token" in tree:
        return _EMBEDDING
    if "optimizer_state_dict" in tree:
        return _OPTIMIZER
    if "image_proj" in tree and "ip_adapter" in tree:
        return _IP_ADAPTER
    if isinstance(tree.get("state_dict"), dict):
        return kind_of_names(tree["state_dict"]) or _CHECKPOINT
    for wrapper in ("params_ema", "params"):
        if isinstance(tree.get(wrapper), dict):
            return _UPSCALER
    known = kind_of_names(tree)
    if known is not None:
        return known
    if 1 <= len(tree) <= 4 and all(isinstance(each, TensorRef) and are_vectors(each.shape) for each in tree.values()):
        return _EMBEDDING
    keys = ", ".join(_short(key) for key in islice(tree, 4)) or "none"
    return f"a dict without a key per width (its keys: {keys}), not a hypernetwork of a known kind"


def kind_of_names(names: Iterable[object]) -> str | None:
    """Return what a model with tensors of these names is and what to do with it; None for unknown names."""
    texts = [name for name in names if isinstance(name, str)]
    if texts and (set(texts) <= _EMBEDDING_NAMES or all(re.fullmatch("<.+>", name) for name in texts)):
        return _EMBEDDING
    for kind, parts in _NAME_PARTS:
        if any(part in name for part in parts.split() for name in texts):
            return kind
    return None


def are_vectors(shape: Sequence[int]) -> bool:
    """Return whether a tensor has the shape of an embedding; a small matrix is something else."""
    if len(shape) not in (1, 2) or shape[-1] not in {*vector_widths(), _T5_WIDTH}:
        return False
    return len(shape) == 1 or 1 <= shape[0] <= _MOST_VECTORS


def _short(key: object) -> str:
    return json.dumps(as_text(key, 40))
