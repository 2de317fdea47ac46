"""The nodes about files."""

from __future__ import annotations

import hnloader
from tests.support.standins.comfyui_host import Host


def test_info(comfyui: Host) -> None:
    hn = hnloader.Hypernetwork.new((320, 640, 768, 1280), hnloader.Architecture((1, 2, 1), "relu"), name="Ink")
    hn.metadata["step"] = 1200
    hnloader.save(hn.requires_grad_(False), comfyui.folder / "styles" / "sd1.safetensors")
    found = comfyui.node("HypernetworkInfo").inspect("styles/sd1.safetensors")
    text = found["result"][0]
    assert found["ui"] == {"text": [text]}
    for fact in ("styles/sd1.safetensors", "Ink", "SD 1", "1-2-1, relu", "1200", "float32"):
        assert fact in text
    scoped = hnloader.Hypernetwork.new(("640:self:0-3", 768), hnloader.Architecture((1, 2, 1), "relu"))
    hnloader.save(scoped, comfyui.folder / "scoped.safetensors")
    assert "Widths: 640:self:0-3, 768" in comfyui.node("HypernetworkInfo").inspect("scoped.safetensors")["result"][0]
    hn.metadata["sd_checkpoint_name"] = "a" * 100_000
    hnloader.save(hn, comfyui.folder / "long.pt")
    assert len(comfyui.node("HypernetworkInfo").inspect("long.pt")["result"][0]) < 5_000
    assert "composition" in comfyui.node("HypernetworkInfo").inspect("hns_nested.hns")["result"][0]


def test_convert(comfyui: Host) -> None:
    node = comfyui.node("ConvertHypernetwork")
    found = node.convert("styles/ink.pt", "safetensors", "as stored", "skip")
    assert found["result"] == ("styles/ink.safetensors",) and "Verified" in found["ui"]["text"][0]
    kept, made = (hnloader.load(comfyui.folder / "styles" / f"ink.{each}") for each in ("pt", "safetensors"))
    assert all(value.equal(made.state_dict()[name]) for name, value in kept.state_dict().items())
    assert "skipped" in node.convert("styles/ink.pt", "safetensors", "as stored", "skip")["ui"]["text"][0]
    renamed = node.convert("styles\\ink.pt", "safetensors", "float16", "rename")["result"][0]
    assert renamed != "styles/ink.safetensors" and hnloader.inspect(comfyui.folder / renamed).dtypes == ("float16",)
    again = node.IS_CHANGED(hypernetwork="styles/ink.pt")
    assert again != again
