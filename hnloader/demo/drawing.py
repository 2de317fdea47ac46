"""Images to try the training with: `python -m hnloader.demo.drawing blueprint --out images`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hnloader.demo.scenes import Scene, lay_out, random_scene
from hnloader.demo.styles import PAINTERS, paint

IMAGES = 20


def draw_images(style: str, folder: Path, count: int = IMAGES, seed: int = 5) -> Path:
    """Draw `count` scenes in a style with their captions beside them, as NAME.png and NAME.txt.

    Every second shows two objects, and the words are spread evenly, as someone would choose who has few images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    used: Counter[str] = Counter()
    for index in range(count):
        scene = _fresh_scene(rng, 1 + index % 2, used)
        used.update(_words(scene))
        Image.fromarray(paint(style, *lay_out(scene, rng))).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(scene.caption())
    return folder


def _fresh_scene(rng: np.random.Generator, objects: int, used: Counter[str]) -> Scene:
    """Of many random scenes the one whose words were used least."""
    offered = [random_scene(rng, objects) for _ in range(50)]
    return min(offered, key=lambda scene: sum(used[word] for word in _words(scene)))


def _words(scene: Scene) -> list[str]:
    """What is to be spread evenly: the words, and the shapes at their positions."""
    words = [scene.background]
    for item in scene.objects:
        words += [item.shape, item.color, item.size, item.position, f"{item.shape} {item.position}"]
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hnloader.demo.drawing", description=__doc__)
    parser.add_argument("style", choices=PAINTERS)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--count", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=5)
    chosen = parser.parse_args(arguments)
    print(draw_images(chosen.style, chosen.out, chosen.count, chosen.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
