"""Checks with other ways to compute: attention optimizations, 8-bit weights, other models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .checks import PROMPT, Check, Seen, expect_clean, expect_other, expect_same, expect_state, formula
from .server import Server

LOW_BITS = "forge_unet_storage_dtype"


def holds(host: Server, seen: Seen, file: str = "ink") -> str:
    """Compare tag and formula in one step, then the plain image with an earlier one."""
    fields = {"steps": 1}
    plain = host.image(PROMPT, **fields)
    before = host.state()
    tagged = host.image(f"{PROMPT}<hypernet:{file}:0.7>", **fields)
    expect_other(tagged, plain)
    assert f"Hypernet hashes: {file}: " in tagged.infotext.replace('"', ""), tagged.infotext
    assert host.image(PROMPT, **fields) == plain, "the job changed the plain image"
    after = host.state()
    for key in ("hooks", "weights", "built_in"):
        assert after[key] == before[key], f"{key}: {after[key]}, before {before[key]}"
    return expect_same(tagged, formula(host, seen, (f"{file}.pt", 0.7), **fields))


def other_start(host: Server, seen: Seen) -> str:
    """Check a start with other arguments, which must have the same weights."""
    found = holds(host, seen)
    state = host.state()
    assert state["weights"] == seen.state["weights"], "the weights differ from the usual start"
    more = state["hooks"] - seen.state["hooks"]
    return found + (f"; the host itself has {more} hooks" if more else "")


def optimizations(host: Server, seen: Seen) -> str:
    """Check every attention optimization that AUTOMATIC1111 offers on this computer."""
    if host.is_forge:
        return "this webui sets them on the command line, see below"
    titles = host.get("/probe/optimizations")
    assert len(titles) > 3, titles
    for title in titles:
        host.post("/sdapi/v1/options", {"cross_attention_optimization": title})
        console = host.console()
        assert f"Applying attention optimization: {title.partition(' - ')[0]}" in console or title == "None", title
        holds(host, seen)
    host.post("/sdapi/v1/options", {"cross_attention_optimization": "Automatic"})
    return ", ".join(title.partition(" - ")[0] for title in titles) + "; " + expect_clean(host, seen)


def eight_bits(host: Server, seen: Seen) -> str:
    """Check weights in float8, which the host casts at each call, also with a LoRA."""
    offered = host.get("/sdapi/v1/options")
    if LOW_BITS in offered:
        settings: list[dict[str, Any]] = [{LOW_BITS: "float8-e4m3fn (fp16 LoRA)"}, {"sd_model_checkpoint": "second"}]
        usual: list[dict[str, Any]] = [{LOW_BITS: "Automatic"}, {"sd_model_checkpoint": "first"}]
    elif "fp8_storage" in offered and not host.is_forge:
        settings, usual = [{"fp8_storage": "Enable"}], [{"fp8_storage": "Disable"}]
    else:
        return "this webui lacks the setting"
    try:
        for each in settings:
            host.post("/sdapi/v1/options", each)
        found = in_eight_bits(host, seen)
    finally:
        for each in usual:
            host.post("/sdapi/v1/options", each)
    # AUTOMATIC1111 itself is off by 1 of 255 after 8-bit weights and back.
    back = expect_same(host.image(PROMPT), seen.plain)
    expect_state(host.state(), seen)
    return f"{found}; with a LoRA too; afterwards no hook, the same weights, the plain image {back}"


def in_eight_bits(host: Server, seen: Seen) -> str:
    """Check tag and formula while the weights are float8."""
    found = holds(host, seen)
    assert host.state()["dtypes"] == ["torch.float8_e4m3fn"], host.state()["dtypes"]
    with_lora = f"{PROMPT}<lora:thread:1>"
    expect_same(
        host.image(f"{with_lora}<hypernet:ink:0.7>", steps=1),
        formula(host, seen, ("ink.pt", 0.7), prompt=with_lora, steps=1),
    )
    if host.is_forge:
        return found
    host.post("/probe/cast")
    try:
        return f"by autocast {found}, by its own cast {holds(host, seen)}"
    finally:
        host.post("/probe/cast")


def other_checkpoint_file(name: str, file: str) -> Check:
    """Return a check of the user's checkpoint of another family."""

    def check(host: Server, seen: Seen) -> str:
        host.post("/sdapi/v1/options", {"sd_model_checkpoint": name})
        try:
            found = holds(host, seen, file)
        finally:
            host.post("/sdapi/v1/options", {"sd_model_checkpoint": "first"})
        host.image(PROMPT)  # Forge loads a checkpoint with the next image
        return f"{found}; back on the first model: {expect_clean(host, seen)}"

    return check


def own_file(name: str) -> Check:
    """Return a check of the user's file."""
    return lambda host, seen: holds(host, seen, name)


def for_files(also: Iterable[Path], checkpoints: Mapping[str, object]) -> dict[str, Check]:
    """Return the checks that one start of the host allows.

    `also` are hypernetworks of the user; `checkpoints` are by their names in the host.
    """
    found: dict[str, Check] = {file.name: own_file(file.stem) for file in also}
    found["attention variants"] = optimizations
    if "sdxl" in checkpoints:
        found["SDXL"] = other_checkpoint_file("sdxl", "wide")
    return found


# After the checks that compare bits.
LAST: dict[str, Check] = {"8-bit weights": eight_bits}


def in_dtype(name: str, *files: str) -> Check:
    """Return a check of hypernetworks after a start with weights in another dtype."""

    def check(host: Server, seen: Seen) -> str:
        found = ", ".join(f"{file} {holds(host, seen, file)}" for file in files)
        assert host.state()["dtypes"] == [f"torch.{name}"], host.state()["dtypes"]
        return found

    return check


# Additional starts of Forge and its forks, and of others: arguments and check.
_FLOAT16 = in_dtype("float16", "flat")  # AUTOMATIC1111 decodes an image in a minute then
_BFLOAT16, _FLOAT8 = in_dtype("bfloat16", "ink", "flat"), in_dtype("float8_e4m3fn", "ink", "flat")
STARTS: dict[bool, dict[str, tuple[list[str], Check]]] = {
    False: {
        "--medvram": (["--medvram"], other_start),
        "--lowvram": (["--lowvram"], other_start),
        "half precision": (["--precision", "half"], _FLOAT16),
    },
    True: {
        "split attention": (["--attention-split"], other_start),
        "torch's attention": (["--attention-pytorch"], other_start),
        "half precision": (["--unet-in-bf16"], _BFLOAT16),
        "8-bit start": (["--unet-in-fp8-e4m3fn"], _FLOAT8),
    },
}
