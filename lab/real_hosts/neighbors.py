"""Checks beside popular extensions: a hypernetwork acts in each one's pass, and nothing stays in the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import PROMPT, Check, Seen, expect_clean, expect_other, expect_same, formula
from .server import Server

DETECTOR = "any_yolov8n.pt"

# The arguments of each script, by the beginning of its title; missing ones keep the defaults of its page.
_REGIONS = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2", False, False, False, "Attention"]
_TILES = [True, "MultiDiffusion", False, True, 1024, 1024, 16, 16, 4, 4]
_DETAILS = {"ad_model": DETECTOR, "ad_confidence": 0.0, "ad_mask_k": 1, "ad_denoising_strength": 0.8}
_DETAILS |= {"ad_use_inpaint_width_height": True, "ad_inpaint_width": 64, "ad_inpaint_height": 64}


# For each script: prompt, arguments, and more fields of the job.
USES: dict[str, tuple[str, list[Any], Mapping[str, Any]]] = {
    "dynamic prompts": ("a {boat|boat}", [True], {}),
    "regional prompter": (f"{PROMPT} BREAK a lake", _REGIONS, {}),
    "tiled diffusion": (PROMPT, _TILES, {"width": 192}),
    "adetailer": (PROMPT, [True, False, _DETAILS], {}),
}


def beside(title: str) -> Check:
    """Return the check beside the extension whose script has this title."""
    prompt, arguments, fields = USES[title]

    def check(host: Server, seen: Seen) -> str:
        scripts = [name for name in host.get("/sdapi/v1/scripts")["txt2img"] if name.startswith(title)]
        if not scripts:
            return "not installed"
        host.post("/probe/settings")  # those of dynamic-prompts are late in AUTOMATIC1111 1.10
        used: dict[str, Any] = {"alwayson_scripts": {scripts[0]: {"args": arguments}}, **fields}
        without = host.image(PROMPT, **fields)
        plain = host.image(prompt, **used)
        if title == "dynamic prompts":
            assert plain == without, "the prompt was not rewritten"
        else:
            expect_other(plain, without)
        tagged = host.image(f"{prompt}<hypernet:ink:0.7>", **used)
        found = expect_other(tagged, plain)
        found += "; from the formula " + expect_same(
            tagged, formula(host, seen, ("ink.pt", 0.7), prompt=prompt, **used)
        )
        rows = {"Hypernetworks": {"args": ["<hypernet:ink:0.7>"]}}
        both = {**used, "alwayson_scripts": {**used["alwayson_scripts"], **rows}}
        assert host.image(prompt, **both) == tagged, "rows and tag give different images"
        assert host.image(prompt, **used) == plain, "the jobs changed the plain image"
        return f"{found}; rows equal the tag; {expect_clean(host, seen)}"

    return check


CHECKS: dict[str, Check] = {f"beside {title}": beside(title) for title in USES}
