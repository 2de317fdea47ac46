"""A bundled Stable-Diffusion-shaped pipeline that really generates, and hypernetworks trained for it.

It draws 64 x 64 scenes from captions such as 'a large red circle at the top left on a white background'; the
hypernetworks turn them towards styles that the pipeline does not know. docs/dev/demo-pipeline.md says how all of it was
made and what it can do.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def pipeline_folder() -> Path:
    """The folder that `StableDiffusionPipeline.from_pretrained` loads."""
    return _HERE / "pipeline"


def hypernetwork_paths() -> dict[str, Path]:
    """The bundled hypernetworks by the name of their style, in the webui's `.pt` format."""
    return {path.stem: path for path in sorted((_HERE / "hypernetworks").glob("*.pt"))}
