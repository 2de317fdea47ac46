"""Captions and validation scenes of the bundled pipeline, for its training and evaluation."""

from __future__ import annotations

import re

import numpy as np

from hnloader.demo.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, SceneObject, random_scene


def validation_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Return different scenes of words that are never trained together; every fourth has two objects."""
    rng = np.random.default_rng(seed)
    scenes: dict[str, Scene] = {}
    for _ in range(count * 200):
        if len(scenes) == count:
            break
        scene = random_scene(rng, objects=2 if len(scenes) % 4 == 3 else 1, split="validation")
        scenes.setdefault(scene.caption(), scene)
    if len(scenes) < count:
        raise ValueError(f"Validation scenes: expected {count} different ones, found {len(scenes)}.")
    return list(scenes.values())


_PHRASE = re.compile(rf"a ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) (?:at|in) the ([a-z ]+)")


def parse_caption(caption: str) -> Scene | None:
    """Return the scene of a `Scene.caption`; None for other text."""
    words, on, background = caption.removesuffix(" background").rpartition(" on a ")
    found = [_PHRASE.fullmatch(phrase) for phrase in words.split(" and ")]
    if not on or background not in BACKGROUNDS or not 1 <= len(found) <= 2:
        return None
    objects = [SceneObject(match[3], match[2], match[1], match[4]) for match in found if match is not None]
    scene = Scene(tuple(objects), background)
    return scene if scene.caption() == caption and all(item.position in POSITIONS for item in objects) else None


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption for training; sometimes it leaves a word out or spells it the British way."""
    phrases = []
    for item in scene.objects:
        phrase = item.phrase()
        if rng.random() < 0.08:
            phrase = phrase.replace(f"{item.size} ", "")
        if rng.random() < 0.04:
            phrase = phrase.split(" at the ")[0].split(" in the ")[0]
        phrases.append(phrase)
    caption = " and ".join(phrases)
    if rng.random() > 0.08:
        caption += f" on a {scene.background} background"
    if rng.random() < 0.2:
        caption = caption.replace("gray", "grey").replace("center", "centre")
    return caption
