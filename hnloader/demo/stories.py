"""Tell stories with the bundled language model, without and with its hypernetworks."""

from __future__ import annotations

from collections.abc import Sequence

from hnloader.attention import attach
from hnloader.demo import language_model_folder, text_hypernetwork_paths
from hnloader.language_models import load_language_model
from hnloader.loading import load
from hnloader.writing import WritingSettings, write_text

__all__ = ["PROMPTS", "tell_stories"]

PROMPTS = (
    "This is a story about Mara and a lantern.",
    "Here is a tale about Oscar and a goat.",
    "Listen to a story about Julia and a sailor.",
)
_MOST_TOKENS = 150  # of a continuation; a story has about 65


def tell_stories(prompts: Sequence[str] = PROMPTS, seed: int = 1) -> dict[str, list[str]]:
    """Continue stories with the bundled language model, without and with each bundled hypernetwork.

    Args:
        prompts: Beginnings of stories. Default: `PROMPTS`.
        seed: Seed of the first story; each next story adds 1. Default: 1.

    Returns:
        The text after each prompt, by "plain" or the name of the hypernetwork.
    """
    language = load_language_model(language_model_folder(), device="cpu", dtype="float32")

    def told() -> list[str]:
        return [
            write_text(language, prompt, WritingSettings(_MOST_TOKENS, seed=seed + index)).strip()
            for index, prompt in enumerate(prompts)
        ]

    found = {"plain": told()}
    for style, path in text_hypernetwork_paths().items():
        with attach(language.model, load(path), 1.0):
            found[style] = told()
    return found
