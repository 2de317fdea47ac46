"""A small bundled Stable Diffusion pipeline, a small language model, and two hypernetworks for each.

The pipeline draws 64 x 64 scenes from captions such as "a large red circle at the top left on a white background". The
language model continues little stories. The hypernetworks add styles that the models do not know, and a predictor for
each model makes more of them.
docs/dev/demo-pipeline.md and docs/dev/demo-language-model.md describe their training and their quality.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "hypernetwork_paths",
    "language_model_folder",
    "pipeline_folder",
    "predictor_path",
    "text_hypernetwork_paths",
    "text_predictor_path",
]

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


def language_model_folder() -> Path:
    """Return the folder of the bundled language model, which `AutoModelForCausalLM.from_pretrained` loads.

    Returns:
        Path of the folder.

    Example:
        >>> from hnloader.demo import language_model_folder
        >>> (language_model_folder() / "tokenizer.json").is_file()
        True
    """
    return _HERE / "language_model"


def text_hypernetwork_paths() -> dict[str, Path]:
    """Return the bundled hypernetworks for the language model.

    Returns:
        Paths of the `.safetensors` files, by the names of their styles.

    Example:
        >>> from hnloader.demo import text_hypernetwork_paths
        >>> sorted(text_hypernetwork_paths())
        ['bare', 'past']
    """
    return {path.stem: path for path in sorted((_HERE / "text_hypernetworks").glob("*.safetensors"))}


def text_predictor_path() -> Path:
    """Return the bundled predictor, which predicts hypernetworks for the bundled language model from texts.

    Returns:
        Path of the file.

    Example:
        >>> from hnloader.demo import text_predictor_path
        >>> text_predictor_path().name
        'text_predictor.safetensors'
    """
    return _HERE / "text_predictor.safetensors"
