"""Checks of ComfyUI's API. Each one raises AssertionError, or returns what it measured."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.paths import GOLDENS

from . import files
from .comfyui_server import ComfyUI, RefusedError, Workflow

WASH = str(Path("a b", "wash ü.pt"))
# Relative difference of latents.
SAME = 1e-5
OTHER = 1e-3

Check = Callable[[ComfyUI], str]
Chain = list[tuple[str, dict[str, Any]]]


def load(file: str, strength: float = 1.0, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return our loader as a part of a chain."""
    return "HnloaderLoadHypernetwork", {"hypernetwork": file, "strength": strength, **more}


def formula(*chain: tuple[str, float], only: str = "") -> tuple[str, dict[str, Any]]:
    """Return the formula as a part of a chain."""
    return "ProbeFormula", {"files": ", ".join(f"{file}={strength}" for file, strength in chain), "only": only}


BUILT_IN = ("HypernetworkLoader", {"hypernetwork_name": "ink.pt", "strength": 0.6})
LORA = ("LoraLoaderModelOnly", {"lora_name": "thread.safetensors", "strength_model": 1.0})


def tiny(dtype: str = "float32", text: int = 64) -> tuple[str, dict[str, Any]]:
    """Return the tiny model with the widths of the golden files."""
    return "ProbeTinyModel", {"dtype": dtype, "text": text}


def checkpoint(name: str, dtype: str = "default") -> tuple[str, dict[str, Any]]:
    """Return a node that loads a UNet."""
    return "UNETLoader", {"unet_name": f"{name}.safetensors", "weight_dtype": dtype}


def workflow(
    source: tuple[str, dict[str, Any]], *chain: tuple[str, dict[str, Any]], width: int = 64, **sampling: Any
) -> Workflow:
    """Return a workflow: a model, what changes it, a sampler, and SaveLatent as `save`."""
    nodes: Workflow = {"model": {"class_type": source[0], "inputs": dict(source[1])}}
    last = "model"
    for number, (kind, inputs) in enumerate(chain):
        nodes[f"part {number}"] = {"class_type": kind, "inputs": {"model": [last, 0], **inputs}}
        last = f"part {number}"
    for name, seed, tokens in (("positive", 1, 77), ("negative", 2, sampling.pop("negative_tokens", 77))):
        nodes[name] = {"class_type": "ProbeText", "inputs": {"width": width, "seed": seed, "tokens": tokens}}
    side = sampling.pop("side", 64)
    nodes["latent"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": side, "height": side, "batch_size": sampling.pop("batch", 1)},
    }
    settings = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    inputs = {
        "model": [last, 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
    }
    nodes["sampler"] = {"class_type": "KSampler", "inputs": {**inputs, **settings, **sampling}}
    nodes["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "check"}}
    return nodes


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the relative difference."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def expect_same(found: torch.Tensor, wanted: torch.Tensor, most: float = SAME) -> float:
    error = error_of(found, wanted)
    assert error <= most, f"the latents differ by {error:.1e}"
    return error


def expect_other(found: torch.Tensor, plain: torch.Tensor) -> float:
    change = error_of(found, plain)
    assert change > OTHER, f"no effect: {change:.1e}"
    return change


def listed(host: ComfyUI) -> str:
    known = {name: node for name, node in host.get("/object_info").items() if name.startswith("Hnloader")}
    assert len(known) == 7, sorted(known)
    names = known["HnloaderLoadHypernetwork"]["input"]["required"]["hypernetwork"][0]
    assert {"ink.pt", "hns_nested.hns", "dry.safetensors", WASH} <= set(names), names[:40]
    assert not [name for name in names if name.endswith(".png")]
    return f"7 nodes, {len(names)} files; {', '.join(sorted({node['category'] for node in known.values()}))}"


def golden_files(host: ComfyUI) -> str:
    cases = json.loads((GOLDENS / "manifest.json").read_text())["cases"]
    plains = {text: host.latent(workflow(tiny(text=text), width=text)) for text in (48, 64)}
    plains[768] = host.latent(workflow(checkpoint("sd1"), width=768))
    worst, least, count = 0.0, 9.0, 0
    for case in cases:
        if "file" not in case:
            continue
        # Two files have other widths: those of SD 1, and four small ones.
        width = next(width for width in (768, 64, 48) if width in case["dims"])
        source = checkpoint("sd1") if width == 768 else tiny(text=width)
        found = host.latent(workflow(source, load(case["file"], 0.8), width=width))
        wanted = host.latent(workflow(source, formula((case["file"], 0.8)), width=width))
        worst = max(worst, expect_same(found, wanted))
        least = min(least, expect_other(found, plains[width]))
        count += 1
    assert count == 28, count
    return f"{count} files, largest difference {worst:.1e}, smallest effect {least:.1e}"


def golden_chains(host: ComfyUI) -> str:
    worst = 0.0
    for chain in ([("linear_121.pt", 0.8), ("relu_121.pt", 0.5)], [("relu_121.pt", 0.7), ("linear_121.pt", -0.3)]):
        found = host.latent(workflow(tiny(), *(load(*part) for part in chain)))
        worst = max(worst, expect_same(found, host.latent(workflow(tiny(), formula(*chain)))))
    return f"2 chains, largest difference {worst:.1e}"


def precision(host: ComfyUI) -> str:
    """Compare with float32: the nodes must be as close to it as the formula in the same precision."""
    said = []
    for dtype in ("float16", "bfloat16"):
        for file in ("linear_121.pt", "relu_121.pt", "bf16_linear.pt", "fp16_relu.pt"):
            exact = host.latent(workflow(tiny(), formula((file, 1.0))))
            wanted = error_of(host.latent(workflow(tiny(dtype), formula((file, 1.0)))), exact)
            found = error_of(host.latent(workflow(tiny(dtype), load(file))), exact)
            assert 0 < found <= 1.5 * wanted, f"{dtype}, {file}: {found:.1e} from float32; by the formula {wanted:.1e}"
        said.append(f"{dtype} {found:.1e} from float32, by the formula {wanted:.1e}")
    for kind in ("fp8_e4m3fn", "fp8_e5m2"):
        source = checkpoint("sd1", kind)
        for file in ("flat.pt", "ink.pt"):
            found = host.latent(workflow(source, load(file, 0.7), width=768))
            same = expect_same(found, host.latent(workflow(source, formula((file, 0.7)), width=768)))
        said.append(f"{kind} {same:.1e}")
    return ", ".join(said)


def families(host: ComfyUI) -> str:
    said = []
    for name, width, file in (("sd1", 768, "ink.pt"), ("sd2", 1024, "sd2.pt"), ("sdxl", 2048, "wide.pt")):
        source = checkpoint(name)
        plain = host.latent(workflow(source, width=width))
        for each in (file, f"flat {file}"):
            found = host.latent(workflow(source, load(each, 0.7), width=width))
            expect_other(found, plain)
            said.append(f"{expect_same(found, host.latent(workflow(source, formula((each, 0.7)), width=width))):.1e}")
        assert torch.equal(host.latent(workflow(source, width=width)), plain), "the plain latent changed"
    return f"SD 1, SD 2, SDXL, with and without activation: {', '.join(said)}"


def built_in(host: ComfyUI) -> str:
    source, said = checkpoint("sd1"), []
    for file in ("wash.pt", "flat.pt"):
        after = host.latent(workflow(source, BUILT_IN, load(file, 0.7), width=768))
        said.append(expect_same(after, host.latent(workflow(source, formula(("ink.pt", 0.6), (file, 0.7)), width=768))))
        before = host.latent(workflow(source, load(file, 0.7), BUILT_IN, width=768))
        said.append(
            expect_same(before, host.latent(workflow(source, formula((file, 0.7), ("ink.pt", 0.6)), width=768)))
        )
        assert error_of(after, before) > 1e-4, "the order has no effect"
    return f"before and after: {max(said):.1e}"


def others(host: ComfyUI) -> str:
    """Combine with LoRA, an adapter as IPAdapter, ToMe and another sampler's calls, in both orders."""
    source, said = checkpoint("sd1"), []
    parts = {
        "LoRA": LORA,
        "adapter": ("ProbeAdapter", {}),
        "ToMe": ("TomePatchModel", {"ratio": 0.3}),
        "HyperTile": ("HyperTile", {"tile_size": 64, "swap_size": 1, "max_depth": 0, "scale_depth": False}),
        "PAG": ("PerturbedAttentionGuidance", {"scale": 2.0}),
    }
    for name, part in parts.items():
        worst = 0.0
        for file in ("ink.pt", "flat.pt"):
            wanted = host.latent(workflow(source, part, formula((file, 0.7)), width=768, side=128))
            for chain in ((part, load(file, 0.7)), (load(file, 0.7), part)):
                worst = max(worst, expect_same(host.latent(workflow(source, *chain, width=768, side=128)), wanted))
        said.append(f"{name} {worst:.1e}")

    def controlled(*chain: tuple[str, dict[str, Any]]) -> Workflow:
        nodes = workflow(source, *chain, width=768)
        nodes["control"] = {"class_type": "ProbeControl", "inputs": {"conditioning": ["positive", 0]}}
        nodes["sampler"]["inputs"]["positive"] = ["control", 0]
        return nodes

    found = host.latent(controlled(load("ink.pt", 0.7)))
    expect_other(found, host.latent(workflow(source, load("ink.pt", 0.7), width=768)))
    said.append(f"ControlNet {expect_same(found, host.latent(controlled(formula(('ink.pt', 0.7))))):.1e}")
    return ", ".join(said)


def windows(host: ComfyUI) -> str:
    """Compare a window with two samplers, one for each part."""
    source = checkpoint("sd1")

    def parts(file: str) -> Workflow:
        nodes = workflow(source, formula((file, 0.7)), width=768)
        base = {
            "add_noise": "enable",
            "noise_seed": 5,
            "steps": 4,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
        }
        base |= {"positive": ["positive", 0], "negative": ["negative", 0]}
        first = {"model": ["model", 0], "latent_image": ["latent", 0], "start_at_step": 0, "end_at_step": 2}
        second = {"model": ["part 0", 0], "latent_image": ["first", 0], "start_at_step": 2, "end_at_step": 99}
        nodes["first"] = {
            "class_type": "KSamplerAdvanced",
            "inputs": base | first | {"return_with_leftover_noise": "enable"},
        }
        nodes["sampler"] = {
            "class_type": "KSamplerAdvanced",
            "inputs": base | second | {"add_noise": "disable", "return_with_leftover_noise": "disable"},
        }
        return nodes

    worst = 0.0
    for file in ("ink.pt", "flat.pt"):
        whole = host.latent(workflow(source, load(file, 0.7), width=768, steps=4))
        late = host.latent(workflow(source, load(file, 0.7, start=0.5, window="steps"), width=768, steps=4))
        expect_other(late, whole)
        worst = max(worst, expect_same(late, host.latent(parts(file))))
        for window in ("percent", "steps"):
            none = host.latent(
                workflow(source, load(file, 0.7, end=0.001, window=window), width=768, steps=4, sampler_name="dpm_2")
            )
            assert error_of(none, whole) > OTHER, "the window has no effect"
    half = host.latent(workflow(source, load("ink.pt", 0.7, start=0.3, end=0.7), width=768, steps=4))
    expect_other(half, host.latent(workflow(source, width=768, steps=4)))
    return f"second half of the steps {worst:.1e}; percent acts"


def blocks(host: ComfyUI) -> str:
    source, said = checkpoint("sd1"), []
    for text, only in (("up", "output_blocks"), ("mid", "middle_block"), ("cross", "attn2"), ("self", "attn1")):
        for file in ("ink.pt", "flat.pt"):
            found = host.latent(workflow(source, load(file, 0.7, blocks=text), width=768))
            said.append(expect_same(found, host.latent(workflow(source, formula((file, 0.7), only=only), width=768))))
    return f"up, mid, cross and self: {max(said):.1e}"


def batches(host: ComfyUI) -> str:
    """Use texts of different lengths, batches, and a larger image."""
    source, said = checkpoint("sd1"), []
    for more in ({"negative_tokens": 154}, {"batch": 3}, {"side": 192}, {"denoise": 0.5}, {"sampler_name": "heun"}):
        for file in ("ink.pt", "flat.pt"):
            found = host.latent(workflow(source, load(file, 0.7), width=768, **more))
            said.append(expect_same(found, host.latent(workflow(source, formula((file, 0.7)), width=768, **more))))
    return f"two lengths, 3 images, 192 px, half denoise, heun: {max(said):.1e}"


def hooked(host: ComfyUI) -> str:
    """Compare hooks of one conditioning with the model's: without guidance only the positive one counts."""
    source, said = checkpoint("sd1"), []

    def with_hook(name: str, file: str, **sampling: Any) -> Workflow:
        nodes = workflow(source, width=768, **sampling)
        nodes["hook"] = {
            "class_type": "HnloaderCreateHookHypernetwork",
            "inputs": {"hypernetwork": file, "strength": 0.7},
        }
        inputs = {"cond_NEW": [name, 0], "strength": 1.0, "set_cond_area": "default", "hooks": ["hook", 0]}
        nodes["hooked"] = {"class_type": "ConditioningSetProperties", "inputs": inputs}
        nodes["sampler"]["inputs"][name] = ["hooked", 0]
        return nodes

    plain = host.latent(workflow(source, width=768, cfg=1.0))
    guided = host.latent(workflow(source, width=768))
    for file in ("ink.pt", "flat.pt"):
        alone = host.latent(with_hook("positive", file, cfg=1.0))
        said.append(expect_same(alone, host.latent(workflow(source, formula((file, 0.7)), width=768, cfg=1.0))))
        assert torch.equal(host.latent(with_hook("negative", file, cfg=1.0)), plain), "the hook acts elsewhere"
        positive, negative = (host.latent(with_hook(name, file)) for name in ("positive", "negative"))
        expect_other(positive, guided)
        expect_other(negative, positive)
    return f"alone as on the model: {max(said):.1e}; on the other conditioning no effect"


def two_samplers(host: ComfyUI) -> str:
    """Sample twice in one workflow with different strengths."""
    source = checkpoint("sd1")
    nodes = workflow(source, load("flat.pt", 0.7), width=768)
    nodes["again"] = {
        "class_type": "HnloaderLoadHypernetwork",
        "inputs": {"model": ["model", 0], "hypernetwork": "flat.pt", "strength": 0.2},
    }
    nodes["second"] = {"class_type": "KSampler", "inputs": {**nodes["sampler"]["inputs"], "model": ["again", 0]}}
    nodes["other"] = {"class_type": "SaveLatent", "inputs": {"samples": ["second", 0], "filename_prefix": "check"}}
    outputs = host.outputs(nodes)
    from safetensors.torch import load as tensors

    for name, strength in (("save", 0.7), ("other", 0.2)):
        found = tensors(host.saved(outputs[name]["latents"][0]))["latent_tensor"]
        same = expect_same(found, host.latent(workflow(source, formula(("flat.pt", strength)), width=768)))
    return f"strengths 0.7 and 0.2: {same:.1e}"


def refused(host: ComfyUI) -> str:
    """Check the messages for other models, other widths, unknown names and missing files."""
    said = []

    def message(nodes: Workflow) -> str:
        try:
            host.outputs(nodes)
        except RefusedError as error:
            return str(error)
        raise AssertionError("The workflow ran.")

    sd1 = checkpoint("sd1")
    cases = {
        "Flux": (workflow(checkpoint("flux"), load("ink.pt"), width=4096), ("Flux", "SD 1, SD 2 or SDXL")),
        "widths": (workflow(sd1, load("only 2048.pt"), width=768), ("SDXL (2048)", "SD 1 (768)")),
        "torn": (workflow(sd1, load("torn.pt"), width=768), ("torn.pt",)),
        "missing": (workflow(sd1, load("gone.pt"), width=768), ("gone.pt", "models/hypernetworks")),
        "tag": (
            workflow(sd1, ("HnloaderHypernetworksFromPrompt", {"prompt": "a <hypernet:inc>"}), width=768),
            ("inc", "Did you mean 'ink'"),
        ),
        "block": (workflow(sd1, load("ink.pt", blocks="upp"), width=768), ("upp", "up")),
        "window": (workflow(sd1, load("ink.pt", start=0.8, end=0.2), width=768), ("0.8", "0.2")),
    }
    for name, (nodes, facts) in cases.items():
        text = message(nodes)
        assert all(fact in text for fact in facts), text
        assert str(host.data) not in text.replace("\\\\", "\\"), text
        said.append(f"{name}: {text[:90]}")
    return "\n       ".join(said)


def other_nodes(host: ComfyUI) -> str:
    """Run prompt, info, convert and the grid."""
    source = checkpoint("sd1")
    prompt = (
        "HnloaderHypernetworksFromPrompt",
        {"prompt": "a boat <hypernet:ink:0.7:block=up> <hypernet:wash ü:0.4> <lora:x:1>"},
    )
    found = host.latent(workflow(source, prompt, width=768))
    chain = (load("ink.pt", 0.7, blocks="up"), load(WASH, 0.4))
    expect_same(found, host.latent(workflow(source, *chain, width=768)))
    info = {"info": {"class_type": "HnloaderHypernetworkInfo", "inputs": {"hypernetwork": "ink.pt"}}}
    (text,) = host.outputs(info)["info"]["text"]
    assert "SD 1" in text and "relu" in text, text
    inputs = {"hypernetwork": "ink.pt", "to": "safetensors", "dtype": "as stored", "if_exists": "overwrite"}
    (done,) = host.outputs({"convert": {"class_type": "HnloaderConvertHypernetwork", "inputs": inputs}})["convert"][
        "text"
    ]
    assert "Verified" in done and (host.data / "models" / "hypernetworks" / "ink.safetensors").is_file(), done
    expect_same(
        host.latent(workflow(source, load("ink.safetensors", 0.7), width=768)),
        host.latent(workflow(source, load("ink.pt", 0.7), width=768)),
    )
    (host.data / "models" / "hypernetworks" / "ink.safetensors").unlink()
    preview = host.read("/hnloader/preview?file=ink.pt")
    assert preview[:2] == b"\xff\xd8", "no preview"
    assert host.read("/hnloader/preview?file=../../host.log") == b"", "a file outside of the folder is found"
    return f"prompt equals the chain; {text.splitlines()[2]}; {done}"


def grid(host: ComfyUI) -> str:
    """Make an image from a checkpoint, and a grid of three strengths."""
    nodes = image_workflow()
    plain = host.images(nodes)[0]
    nodes["load"] = {
        "class_type": "HnloaderHypernetworkStrengths",
        "inputs": {"model": ["model", 0], "hypernetwork": "ink.pt", "strengths": "0, 0.5, 1"},
    }
    nodes["sampler"]["inputs"]["model"] = ["load", 0]
    nodes["grid"] = {
        "class_type": "HnloaderHypernetworkGrid",
        "inputs": {"images": ["decode", 0], "labels": ["load", 1], "title": "ink"},
    }
    nodes["drawn"] = {"class_type": "SaveImage", "inputs": {"images": ["grid", 0], "filename_prefix": "grid"}}
    outputs = host.outputs(nodes)
    assert len(outputs["save"]["images"]) == 3, outputs["save"]
    shape = host.images(nodes, "drawn")[0].shape
    assert shape[1] > 3 * plain.shape[1], shape
    return f"three images, grid {shape[1]} x {shape[0]}"


def image_workflow() -> Workflow:
    """Return the workflow that ComfyUI starts with, for a small image."""
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd1.safetensors"}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "a boat"}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "gray"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": 5,
                "steps": 2,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["decode", 0], "filename_prefix": "check"},
            "_meta": {"title": "Save Image"},
        },
    }


def clean(host: ComfyUI) -> str:
    """Check that runs leave the model unchanged bit for bit, and that copies of a model cost nothing."""
    source = checkpoint("sd1")

    def checksum(seed: int) -> str:
        host.outputs(workflow(source, width=768, seed=seed))  # ComfyUI restores the model before the next run
        nodes = {"model": {"class_type": source[0], "inputs": source[1]}}
        nodes["sum"] = {"class_type": "ProbeChecksum", "inputs": {"model": ["model", 0]}}
        (text,) = host.outputs(nodes)["sum"]["text"]
        return str(text)

    before = checksum(70)
    for number, chain in enumerate(((load("flat.pt"),), (load("ink.pt", 0.3),), (LORA, load("flat.pt")))):
        host.outputs(workflow(source, *chain, width=768))
        assert checksum(71 + number) == before, "the weights changed"
    nodes = workflow(source, load("ink.pt"), width=768)
    nodes["clones"] = {"class_type": "ProbeClones", "inputs": {"model": ["part 0", 0], "count": 10}}
    (grown,) = host.outputs(nodes)["clones"]["text"]
    assert int(grown) == 0, f"10 copies cost {grown} bytes"
    return "weights and modules bit for bit; 10 copies cost 0 bytes"


def changed_file(host: ComfyUI) -> str:
    source, folder = checkpoint("sd1"), host.data / "models" / "hypernetworks"
    shutil.copy(folder / "ink.pt", folder / "changing.pt")
    first = host.latent(workflow(source, load("changing.pt", 0.7), width=768))
    shutil.copy(folder / "flat.pt", folder / "changing.pt")
    second = host.latent(workflow(source, load("changing.pt", 0.7), width=768))
    expect_other(second, first)
    expect_same(second, host.latent(workflow(source, load("flat.pt", 0.7), width=768)))
    (folder / "changing.pt").unlink()
    return "the new contents act"


def interrupted(host: ComfyUI) -> str:
    source = checkpoint("sd1")
    plain = host.latent(workflow(source, width=768, seed=8))
    queued = host.queue(workflow(source, load("flat.pt"), width=768, steps=400))
    for _ in range(300):
        if host.get("/queue")["queue_running"]:
            break
        time.sleep(0.1)
    time.sleep(3)
    host.post("/interrupt", {})
    try:
        host.finished(queued)
    except RefusedError as error:
        assert "Interrupted" in str(error), error
    else:
        raise AssertionError("The run was not interrupted.")
    nodes = workflow(source, width=768, seed=8)
    nodes["save"]["inputs"]["filename_prefix"] = "again"
    assert torch.equal(host.latent(nodes), plain), "the plain latent changed"
    return "then plain bit for bit"


def many(host: ComfyUI) -> str:
    folder = host.data / "models" / "hypernetworks" / "many"
    begun = time.monotonic()
    host.get("/object_info/HnloaderLoadHypernetwork")
    few = time.monotonic() - begun
    files.save_many(folder, 2000, 50)
    try:
        begun = time.monotonic()
        known = host.get("/object_info/HnloaderLoadHypernetwork")
        first = time.monotonic() - begun
        names = known["HnloaderLoadHypernetwork"]["input"]["required"]["hypernetwork"][0]
        assert len(names) > 2000, len(names)
        host.latent(workflow(checkpoint("sd1"), load(str(Path("many", "many 0007.pt")), 0.5), width=768))
    finally:
        shutil.rmtree(folder)
    return f"listed in {first:.2f} s, {few:.2f} s before"


def client(host: ComfyUI) -> str:
    """Generate with comfy-api-simplified, a client from PyPI."""
    from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

    nodes = image_workflow()
    nodes["load"] = {
        "class_type": "HnloaderLoadHypernetwork",
        "inputs": {"model": ["model", 0], "hypernetwork": "flat.pt", "strength": 1.0},
        "_meta": {"title": "Hypernetwork"},
    }
    nodes["sampler"]["inputs"]["model"] = ["load", 0]
    for name, node in nodes.items():  # the client finds nodes by their titles
        node.setdefault("_meta", {"title": name})
    path = host.data / "workflow.json"
    path.write_text(json.dumps(nodes))
    graph = ComfyWorkflowWrapper(str(path))
    graph.set_node_param("Hypernetwork", "hypernetwork", "ink.pt")
    graph.set_node_param("Hypernetwork", "strength", 0.7)
    images = ComfyApiWrapper(host.address).queue_and_wait_images(graph, "Save Image")
    nodes["load"]["inputs"] |= {"hypernetwork": "ink.pt", "strength": 0.7}
    nodes["save"]["inputs"]["filename_prefix"] = "direct"
    import io

    import numpy
    from PIL import Image

    (content,) = images.values()
    found = numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert numpy.array_equal(found, host.images(nodes)[0]), "the client's image differs"
    return "sets file and strength by title; the image has the same bits"


def quiet(host: ComfyUI) -> str:
    """Check that no exception comes from the node pack, except those of the workflows that are refused."""
    errors = host.errors_from("custom_nodes/hnloader")
    unwanted = [line for line in errors if not line.strip().startswith("hnloader.errors.")]
    assert not unwanted, unwanted[0]
    return "no exception from the node pack but those of refused workflows"


CHECKS: dict[str, Check] = {
    "nodes": listed,
    "28 reference files": golden_files,
    "chains": golden_chains,
    "precision": precision,
    "SD 1, SD 2, SDXL": families,
    "built-in": built_in,
    "other patches": others,
    "windows": windows,
    "blocks": blocks,
    "batches": batches,
    "hooks": hooked,
    "two samplers": two_samplers,
    "refused": refused,
    "other nodes": other_nodes,
    "grid": grid,
    "clean": clean,
    "changed file": changed_file,
    "interrupted": interrupted,
    "many files": many,
    "API client": client,
}


def fill(models: Path) -> None:
    """Write the hypernetworks and the LoRA that the checks name."""
    folder = models / "hypernetworks"
    for file in (*GOLDENS.glob("*.pt"), *GOLDENS.glob("*.hns")):
        shutil.copy(file, folder / file.name)
    ink = files.save_hypernetwork(folder / "ink.pt", seed=1)
    (folder / "a b").mkdir()
    files.save_hypernetwork(folder / "a b" / "wash ü.pt", seed=2)
    shutil.copy(folder / "a b" / "wash ü.pt", folder / "wash.pt")
    flat = {"layers": 2, "activation": "linear"}
    files.save_hypernetwork(folder / "flat.pt", seed=3, **flat)
    shutil.copy(folder / "flat.pt", folder / "flat ink.pt")
    for name, text in (("sd2", 1024), ("wide", 2048)):
        files.save_hypernetwork(folder / f"{name}.pt", seed=4, widths=(320, 640, text, 1280))
        files.save_hypernetwork(folder / f"flat {name}.pt", seed=5, widths=(320, 640, text, 1280), **flat)
    files.save_hypernetwork(folder / "only 2048.pt", seed=6, widths=(2048,))
    (folder / "torn.pt").write_bytes(ink.read_bytes()[:100_000])
    import hnloader

    hnloader.save(hnloader.load(ink), folder / "dry.safetensors")
    files.save_lora(models / "loras" / "thread.safetensors")
    from PIL import Image

    Image.new("RGB", (64, 64), "purple").save(folder / "ink.png")
