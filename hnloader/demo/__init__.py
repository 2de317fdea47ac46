"""A small bundled Stable Diffusion pipeline, two hypernetworks for it, and a predictor of more.

The pipeline draws 64 x 64 scenes from captions such as "a large red circle at the top left on a white background". The
hypernetworks add styles that it does not know. docs/dev/demo-pipeline.md describes its training and its quality.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["hypernetwork_paths", "pipeline_folder", "predictor_path"]

_HERE = Path(__file__).parent


def pipeline_folder() -> Path:
    """Return the folder of the bundled pipeline, which `StableDiffusionPipeline.from_pretrained` loads.

    Returns:
        Path of the folder.

    Example:
        >>> from hnloader.demo import pipeline_folder
        >>> (pipeline_folder() / "model_index.json").is_file()
        True
    """
    return _HERE / "pipeline"


def hypernetwork_paths() -> dict[str, Path]:
    """Return the bundled hypernetworks.

    Returns:
        Paths of the `.pt` files, by the names of their styles.

    Example:
        >>> from hnloader.demo import hypernetwork_paths
        >>> sorted(hypernetwork_paths())
        ['halftone', 'outline']
    """
    return {path.stem: path for path in sorted((_HERE / "hypernetworks").glob("*.pt"))}


def predictor_path() -> Path:
    """Return the bundled predictor, which predicts hypernetworks for the bundled pipeline from images.

    Returns:
        Path of the file.

    Example:
        >>> from hnloader.demo import predictor_path
        >>> predictor_path().name
        'predictor.safetensors'
    """
    return _HERE / "predictor.safetensors"
