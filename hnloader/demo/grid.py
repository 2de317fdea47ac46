"""The grid of the demo: prompts by strengths, for every bundled hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from hnloader.attention import attach
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.demo.sampling import generate, load_pipeline
from hnloader.files import replacing
from hnloader.grids import labeled_grid
from hnloader.loading import load

__all__ = ["PROMPTS", "STRENGTHS", "render_demo"]

PROMPTS = (
    "a large red circle in the center on a white background",
    "a large blue star at the top left on a cyan background",
    "a large yellow square at the bottom right on a black background",
    "a large green triangle at the top right and a small purple circle at the bottom left on a white background",
)
STRENGTHS = (0.0, 0.5, 1.0)


def render_demo(
    out: Path,
    *,
    prompts: Sequence[str] = PROMPTS,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate every prompt at every strength of every bundled hypernetwork, and save one labeled grid.

    Args:
        out: The PNG to write, or a folder for demo.png. Missing folders are created.
        prompts: One row each.
        strengths: One column each, for every hypernetwork.
        steps: Sampling steps.
        seed: Row i starts from the noise of seed + i in every column, so that only the hypernetwork differs.
        progress: Called with the number of finished columns and of all columns.

    Returns:
        The path of the PNG.
    """
    target = out if out.suffix.lower() == ".png" else out / "demo.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(pipeline_folder())
    paths = hypernetwork_paths()
    # Strength 0 gives the same images for all of them.
    wanted = [(style, strength) for style in paths for strength in strengths]
    rendered: dict[tuple[str, float], list[Image.Image]] = {}
    plain: list[Image.Image] | None = None
    for done, (style, strength) in enumerate(wanted):
        if strength == 0 and plain is not None:
            images = plain
        else:
            with attach(pipeline.unet, load(paths[style]), strength):
                made = generate(pipeline, prompts, seed=seed, steps=steps)
                images = [Image.fromarray(image) for image in made]
            plain = images if strength == 0 else plain
        rendered[style, strength] = images
        if progress is not None:
            progress(done + 1, len(wanted))
    grid = labeled_grid(
        [[rendered[key][row] for key in wanted] for row in range(len(prompts))],
        columns=[f"strength {strength:g}" for _, strength in wanted],
        rows=list(prompts),
        title="One pipeline, two hypernetworks",
        caption="Same prompt and same noise along each row. The pipeline never saw these styles; each hypernetwork "
        "is a small .pt file that changes the keys and values of its attention layers.",
        groups=[(f"{style}.pt", len(strengths)) for style in paths],
    )
    with replacing(target) as temporary:
        grid.save(temporary, format="PNG")
    return target


def main() -> int:
    """Run `python -m hnloader.demo.grid [file.png]`."""
    import sys

    torch.manual_seed(0)
    print(render_demo(Path(sys.argv[1] if len(sys.argv) > 1 else "demo.png")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
