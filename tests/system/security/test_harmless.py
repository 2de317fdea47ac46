"""Files with oddities that real old files show are not refused: 200 generated ones, and every golden file."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

import hnloader
from tests.support.builders import ERAS, Recipe, fit, make_sides, metadata, tree
from tests.support.hostile import rezipped
from tests.support.paths import GOLDENS

ACTIVATIONS = (None, "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "mish", "gelu", "softsign")
EXTRAS: tuple[dict[str, object], ...] = (
    {},
    {"optional_info": "トレーニング ü 🎨"},
    {"optional_info": "<b>bold</b> \x1b[31mred\x1b[0m\r\n" * 3},
    {"name": "../../up and\0away"},
    {"sd_checkpoint": None, "sd_checkpoint_name": None},
    {"step": 0},
    {"step": 10**12},
    {"optimizer_name": "AdamW", "hash": "0123456789"},
    {"extra": {"list": [1, 2.5, None, True], "bytes": b"\0\xff", "set": {1, 2}, "nested": [[[[()]]]]}},
    {"extra": torch.zeros(0)},
    {"extra": torch.eye(3).T[1:]},
    {"extra": OrderedDict(a=1)},
    {"optional_info": "x" * 100_000},
)


def variant(index: int) -> bytes:
    """A sound file: its structure, age, types, container and oddities are chosen by the number."""
    chance = random.Random(index)
    era = chance.choice(sorted(ERAS))
    recipe = Recipe(
        structure=chance.choice([(1, 2, 1), (1, 1), (1, 2, 2, 1), (1, 1.5, 1), (1, 3, 1)]),
        activation=chance.choice(ACTIVATIONS),
        norm=chance.random() < 0.3,
        activate_output=chance.random() < 0.3,
    )
    recipe = fit(recipe, era)
    widths = tuple(chance.sample([4, 8, 12, 16], chance.randint(1, 3)))
    sides = make_sides(recipe, widths, old_names=era in ("nai", "2022-10-11"), seed=index)
    dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16])
    keys = {**metadata(recipe, era), **(chance.choice(EXTRAS) if era != "nai" else {})}
    content = tree(sides, keys, dtype=dtype, pair=chance.choice([tuple, list]))
    if chance.random() < 0.3:
        content = dict(sorted(content.items(), key=lambda item: str(item[0])))  # keys in another order
    buffer = io.BytesIO()
    legacy = chance.random() < 0.3
    protocol = chance.choice([2, 2, 3, 4, 5])
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue() if legacy else odd_zip(buffer.getvalue(), chance)


def odd_zip(data: bytes, chance: random.Random) -> bytes:
    """The archive as other programs pack it again."""
    kind = chance.choice(["plain", "deflated", "renamed", "older", "more"])
    if kind == "deflated":
        return rezipped(data, compression=zipfile.ZIP_DEFLATED)
    if kind == "older":  # without the members that newer versions of torch add
        keep = ("data.pkl", "version")
        return rezipped(data, lambda name, content: content if name.endswith(keep) or "/data/" in name else None)
    if kind == "plain":
        return data
    result = io.BytesIO()
    root = chance.choice(["My Style v2..final", "スタイル", "a b", "..x", "c"])
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(result, "w") as changed:
        for info in archive.infolist():
            name = info.filename.replace("archive/", f"{root}/", 1) if kind == "renamed" else info.filename
            changed.writestr(name, archive.read(info))
        if kind == "more":
            changed.writestr("archive/notes.txt", b"by hand")
    return result.getvalue()


@pytest.mark.parametrize("index", range(200))
def test_all_readers_read_generated_variants(index: int) -> None:
    data = variant(index)
    loaded = hnloader.load(io.BytesIO(data))
    info = hnloader.inspect(io.BytesIO(data))
    assert loaded.widths == info.widths and loaded.widths
    x = torch.randn(1, 3, loaded.widths[0])
    k, v = loaded(x, 1.0)
    assert k.shape == v.shape == x.shape


def test_the_variants_differ() -> None:
    assert len({variant(index) for index in range(200)}) == 200


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDENS.iterdir() if path.suffix in (".pt", ".hns")))
def test_all_readers_read_golden_files(name: str) -> None:
    assert hnloader.load(GOLDENS / name)
    assert hnloader.inspect(GOLDENS / name)


def test_legacy_stream_with_trailing_bytes_loads() -> None:
    data = variant(next(i for i in range(200) if variant(i).startswith(b"\x80\x02\x8a\x0a")))
    assert hnloader.load(io.BytesIO(data + struct.pack("<q", 0) + pickle.dumps("x")))
