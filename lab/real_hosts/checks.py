"""Checks of a real host. Each one raises AssertionError, or returns what it measured."""

from __future__ import annotations

import base64
import io
import threading
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from .server import HostImage, Server

PROMPT = "a boat"
# Of 255. The probe computes the formula in the same precision, but in another order.
SAME = 2
OTHER = 1.0


@dataclass
class Seen:
    """The host without the extension: images, the state of its model, and errors in the browser.

    `built_in` has the images with its own hypernetworks, by file name, and `controlled` one with a ControlNet, too.
    `lacks` has what does not work in this version of the host by itself.
    """

    folder: Path
    plain: HostImage | None = None
    built_in: dict[str, HostImage] = field(default_factory=dict)
    controlled: HostImage | None = None
    state: dict[str, Any] = field(default_factory=dict)
    browser: set[str] = field(default_factory=set)
    lacks: dict[str, str] = field(default_factory=dict)
    is_forge: bool = False


LORA, TILING = "LoRA", "tiling"


def look_at(host: Server, seen: Seen) -> None:
    """Find out what the host lacks without the extension."""
    if host.image(f"{PROMPT}<lora:thread:1>") == seen.plain:
        seen.lacks[LORA] = "this webui applies no LoRA, also without the extension"
    try:
        host.image(PROMPT, tiling=False)
    except urllib.error.HTTPError:
        seen.lacks[TILING] = "without the field `tiling`: this webui's API refuses False, also without the extension"


Check = Callable[[Server, Seen], str]


def file(seen: Seen, name: str) -> str:
    """Return the path of a hypernetwork."""
    return str(seen.folder / "models" / "hypernetworks" / name)


def formula(
    host: Server, seen: Seen, *files: tuple[str, float], first: int = 0, prompt: str = PROMPT, **fields: Any
) -> Image:
    """Return the image that the probe generates with `.pt` files by the formula alone."""
    chain = [{"path": file(seen, name), "strength": strength, "first": first} for name, strength in files]
    host.post("/probe/wrap", chain)
    try:
        return host.image(prompt, **fields)
    finally:
        host.post("/probe/wrap", [])


def expect_same(found: HostImage, wanted: HostImage) -> str:
    most, mean = found.far(wanted)
    assert most <= SAME, f"images differ by up to {most} of 255, {mean:.2f} in the mean"
    return f"differs by at most {most} of 255"


def expect_other(found: HostImage, wanted: HostImage) -> str:
    mean = found.far(wanted)[1]
    assert mean > OTHER, f"images differ by {mean:.2f} of 255 in the mean only"
    return f"differs by {mean:.0f} of 255 in the mean"


def expect_state(state: dict[str, Any], seen: Seen) -> None:
    for key in ("hooks", "weights", "built_in"):
        assert state[key] == seen.state[key], f"{key}: {state[key]}, without the extension {seen.state[key]}"


def expect_clean(host: Server, seen: Seen) -> str:
    """Check hooks, weights and the plain image, which must have the same bits as without the extension."""
    before = host.state()
    if before["loaded"]:  # not before the first image
        expect_state(before, seen)
    assert host.image(PROMPT) == seen.plain, "the plain image changed"
    expect_state(host.state(), seen)
    return "no hook, weights and plain image bit for bit"


def plain(host: Server, seen: Seen) -> str:
    return expect_clean(host, seen)


def tag(host: Server, seen: Seen) -> str:
    found = host.image(f"{PROMPT}<hypernet:ink:0.7>")
    seen_change = expect_other(found, seen.plain)
    same = expect_same(found, formula(host, seen, ("ink.pt", 0.7)))
    return f"{seen_change}; from the formula {same}"


def like_the_built_in(host: Server, seen: Seen) -> str:
    """Compare with the webui's own hypernetworks."""
    if not seen.built_in:
        return "this host applies no hypernetworks itself"
    found = []
    for name, wanted in seen.built_in.items():
        assert wanted != seen.plain, f"{name} has no effect"
        found.append(f"{name} {expect_same(host.image(f'{PROMPT}<hypernet:{name}:0.7>'), wanted)}")
    return ", ".join(found)


def folded(host: Server, seen: Seen) -> str:
    """Check a file without activation, which is folded into self-attention; keys and values of the text are kept.

    AUTOMATIC1111 writes a LoRA into the weights in the first step, so the last step counts.
    """
    found = []
    for prompt in (PROMPT, f"{PROMPT}<lora:thread:1>", f"{PROMPT}<lora:thread:0.5>", PROMPT):
        image = host.image(f"{prompt}<hypernet:flat:0.7>")
        last = host.state()["states"][-1]
        assert set(last) == {"folded", "kept"}, last
        found.append(expect_same(image, formula(host, seen, ("flat.pt", 0.7), prompt=prompt)))
    counts = f"{last['folded']} folded, {last['kept']} kept"
    return "; ".join([counts, f"without, with, with another and without LoRA {max(found)}", *_lack(seen, LORA)])


def control_net(host: Server, seen: Seen) -> str:
    """Check that a ControlNet's own attention has the hypernetwork, as in AUTOMATIC1111's built-in one."""
    fields = controlled(host)
    plain = host.image(PROMPT, **fields)
    expect_other(plain, seen.plain)
    tagged = host.image(f"{PROMPT}<hypernet:ink:0.7>", **fields)
    host.post("/sdapi/v1/options", {"hnloader_controlnet": False})
    try:
        unet_alone = host.image(f"{PROMPT}<hypernet:ink:0.7>", **fields)
    finally:
        host.post("/sdapi/v1/options", {"hnloader_controlnet": True})
    assert host.image(PROMPT, **fields) == plain, "the jobs changed the plain image with a ControlNet"
    found = f"effect {plain.far(tagged)[1]:.1f} in the mean, of which in the ControlNet {unet_alone.far(tagged)[1]:.1f}"
    assert tagged != unet_alone, "the setting has no effect"
    found += f"; in the UNet alone {expect_same(unet_alone, formula(host, seen, ('ink.pt', 0.7), **fields))}"
    if seen.controlled is None:
        return found
    return f"{found}; from the built-in {expect_same(tagged, seen.controlled)}"


def controlled(host: Server) -> dict[str, Any]:
    """Return fields that use the ControlNet `edges`."""
    (model,) = (name for name in host.get("/controlnet/model_list?update=true")["model_list"] if "edges" in name)
    hint = numpy.zeros((64, 64, 3), dtype=numpy.uint8)
    hint[16:48, 16:48] = 255
    module = "None" if host.is_forge else "none"
    unit = {"enabled": True, "model": model, "module": module, "image": encoded(hint), "pixel_perfect": False}
    return {"alwayson_scripts": {"ControlNet": {"args": [unit]}}}


def client(host: Server, seen: Seen) -> str:
    """Use `webuiapi`, a client from PyPI, as its users do."""
    import webuiapi

    found = webuiapi.WebUIApi(host="127.0.0.1", port=host.port, sampler="Euler", steps=2)
    size: dict[str, Any] = {"width": 64, "height": 64, "cfg_scale": 4, "negative_prompt": "gray", "seed": 5}
    size["scheduler"] = "Automatic"
    rows = {"Hypernetworks": {"args": ["<hypernet:ink:0.7>"]}}
    if TILING in seen.lacks:
        size["tiling"] = None
    wanted = host.image(f"{PROMPT}<hypernet:ink:0.7>")
    for prompt, scripts in ((f"{PROMPT}<hypernet:ink:0.7>", {}), (PROMPT, rows)):
        made = found.txt2img(prompt=prompt, alwayson_scripts=scripts, **size)
        expect_same(HostImage(numpy.asarray(made.image.convert("RGB")), ""), wanted)
    names = {each["name"] for each in found.get_hypernetworks()}
    assert {"ink", "wash", "dry"} <= names, names
    return ", ".join([f"webuiapi {version('webuiapi')}: tags, rows and {len(names)} names", *_lack(seen, TILING)])


def _lack(seen: Seen, name: str) -> list[str]:
    """Return what to add to a check's result if the host lacks this."""
    return [seen.lacks[name]] if name in seen.lacks else []


def chain(host: Server, seen: Seen) -> str:
    found = host.image(f"{PROMPT}<hypernet:ink:0.7><hypernet:wash:-0.4>")
    return expect_same(found, formula(host, seen, ("ink.pt", 0.7), ("wash.pt", -0.4)))


def safetensors(host: Server, seen: Seen) -> str:
    return expect_same(host.image(f"{PROMPT}<hypernet:dry:0.7>"), host.image(f"{PROMPT}<hypernet:ink:0.7>"))


def strength_0(host: Server, seen: Seen) -> str:
    assert host.image(f"{PROMPT}<hypernet:ink:0>") == seen.plain, "strength 0 changes the image"
    return "same bits as without a tag"


def unknown_name(host: Server, seen: Seen) -> str:
    found = host.image(f"{PROMPT}<hypernet:inc>")
    assert found == seen.plain, "an unknown name changes the image"
    assert "Hypernet not applied: inc" in found.infotext, found.infotext
    line = [line for line in host.console().splitlines() if "'inc' was not applied" in line]
    assert line, "no message on the console"
    return line[-1][:150]


def broken_file(host: Server, seen: Seen) -> str:
    found = host.image(f"{PROMPT}<hypernet:torn>")
    assert found == seen.plain, "a broken file changes the image"
    line = [line for line in host.console().splitlines() if "'torn' was not applied" in line]
    assert line, "no message on the console"
    return line[-1][:150]


def window(host: Server, seen: Seen) -> str:
    whole = host.image(f"{PROMPT}<hypernet:ink:0.7>", steps=4)
    late = host.image(f"{PROMPT}<hypernet:ink:0.7:start=0.5>", steps=4)
    early = host.image(f"{PROMPT}<hypernet:ink:0.7:end=0.5>", steps=4)
    expect_other(late, whole)
    expect_other(early, late)
    return "second half " + expect_same(late, formula(host, seen, ("ink.pt", 0.7), first=2, steps=4))


def infotext(host: Server, seen: Seen) -> str:
    text = host.image(f"{PROMPT}<hypernet:ink:0.7>").infotext
    assert "<hypernet:ink:0.7>" in text, text
    assert "Hypernet hashes: ink: " in text.replace('"', ""), text
    plain_text = host.image(PROMPT).infotext
    assert "Hypernet" not in plain_text, plain_text
    return text.splitlines()[-1][-110:]


def panel(host: Server, seen: Seen) -> str:
    wanted = host.image(f"{PROMPT}<hypernet:ink:0.7:start=0.3>")
    given = {
        "tags": "<hypernet:ink:0.7:start=0.3>",
        "objects": [{"name": "ink", "strength": 0.7, "start": 0.3}, {"name": "wash", "enabled": False}],
    }
    for how, rows in given.items():
        found = host.image(PROMPT, alwayson_scripts={"Hypernetworks": {"args": [rows]}})
        assert found == wanted, f"rows as {how} and tag give different images"
        assert "Hypernet rows" in found.infotext, found.infotext
    both = host.image(f"{PROMPT}<hypernet:wash:0.5>", alwayson_scripts={"Hypernetworks": {"args": [given["tags"]]}})
    swapped = host.image(f"{PROMPT}<hypernet:ink:0.7:start=0.3><hypernet:wash:0.5>")
    assert both == swapped, "rows do not act before the tags"
    return "text and objects equal the tag; rows act before tags"


def nested(host: Server, seen: Seen) -> str:
    """Check that rows reach a job within a job, as ADetailer's pass over faces is."""
    rows = {"Hypernetworks": {"args": ["<hypernet:ink:0.7>"]}}
    host.post("/probe/nest")
    try:
        plain = host.image(PROMPT)
        found = host.image(PROMPT, alwayson_scripts=rows)
        same = expect_same(found, formula(host, seen, ("ink.pt", 0.7)))
        assert host.image(PROMPT) == plain, "the rows stay after their job"
    finally:
        host.post("/probe/nest")
    return f"{expect_other(found, plain)}; {same}"


def listing(host: Server, seen: Seen) -> str:
    listed = {each["name"] for each in host.get("/sdapi/v1/hypernetworks")}
    assert {"ink", "wash", "dry"} <= listed, listed
    return ", ".join(sorted(listed))


def routes(host: Server, seen: Seen) -> str:
    listed = host.get("/hnloader/v1/hypernetworks?search=ink")
    assert [each["file"] for each in listed["files"]] == ["ink.pt"], listed
    assert host.get("/hnloader/v1/inspect?name=ink")["info"]["widths"] == [320, 640, 768, 1280]
    assert "zip archive" in host.get("/hnloader/v1/inspect?name=torn")["problem"]
    made = host.post("/hnloader/v1/convert", {"name": "wash"})
    assert made["action"] == "converted" and made["verified"], made
    Path(file(seen, made["file"])).unlink()
    documented = [path for path in host.get("/openapi.json")["paths"] if path.startswith("/hnloader/")]
    assert len(documented) == 3, documented
    return f"lists, inspects, converts; {made['file']} verified: {', '.join(made['verified'])}"


def quick_setting(host: Server, seen: Seen) -> str:
    wanted = host.image(f"{PROMPT}<hypernet:ink:1.0>")
    # After a job, the hosts restore only settings that were set before.
    host.post("/sdapi/v1/options", {"sd_hypernetwork": "None", "extra_networks_default_multiplier": 1.0})
    found = host.image(PROMPT, override_settings={"sd_hypernetwork": "ink"})
    assert found == wanted, "'Add hypernetwork to prompt' and tag give different images"
    return "equals the tag"


def batch(host: Server, seen: Seen) -> str:
    """Run two batches of two; each image has its own seed."""
    prompt = f"{PROMPT}<hypernet:ink:0.7>"
    found = [
        each
        for each in host.images(prompt, batch_size=2, n_iter=2)
        if each.pixels.shape == seen.plain.pixels.shape  # not the grid
    ]
    assert len(found) == 4, f"{len(found)} images"
    for number, image in enumerate(found):
        same = expect_same(image, host.image(prompt, seed=5 + number))
        assert f"Seed: {5 + number}," in image.infotext and "Hypernet hashes: " in image.infotext, image.infotext
    return "four images, the last " + same


def start_from(image: HostImage) -> dict[str, Any]:
    """Return the fields of an img2img job."""
    return {"verb": "img2img", "init_images": [encoded(image.pixels)], "denoising_strength": 0.8, "steps": 4}


def encoded(pixels: numpy.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image_to_image(host: Server, seen: Seen) -> str:
    fields = start_from(seen.plain)
    without = host.image(PROMPT, **fields)
    tagged = host.image(f"{PROMPT}<hypernet:ink:0.7>", **fields)
    expect_other(tagged, without)
    rows = {"Hypernetworks": {"args": ["<hypernet:ink:0.7>"]}}
    assert host.image(PROMPT, alwayson_scripts=rows, **fields) == tagged, "rows and tag give different images"
    return "rows equal the tag; " + expect_same(tagged, formula(host, seen, ("ink.pt", 0.7), **fields))


def inpaint(host: Server, seen: Seen) -> str:
    """Inpaint the right half, in the whole image and only masked."""
    mask = numpy.zeros_like(seen.plain.pixels)
    mask[:, 32:] = 255
    fields = start_from(seen.plain) | {"mask": encoded(mask), "mask_blur": 0, "inpainting_fill": 1}
    for only_masked in (False, True):
        fields |= {"inpaint_full_res": only_masked, "inpaint_full_res_padding": 0}
        without = host.image(PROMPT, **fields)
        tagged = host.image(f"{PROMPT}<hypernet:ink:0.7>", **fields)
        assert numpy.array_equal(tagged.pixels[:, :32], seen.plain.pixels[:, :32]), "the unmasked half changed"
        expect_other(tagged, without)
        same = expect_same(tagged, formula(host, seen, ("ink.pt", 0.7), **fields))
    return f"whole image and only masked; {same}"


def hires(host: Server, seen: Seen) -> str:
    upscaler = host.get("/sdapi/v1/latent-upscale-modes")[0]["name"]
    fields: dict[str, Any] = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler, "denoising_strength": 0.8}
    if host.accepts("hr_additional_modules"):
        fields["hr_additional_modules"] = []
    tagged = host.image(f"{PROMPT}<hypernet:ink:0.7>", **fields)
    expect_other(tagged, host.image(PROMPT, **fields))
    return expect_same(tagged, formula(host, seen, ("ink.pt", 0.7), **fields))


def lora(host: Server, seen: Seen) -> str:
    if LORA in seen.lacks:
        return seen.lacks[LORA]
    alone = host.image(f"{PROMPT}<lora:thread:1>")
    expect_other(alone, seen.plain)
    both = host.image(f"{PROMPT}<lora:thread:1><hypernet:ink:0.7>")
    expect_other(both, alone)
    return expect_same(both, formula(host, seen, ("ink.pt", 0.7), prompt=f"{PROMPT}<lora:thread:1>"))


def other_checkpoint(host: Server, seen: Seen) -> str:
    wanted = host.image(f"{PROMPT}<hypernet:ink:0.7>")
    other = host.image(f"{PROMPT}<hypernet:ink:0.7>", override_settings={"sd_model_checkpoint": "second"})
    assert "second" in other.infotext, other.infotext
    back = host.image(f"{PROMPT}<hypernet:ink:0.7>")
    assert "first" in back.infotext, back.infotext
    assert other == back == wanted, "a checkpoint with the same weights gives another image"
    return "there and back: same bits on the same weights"


def refiner(host: Server, seen: Seen) -> str:
    if not host.accepts("refiner_checkpoint"):
        return "this webui has none"
    prompt = f"{PROMPT}<hypernet:ink:0.7>"
    found = host.image(prompt, steps=4, refiner_checkpoint="second", refiner_switch_at=0.5)
    assert "Refiner" in found.infotext, found.infotext
    return "same weights: " + expect_same(found, host.image(prompt, steps=4))


def plot(host: Server, seen: Seen) -> str:
    axes = host.state()["axes"]
    label = "Hypernetwork strength"
    assert label in axes["labels"], axes["labels"]
    values = {"x_type": axes["labels"].index(label), "x_values": "0,0.7", "y_type": 0, "z_type": 0}
    flags = {"include_lone_images": True, "margin_size": 0, "draw_legend": False}
    given = {name: "" if "values" in name else False for name in axes["arguments"]} | values | flags
    for axis in "xyz":
        given[f"{axis}_values_dropdown"] = []
    arguments = [given[name] for name in axes["arguments"]]
    found = host.images(f"{PROMPT}<hypernet:ink:0.1>", script_name="x/y/z plot", script_args=arguments)
    lone = [each for each in found if each.pixels.shape == seen.plain.pixels.shape]
    assert len(lone) == 2, f"{len(lone)} images"
    assert lone[0] == seen.plain, "the plot's image with strength 0 differs from the plain one"
    return expect_same(lone[1], host.image(f"{PROMPT}<hypernet:ink:0.7>"))


def interrupt(host: Server, seen: Seen) -> str:
    prompt = f"{PROMPT}<hypernet:ink:0.7>"
    made: list[Any] = []
    job = threading.Thread(target=lambda: made.append(host.image(prompt, steps=60)))
    job.start()
    for _ in range(3000):
        progress = host.get("/sdapi/v1/progress?skip_current_image=true")["state"]
        if progress["sampling_step"] >= 2:
            break
        time.sleep(0.1)
    hooks = host.state()["hooks"]
    assert hooks > seen.state["hooks"], "no hook during the job"
    host.post("/sdapi/v1/interrupt")
    job.join()
    assert made, "no image after an interruption"
    return f"{hooks} hooks in the job; then " + expect_clean(host, seen)


def exception(host: Server, seen: Seen) -> str:
    host.post("/probe/fail")
    try:
        host.image(f"{PROMPT}<hypernet:ink:0.7>")
    except urllib.error.HTTPError as error:
        status = f"status {error.code}; "
    else:
        raise AssertionError("The job succeeded in spite of the probe's exception.")
    return status + expect_clean(host, seen)


def reload(host: Server, seen: Seen) -> str:
    before = host.state()
    wanted = host.image(f"{PROMPT}<hypernet:ink:0.7>")
    begun = len(host.console())
    host.post("/probe/reload")
    host.wait(begun)
    assert host.image(f"{PROMPT}<hypernet:ink:0.7>") == wanted, "'Reload UI' changed the image"
    after = host.state()
    for state in (before, after):  # AUTOMATIC1111 1.8 loses some axes
        state["axes"] = [label for label in state["axes"]["labels"] if label.startswith("Hypernetwork")]
    assert before["axes"]
    for key in ("callbacks", "axes", "owner"):
        assert after[key] == before[key], f"{key}: {after[key]}, before {before[key]}"
    return f"{after['callbacks']} callbacks, unchanged; " + expect_clean(host, seen)


def quiet(host: Server, seen: Seen) -> str:
    """Check that no error comes from the extension. Errors of the probe pass through it, as every request does."""
    lines = host.console().splitlines()
    unwanted = [line for line in lines if "[hnloader]" in line and "was not applied" not in line]
    unwanted += host.errors_from("extensions/hnloader")
    assert not unwanted, unwanted[0]
    return "the extension printed only lines about files"


RUNNING: dict[str, Check] = {
    "without a tag": plain,
    "tag": tag,
    "folded": folded,
    "like the built-in": like_the_built_in,
    "chain of two": chain,
    "safetensors": safetensors,
    "strength 0": strength_0,
    "unknown name": unknown_name,
    "broken file": broken_file,
    "start and end": window,
    "infotext": infotext,
    "panel's rows": panel,
    "job within a job": nested,
    "list in the API": listing,
    "routes of the API": routes,
    "client of the API": client,
    "quick setting": quick_setting,
    "batch": batch,
    "img2img": image_to_image,
    "inpaint": inpaint,
    "hires pass": hires,
    "with a LoRA": lora,
    "XYZ plot": plot,
    "interruption": interrupt,
    "exception": exception,
    "Reload UI": reload,
    "another checkpoint": other_checkpoint,
    "refiner": refiner,
}

AT_THE_END: dict[str, Check] = {
    "clean at the end": plain,
    "console": quiet,
}
