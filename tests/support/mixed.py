"""A folder as people have them: hypernetworks of every age, other models, and files that are broken in many ways."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.support.builders import ERAS, Recipe, fit, make_sides, metadata, simple_tree, tree, write


class Code:
    """The function that a pickle runs when a careless program opens it."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this was run",)


def truncated(path: Path) -> None:
    write(path, simple_tree())
    path.write_bytes(path.read_bytes()[:-300])


def with_code(path: Path) -> None:
    write(path, {**simple_tree(), "name": Code()})


def empty(path: Path) -> None:
    path.touch()


def not_finite(path: Path) -> None:
    content = simple_tree()
    content[8][0]["linear.0.weight"][0, 0] = float("nan")  # type: ignore[index]
    write(path, content)


def contradicting(path: Path) -> None:
    write(path, simple_tree(layer_structure=[1, 4, 1]))


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><title>Log in</title></html>")


def text(path: Path) -> None:
    path.write_text("Please read the license first.\n")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(5000))


def dead_link(path: Path) -> None:
    path.symlink_to(path.with_name("moved away.pt"))


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")


def lora(path: Path) -> None:
    write(path, {"lora_unet_mid_block.lora_up.weight": torch.zeros(4, 2)})


def lora_safetensors(path: Path) -> None:
    header = {"lora_unet_mid_block.lora_up.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(4))


def checkpoint(path: Path) -> None:
    write(path, {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}})


def embedding(path: Path) -> None:
    write(path, {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(1, 8)}, "name": "x", "step": 1})


def folder(path: Path) -> None:
    path.mkdir()


# A function that makes one, and a part of its error.
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "the zip archive is damaged"),
    "with_code": (with_code, "not safe: its pickle holds"),
    "empty": (empty, "empty (0 bytes)"),
    "not_finite": (not_finite, "NaN or infinite"),
    "contradicting": (contradicting, "layer_structure"),
    "web_page": (web_page, "a web page"),
    "text": (text, "a text file"),
    "zeros": (zeros, "a file of zeros"),
    "dead_link": (dead_link, "the link is broken"),
    "pointer": (pointer, "a Git LFS pointer"),
}
OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "lora": (lora, "a LoRA"),
    "checkpoint": (checkpoint, "a full checkpoint"),
    "folder": (folder, "a folder"),
}


@dataclass
class Mixed:
    """The files in the folder: the good ones, the embeddings, and the others with a part of their error."""

    folder: Path
    good: list[Path] = field(default_factory=list)
    embeddings: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    others: dict[Path, str] = field(default_factory=dict)


def make_mixed(place: Path, good: int, *, broken: int = 1, others: int = 1, seed: int = 0) -> Mixed:
    """`good` tiny hypernetworks of every era, `broken` of each broken kind, `others` of each other kind and embeddings.

    They are in several folders, under names with spaces, letters of many languages, and of upper and lower case.
    """
    random_numbers = random.Random(seed)
    mixed = Mixed(place)
    places = [place, place / "2022", place / "2022" / "früh", place / "スタイル", place / "More Styles"]
    for one in places:
        one.mkdir(parents=True, exist_ok=True)
    eras = list(ERAS)
    for number in range(good):
        era = eras[number % len(eras)]
        recipe = fit(Recipe(activation="relu", norm=bool(number % 2)), era)
        sides = make_sides(recipe, (4,), old_names=era in ("nai", "2022-10-11"), seed=number)
        path = random_numbers.choice(places) / f"style {number} é.pt"
        mixed.good.append(write(path, tree(sides, metadata(recipe, era, step=number)), legacy=number % 7 == 0))
    for number in range(others):
        path = random_numbers.choice(places) / f"embedding-{number}.pt"
        embedding(path)
        mixed.embeddings.append(path)
    for kinds, count, told in ((BROKEN, broken, mixed.broken), (OTHERS, others, mixed.others)):
        for name, (make, reason) in kinds.items():
            for number in range(count):
                path = random_numbers.choice(places) / f"{name}-{number}.pt"
                make(path)
                told[path] = reason
    return mixed
