"""Make the example workflows in ComfyUI's page: JSON files, thumbnails, and images that contain the workflow."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .comfyui_page import User
from .comfyui_server import ROOT

_THUMBNAIL = (640, 400)
_CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
_NEGATIVE = "blurry, text, watermark"
# Key: type, place and values of widgets. Then links: output of a node, input of a node.
Nodes = dict[str, tuple[str, tuple[int, int], dict[str, object]]]
Links = list[tuple[str, str, str, str]]

_BUILD = """
(given) => {
    app.graph.clear();
    const made = {};
    for (const [key, [type, place, values]] of Object.entries(given.nodes)) {
        const node = LiteGraph.createNode(type);
        node.pos = place;
        app.graph.add(node);
        for (const [name, value] of Object.entries(values)) {
            if (name === "size") { node.setSize(value); continue; }
            if (name === "node title") { node.title = value; continue; }
            (node.widgets.find((each) => each.name === name) ?? node.widgets[0]).value = value;
        }
        made[key] = node;
    }
    for (const [source, output, target, input] of given.links) {
        made[source].connect(made[source].findOutputSlot(output), made[target], made[target].findInputSlot(input));
    }
    app.canvas.ds.scale = given.scale;
    app.canvas.ds.offset = [130, 230];
    app.canvas.setDirty(true, true);
    return app.graph.serialize();
}
"""


def base(note: str, sampler: int = 900) -> tuple[Nodes, Links]:
    """Return text to image without a model for the sampler, and a note."""
    nodes: Nodes = {
        "note": ("MarkdownNote", (0, -60), {"text": note, "size": [320, 250]}),
        "checkpoint": ("CheckpointLoaderSimple", (0, 250), {"ckpt_name": _CHECKPOINT}),
        "positive": ("CLIPTextEncode", (430, 250), {"text": "a castle on a hill", "size": [360, 120]}),
        "negative": ("CLIPTextEncode", (430, 420), {"text": _NEGATIVE, "size": [360, 120]}),
        "latent": ("EmptyLatentImage", (430, 590), {"width": 512, "height": 512}),
        "sampler": ("KSampler", (sampler, 0), {"seed": 5, "steps": 20, "cfg": 7, "control_after_generate": "fixed"}),
        "decode": ("VAEDecode", (sampler + 340, 0), {}),
        "save": ("SaveImage", (sampler + 340, 120), {"filename_prefix": "hypernetwork", "size": [300, 320]}),
    }
    links: Links = [
        ("checkpoint", "CLIP", "positive", "clip"),
        ("checkpoint", "CLIP", "negative", "clip"),
        ("positive", "CONDITIONING", "sampler", "positive"),
        ("negative", "CONDITIONING", "sampler", "negative"),
        ("latent", "LATENT", "sampler", "latent_image"),
        ("sampler", "LATENT", "decode", "samples"),
        ("checkpoint", "VAE", "decode", "vae"),
        ("decode", "IMAGE", "save", "images"),
    ]
    return nodes, links


def load_hypernetwork() -> tuple[Nodes, Links]:
    """Apply one file."""
    nodes, links = base(
        "## Load a hypernetwork\n\n1. Copy a file to `models/hypernetworks` and press **R**.\n"
        "2. Choose it in *Load Hypernetwork*.\n3. Choose a checkpoint of the same family, such as SD 1.5.\n\n"
        "Add more nodes of this kind to apply several files."
    )
    nodes["load"] = (
        "HnloaderLoadHypernetwork",
        (430, -60),
        {"hypernetwork": "style.pt", "strength": 0.8, "size": [360, 240]},
    )
    links += [("checkpoint", "MODEL", "load", "model"), ("load", "MODEL", "sampler", "model")]
    return nodes, links


def hypernetworks_from_prompt() -> tuple[Nodes, Links]:
    """Apply the tags of a prompt."""
    nodes, links = base(
        "## Hypernetworks from a prompt\n\nPrompts from AUTOMATIC1111 and Forge work unchanged: each "
        "`<hypernet:name:strength>` tag is applied to the model and removed from the prompt."
    )
    prompt = "a castle on a hill <hypernet:style:0.8> <hypernet:ink:0.5:block=up,start=0.2>"
    nodes["tags"] = ("HnloaderHypernetworksFromPrompt", (430, -60), {"prompt": prompt, "size": [360, 200]})
    links += [
        ("checkpoint", "MODEL", "tags", "model"),
        ("tags", "MODEL", "sampler", "model"),
        ("tags", "prompt", "positive", "text"),
    ]
    return nodes, links


def compare_strengths() -> tuple[Nodes, Links]:
    """Compare strengths in a grid."""
    nodes, links = base(
        "## Compare strengths\n\n*Hypernetwork Strengths* makes a model for each strength. ComfyUI samples each of "
        "them with the same seed, and *Hypernetwork Grid* draws the images side by side."
    )
    links = [link for link in links if link[2] != "save"]
    nodes["sweep"] = (
        "HnloaderHypernetworkStrengths",
        (430, -60),
        {"hypernetwork": "style.pt", "strengths": "0, 0.5, 1", "size": [360, 250]},
    )
    nodes["grid"] = ("HnloaderHypernetworkGrid", (1240, 120), {"title": "style"})
    nodes["save"] = ("SaveImage", (1240, 280), {"filename_prefix": "strengths", "size": [300, 280]})
    links += [
        ("checkpoint", "MODEL", "sweep", "model"),
        ("sweep", "models", "sampler", "model"),
        ("sweep", "labels", "grid", "labels"),
        ("decode", "IMAGE", "grid", "images"),
        ("grid", "IMAGE", "save", "images"),
    ]
    return nodes, links


def hypernetwork_in_a_region() -> tuple[Nodes, Links]:
    """Apply a file in the left half of the image."""
    nodes, links = base(
        "## A hypernetwork in one region\n\nThe hook applies the hypernetwork only to the conditioning that it is set "
        "on: here the left half of the image.",
        sampler=1300,
    )
    links = [link for link in links if link[2:] != ("sampler", "positive")]
    half = {"width": 256, "height": 512, "y": 0, "strength": 1.0}
    nodes |= {
        "hook": (
            "HnloaderCreateHookHypernetwork",
            (430, -60),
            {"hypernetwork": "style.pt", "strength": 1.0, "size": [360, 260]},
        ),
        "left": ("ConditioningSetArea", (840, 250), {**half, "x": 0, "node title": "Left half"}),
        "right": ("ConditioningSetArea", (840, 460), {**half, "x": 256, "node title": "Right half"}),
        "hooked": ("ConditioningSetProperties", (840, 40), {}),
        "both": ("ConditioningCombine", (1300, 330), {}),
    }
    links += [
        ("checkpoint", "MODEL", "sampler", "model"),
        ("positive", "CONDITIONING", "left", "conditioning"),
        ("positive", "CONDITIONING", "right", "conditioning"),
        ("left", "CONDITIONING", "hooked", "cond_NEW"),
        ("hook", "HOOKS", "hooked", "hooks"),
        ("hooked", "CONDITIONING", "both", "conditioning_1"),
        ("right", "CONDITIONING", "both", "conditioning_2"),
        ("both", "CONDITIONING", "sampler", "positive"),
    ]
    return nodes, links


EXAMPLES = (load_hypernetwork, hypernetworks_from_prompt, compare_strengths, hypernetwork_in_a_region)


def make(user: User, folder: Path = ROOT) -> list[str]:
    """Write the examples into `example_workflows` and `docs/images`; return their names."""
    names = []
    user.host.post("/api/settings", {"Comfy.Minimap.Visible": False, "Comfy.TutorialCompleted": True})
    user.page.reload()
    user.wait()
    user.page.set_viewport_size({"width": 1500, "height": 800})
    (folder / "example_workflows").mkdir(exist_ok=True)
    for example in EXAMPLES:
        nodes, links = example()
        wide = "hooked" in nodes
        given: dict[str, Any] = {"nodes": nodes, "links": links, "scale": 0.64 if wide else 0.77}
        workflow = user.page.evaluate(_BUILD, given)
        assert len(workflow["links"]) == len(links), example.__name__
        user.page.wait_for_timeout(2_500)
        text = json.dumps(workflow, indent=1, sort_keys=True)
        (folder / "example_workflows" / f"{example.__name__}.json").write_text(text + "\n", encoding="utf-8")
        shot = Image.open(io.BytesIO(user.page.screenshot(clip={"x": 60, "y": 90, "width": 1430, "height": 640})))
        # ComfyUI opens an image whose key `workflow` holds one.
        chunk = PngInfo()
        chunk.add_text("workflow", json.dumps(workflow))
        picked = shot.convert("RGB").quantize(128)
        picked.save(
            folder / "docs" / "images" / f"comfyui-{example.__name__.replace('_', '-')}.png",
            pnginfo=chunk,
            optimize=True,
        )
        thumbnail = shot.convert("RGB")
        thumbnail.thumbnail(_THUMBNAIL)
        thumbnail.save(folder / "example_workflows" / f"{example.__name__}.jpg", quality=80)
        names.append(example.__name__)
    return names
