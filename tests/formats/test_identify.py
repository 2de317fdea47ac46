"""Files of other kinds are named with advice, and nothing in them runs."""

from __future__ import annotations

import io
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnknownFormatError
from tests.support.builders import simple_tree, write
from tests.support.errors import raises

READERS = {"load": hnloader.load, "inspect": hnloader.inspect}


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 3) for name in names}


# {what: (tensor names, what the message says it is, what it says to do)}
MODELS: dict[str, tuple[dict[str, torch.Tensor], str, str]] = {
    "LoRA of kohya": (
        tensors("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_unet_x.lora_up.weight"),
        "a LoRA",
        "load_lora_weights",
    ),
    "LoRA of diffusers": (
        tensors("unet.down_blocks.0.attentions.0.to_k.lora_A.weight", "unet.x.lora_B.weight"),
        "a LoRA",
        "<lora:",
    ),
    "LoRA of the first diffusers": (
        tensors("down_blocks.0.attentions.0.processor.to_k_lora.down.weight", "x.processor.to_k_lora.up.weight"),
        "a LoRA",
        "<lora:",
    ),
    "LoHa": (tensors("lora_unet_x.hada_w1_a", "lora_unet_x.hada_w2_a", "lora_unet_x.alpha"), "a LoRA", "<lora:"),
    "LoKr": (tensors("lycoris_unet_x.lokr_w1", "lycoris_unet_x.lokr_w2"), "a LoRA", "<lora:"),
    "OFT": (tensors("lora_unet_x.oft_blocks", "lora_unet_x.alpha"), "a LoRA", "<lora:"),
    "(IA)3 of LyCORIS": (tensors("lycoris_x.on_input", "lycoris_x.weight"), "a LoRA", "<lora:"),
    "checkpoint": (
        tensors(
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
            "first_stage_model.encoder.down.0.block.0.conv1.weight",
        ),
        "a full checkpoint",
        "from_single_file",
    ),
    "checkpoint of SDXL": (
        tensors("conditioner.embedders.0.transformer.x", "model.diffusion_model.input_blocks.0.0.weight"),
        "a full checkpoint",
        "from_single_file",
    ),
    "VAE": (tensors("encoder.down.0.block.0.norm1.weight", "decoder.up.0.x", "quant_conv.weight"), "a VAE", "VAE"),
    "VAE of diffusers": (
        tensors("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.conv_in.weight", "quant_conv.weight"),
        "a VAE",
        "AutoencoderKL",
    ),
    "ControlNet": (
        tensors("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"),
        "a ControlNet",
        "ControlNetModel",
    ),
    "ControlNet of diffusers": (
        tensors("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.norm1.weight"),
        "a ControlNet",
        "ControlNetModel",
    ),
    "UNet of diffusers": (
        tensors("down_blocks.0.attentions.0.norm.weight", "down_blocks.0.resnets.0.norm1.weight", "conv_in.weight"),
        "a UNet",
        "unet folder",
    ),
    "text encoder": (tensors("text_model.encoder.layers.0.mlp.fc1.weight"), "a text encoder", "text_encoder folder"),
    "upscaler": (tensors("RRDB_trunk.0.RDB1.conv1.weight", "conv_first.weight"), "an upscaler", "ESRGAN"),
    "upscaler of today's names": (tensors("body.0.rdb1.conv1.weight", "conv_first.weight"), "an upscaler", "ESRGAN"),
    "embedding": ({"emb_params": torch.zeros(2, 768)}, "embedding", "embeddings folder"),
    "embedding of SDXL": (
        {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)},
        "embedding",
        "load_textual_inversion",
    ),
    "embedding of diffusers": ({"<my-style>": torch.zeros(768)}, "embedding", "load_textual_inversion"),
}


def assert_named(path: Path, what: str, advice: str) -> None:
    for read in READERS.values():
        with pytest.raises(UnknownFormatError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert what in message
        assert advice in message


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_other_models_as_pt(name: str, legacy: bool, tmp_path: Path) -> None:
    content, what, advice = MODELS[name]
    assert_named(write(tmp_path / "file.pt", content, legacy=legacy), what, advice)
    assert_named(write(tmp_path / "ordered.pt", OrderedDict(content), legacy=legacy), what, advice)


@pytest.mark.parametrize("name", MODELS)
def test_other_models_as_safetensors(name: str, tmp_path: Path) -> None:
    content, what, advice = MODELS[name]
    save_file(content, tmp_path / "file.safetensors", metadata={"format": "pt"})
    assert_named(tmp_path / "file.safetensors", what, advice)


@pytest.mark.parametrize("name", ["checkpoint", "VAE", "ControlNet"])
def test_other_models_in_a_state_dict(name: str, tmp_path: Path) -> None:
    content, what, advice = MODELS[name]
    assert_named(write(tmp_path / "model.ckpt", {"state_dict": content, "global_step": 1}), what, advice)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_objects_of_its_trainer(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first Stable Diffusion was published: it holds a callback of pytorch_lightning, which is never made."""
    made = []

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.state = 1

        def __setstate__(self, state: object) -> None:
            made.append(state)

    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    content = {
        "epoch": 1,
        "state_dict": MODELS["checkpoint"][0],
        "callbacks": {ModelCheckpoint: {"state": 1}},
    }
    assert_named(write(tmp_path / "model.ckpt", content, legacy=legacy), "a full checkpoint", "from_single_file")
    assert not made


def test_webui_embedding_is_named(tmp_path: Path) -> None:
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.zeros(2, 768)},
        "name": "style",
        "step": 100,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    assert_named(write(tmp_path / "style.pt", content), "a textual-inversion embedding", "embeddings folder")
    parameter = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.zeros(2, 768))})
    assert_named(
        write(tmp_path / "old.pt", {**content, "string_to_param": parameter}), "embedding", "embeddings folder"
    )


def test_optimizer_state_is_named(tmp_path: Path) -> None:
    state = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    content = {"optimizer_name": "AdamW", "hash": "0123456789", "optimizer_state_dict": state}
    assert_named(write(tmp_path / "style.pt.optim", content), ".pt.optim", "load the .pt file")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"params_ema": {"conv_first.weight": torch.zeros(1)}}, "an upscaler"),
        ({"params": {"body.0.weight": torch.zeros(1)}}, "an upscaler"),
        ({"image_proj": {}, "ip_adapter": {}}, "an IP-Adapter"),
        (torch.zeros(3, 4), "a single tensor of shape [3, 4]"),
        ([1, 2, 3], "a saved list"),
        ("text", "a saved str"),
        (None, "a saved NoneType"),
        ({}, "a dict without a key per width (its keys: none)"),
        ({"a": 1, "b\n\x1b": 2}, r'its keys: "a", "b\n\u001b"'),
    ],
)
def test_other_objects_are_named(content: object, what: str, tmp_path: Path) -> None:
    assert_named(write(tmp_path / "file.pt", content), what, "")


def test_unknown_safetensors_are_named(tmp_path: Path) -> None:
    save_file(tensors("a", "b", "c", "d", "e"), tmp_path / "file.safetensors")
    assert_named(tmp_path / "file.safetensors", "an unknown kind", "not a hypernetwork")


# -- other files than models


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
BYTES: dict[str, tuple[bytes, str, str]] = {
    "web page": (b"<!DOCTYPE html>\n<html><head><title>Log in</title>", "a web page", "download again"),
    "web page without a doctype": (b"\n\n <HTML lang='en'>", "a web page", "download again"),
    "XML error": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page", "download again"),
    "LFS pointer": (POINTER, "a Git LFS pointer", "git lfs pull"),
    "JSON": (b'{"error": "not found"}', "JSON", "not a model"),
    "JSON list": (b"[1, 2]", "JSON", "not a model"),
    "text": (b"Please read the licence first.\n", "a text file", "not a model"),
    "text in another language": (
        "Bitte zuerst die Lizenz lesen: Größe, 日本語\n".encode(),
        "a text file",
        "not a model",
    ),
    "one word per line": (b"cat\ndog\nhorse\n", "a text file", "not a model"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image", "never stored in one"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(50), "a JPEG image", ""),
    "WebP": (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WebP image", ""),
    "GIF": (b"GIF89a" + bytes(20), "a GIF image", ""),
    "PDF": (b"%PDF-1.7\n", "a PDF document", ""),
    "RAR": (b"Rar!\x1a\x07\x00" + bytes(20), "a RAR archive", "unpack it"),
    "7z": (b"7z\xbc\xaf'\x1c" + bytes(20), "a 7z archive", "unpack it"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "a gzip archive", "unpack it"),
    "zip of something": (zip_of(**{"style.pt": b"x", "readme.txt": b"y"}), "a zip archive", "unpack it first"),
    "empty zip": (zip_of(), "an empty zip archive", ""),
    "zeros": (bytes(5000), "a file of zeros", "download it again"),
    "a program": (b"MZ\x90\x00" + bytes(100), "a Windows program", "do not run it"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF", ""),
    "noise": (bytes(range(255, 1, -1)), "unknown format", ".safetensors, .pt, .hns"),
    "a plain pickle": (b"\x80\x04}\x94\x8c\x01a\x94K\x01s.", "not written by torch.save", "pickle"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("name", BYTES)
def test_other_files_than_models_are_named(name: str, suffix: str, tmp_path: Path) -> None:
    data, what, advice = BYTES[name]
    path = tmp_path / f"style{suffix}"
    path.write_bytes(data)
    if suffix == "" and name.startswith("JSON"):
        return  # without an ending it may be a composition; test_hns has its errors
    assert_named(path, what, advice)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    path.touch()
    for read in READERS.values():
        with raises(CorruptFileError, path, "0 bytes"):
            read(path)


def test_format_is_detected_by_content(tmp_path: Path) -> None:
    for name in ("style", "style.bin", "style.safetensors", "style.PT"):
        assert hnloader.load(write(tmp_path / name, simple_tree())).widths == (8,)
    hnloader.save(hnloader.load(tmp_path / "style"), tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").rename(tmp_path / "other.pt")
    assert hnloader.load(tmp_path / "other.pt").widths == (8,)


# -- what cannot be opened


@pytest.mark.parametrize("reader", READERS)
def test_unopenable_paths_are_named(reader: str, tmp_path: Path) -> None:
    read = READERS[reader]
    with raises(HypernetworkError, "missing.pt"):
        read(tmp_path / "missing.pt")
    with raises(HypernetworkError, tmp_path, "folder"):
        read(tmp_path)
    with raises(HypernetworkError, "byte.pt"):
        read("nul\0byte.pt")
    with raises(HypernetworkError, "below.pt"):
        read(write(tmp_path / "style.pt", simple_tree()) / "below.pt")
    with raises(HypernetworkError, "home folder"):
        read("~no-such-user-here/style.pt")
    with raises(HypernetworkError, "int"):
        read(3)  # type: ignore[arg-type]


def test_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "style.pt", simple_tree())

    def refuse(path: Path, *arguments: object, **named: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(
        "hnloader.files.open", refuse, raising=False
    )  # the tests may run as root, whom no permission stops
    with raises(HypernetworkError, path, "Permission denied"):
        hnloader.load(path)


class Unseekable(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        return self.data.readinto(buffer)  # type: ignore[arg-type]


def test_open_files_load_from_the_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", simple_tree())
    data = path.read_bytes()
    for read in READERS.values():
        for file in (io.BytesIO(data), path.open("rb"), path.open("rb", buffering=0), Unseekable(data)):
            with file:
                assert read(file).widths == (8,)  # type: ignore[arg-type]
                assert not file.closed
        with path.open("rb") as file:
            file.read(100)
            assert read(file).widths == (8,)  # from its beginning, wherever it stands
        for text in (path.open(encoding="latin1"), io.StringIO("abc")):
            with text, raises(HypernetworkError, "text mode", "'rb'"):
                read(text)  # type: ignore[arg-type]
        with raises(HypernetworkError, "read"):
            read(file)  # closed by now
        with (tmp_path / "new.pt").open("wb") as write_only, raises(HypernetworkError, "read"):
            read(write_only)


def test_failing_device_is_reported(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 4096:
                raise OSError(5, "Input/output error")
            return super().read(size)

    content = simple_tree(width=100)
    data = write(tmp_path / "style.pt", content, legacy=True).read_bytes()
    with raises(HypernetworkError, "Input/output error"):
        hnloader.load(Failing(data))
