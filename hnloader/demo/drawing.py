"""Draw images to try the training: `python -m hnloader.demo.drawing blueprint --out images`."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hnloader.demo.scenes import Scene, lay_out, random_scene
from hnloader.demo.styles import PAINTERS, paint

__all__ = ["IMAGES", "draw_images"]

IMAGES = 20


def draw_images(style: str, folder: str | os.PathLike[str], count: int = IMAGES, seed: int = 5) -> Path:
    """Draw scenes in a style, as NAME.png with the caption in NAME.txt.

    Every second image shows two objects, and the images use all words about equally often.

    Args:
        style: A key of `hnloader.demo.styles.PAINTERS`, such as "blueprint".
        folder: The folder to write to; it is created.
        count: Number of images.
        seed: Seed of the scenes.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> from hnloader.demo.drawing import draw_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in draw_images("blueprint", folder, count=1).iterdir())
        ['00.png', '00.txt']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for index in range(count):
        scene = _fresh_scene(rng, 1 + index % 2, counts)
        counts.update(_words(scene))
        Image.fromarray(paint(style, *lay_out(scene, rng))).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(scene.caption())
    return folder


def _fresh_scene(rng: np.random.Generator, objects: int, counts: Counter[str]) -> Scene:
    """Return the random scene with the least used words."""
    candidates = [random_scene(rng, objects) for _ in range(50)]
    return min(candidates, key=lambda scene: sum(counts[word] for word in _words(scene)))


def _words(scene: Scene) -> list[str]:
    """Return what to use equally often: the words, and the shapes at their positions."""
    words = [scene.background]
    for item in scene.objects:
        words += [item.shape, item.color, item.size, item.position, f"{item.shape} {item.position}"]
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hnloader.demo.drawing", description=__doc__)
    parser.add_argument("style", choices=PAINTERS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=5)
    chosen = parser.parse_args(arguments)
    print(draw_images(chosen.style, chosen.out, chosen.count, chosen.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
