"""Converting one file: lossless, verified before it takes its name, with clear errors."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import CorruptFileError, HypernetworkError, OtherModelError, UnknownFormatError
from hnloader.conversion import convert, verify
from hnloader.errors import VerificationError
from hnloader.formats.registry import format_named
from tests.support.builders import (
    ACTIVATIONS,
    ERAS,
    OLD_NAMED_ERAS,
    Recipe,
    fit,
    make_sides,
    metadata,
    simple_tree,
    tree,
    worst_error,
    write,
)
from tests.support.formats import write_safetensors_with
from tests.support.paths import GOLDENS

# softmax, softmin and logsoftmax run over torch's implicit dimension, as the originals' do.
pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice")

WEIGHT_FILES = sorted(path for path in GOLDENS.glob("*.pt"))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RECIPES = st.builds(
    Recipe,
    structure=st.lists(st.sampled_from([0.5, 0.7, 1, 1.5, 2, 3]), min_size=1, max_size=3).map(lambda i: (1, *i, 1)),
    activation=st.sampled_from([None, "linear", *ACTIVATIONS]),
    norm=st.booleans(),
    activate_output=st.booleans(),
    residual=st.sampled_from([None, None, "linear", "interpolate"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def same(one: object, two: object) -> bool:
    """Equal in value and type all the way down, dicts in the same order, tensors bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and one.equal(two)
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if type(one) is not type(two):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return one == two


def plain(content: dict) -> dict:
    """State dicts as plain dicts, lists of kohya as the tuples that the webui writes, widths before the keys."""
    widths = {key: tuple(dict(side) for side in value) for key, value in content.items() if isinstance(key, int)}
    return widths | {key: value for key, value in content.items() if isinstance(key, str)}


def header(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size])["__metadata__"]


# -- nothing is lost


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    recipe=RECIPES,
    era=st.sampled_from(list(ERAS)),
    dtype=st.sampled_from(DTYPES),
    legacy=st.booleans(),
    pair=st.sampled_from([tuple, list]),
    extras=st.dictionaries(st.text(min_size=1, max_size=6).map("x_{}".format), VALUES, max_size=3),
)
def test_every_variant_round_trips_bit_for_bit(
    recipe: Recipe, era: str, dtype: torch.dtype, legacy: bool, pair: type, extras: dict, tmp_path_factory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    recipe = fit(recipe, era)
    sides = make_sides(recipe, (12, 20), old_names=era in OLD_NAMED_ERAS, dtype=dtype)
    keys = {**metadata(recipe, era), **(extras if ERAS[era] else {})}
    content = tree(sides, keys, dtype=dtype, pair=pair)
    source = write(folder / "style.pt", content, legacy=legacy)
    before = source.read_bytes()
    there = convert(source, folder / "style.safetensors")
    back = convert(folder / "style.safetensors", folder / "back.pt")
    assert there.verified == back.verified == ("tensors", "metadata", "outputs")
    assert there.lossless
    assert back.lossless
    found = torch.load(folder / "back.pt", weights_only=True)
    assert same(plain(found), plain(content))
    assert all(type(value) is tuple for key, value in found.items() if isinstance(key, int))
    assert worst_error(hnloader.load(folder / "back.pt"), sides) < 1e-5
    assert source.read_bytes() == before
    assert verify(source, folder / "style.safetensors")
    assert verify(source, folder / "back.pt")


@pytest.mark.parametrize("source", WEIGHT_FILES, ids=lambda path: path.stem)
def test_original_files_round_trip(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert same(
        plain(torch.load(tmp_path / "b.pt", weights_only=True)),
        plain(torch.load(source, weights_only=True)),
    )


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree())
    for name in ("a.safetensors", "b.safetensors", "a.pt", "b.pt"):
        convert(source, tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_headers_state_their_source(tmp_path: Path) -> None:
    recipe = Recipe(activation="relu")
    source = write(tmp_path / "old.pt", tree(make_sides(recipe, (768,)), metadata(recipe, "2022-11", name="ink")))
    os.utime(source, (1_668_000_000, 1_668_000_000))
    convert(source, tmp_path / "new.safetensors")
    found = header(tmp_path / "new.safetensors")
    data = (tmp_path / "new.safetensors").read_bytes()
    body = data[8 + struct.unpack("<Q", data[:8])[0] :]
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/hypernetwork"
    assert found["modelspec.title"] == "ink"
    assert found["modelspec.date"] == "2022-11-09T13:20:00Z"
    assert found["modelspec.hash_sha256"] == "0x" + hashlib.sha256(body).hexdigest()
    assert found["hnloader.source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert found["hnloader.source_name"] == "old.pt"
    # None of that becomes a key of the hypernetwork.
    assert hnloader.load(tmp_path / "new.safetensors").metadata == hnloader.load(source).metadata


def test_without_verification_tensors_are_not_hashed(tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree())
    convert(source, tmp_path / "quick.safetensors", verify=False)
    convert(source, tmp_path / "verified.safetensors")
    quick, verified = header(tmp_path / "quick.safetensors"), header(tmp_path / "verified.safetensors")
    assert "modelspec.hash_sha256" not in quick
    # Nothing else is left out.
    del verified["modelspec.hash_sha256"]
    assert quick == verified


@pytest.mark.skipif("mmap" not in inspect.signature(torch.load).parameters, reason="torch maps files since 2.1")
def test_torch_can_map_results(tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree(16))
    convert(source, tmp_path / "back.pt")
    mapped = torch.load(tmp_path / "back.pt", weights_only=True, mmap=True)
    assert same(plain(mapped), plain(torch.load(source, weights_only=True)))


# -- normalized


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=RECIPES, era=st.sampled_from([era for era in ERAS if era != "monkeypatch"]), drops=st.booleans())
def test_normalized_files_compute_the_same(recipe: Recipe, era: str, drops: bool, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("normal")
    dropout = (0, *[0.3] * (len(recipe.structure) - 2), 0) if drops else None
    recipe = fit(Recipe(recipe.structure, recipe.activation, recipe.norm, recipe.activate_output, dropout), era)
    sides = make_sides(recipe, (12, 20), old_names=era in OLD_NAMED_ERAS)
    source = write(folder / "style.pt", tree(sides, metadata(recipe, era)))
    done = convert(source, folder / "new.pt", normalize=True)
    assert done.verified
    found = torch.load(folder / "new.pt", weights_only=True)
    needed = {"layer_structure", "activation_func", "is_layer_norm", "activate_output", "dropout_structure", "name"}
    assert needed <= set(found)
    assert not any(name.startswith("linear1") for name in found[12][0])
    loaded = hnloader.load(folder / "new.pt")
    assert not loaded.architecture.dropout_before_norm
    assert worst_error(loaded, sides) < 1e-5
    one, two = hnloader.load(source), loaded
    x = torch.randn(1, 3, 12)
    for side in ("k", "v"):
        assert torch.equal(one.transform(side, x), two.transform(side, x))
    assert verify(source, folder / "new.pt")
    convert(folder / "new.pt", folder / "again.pt", normalize=True)
    assert (folder / "again.pt").read_bytes() == (folder / "new.pt").read_bytes()


def test_residual_variants_keep_their_form(tmp_path: Path) -> None:
    recipe = Recipe(activation="relu", residual="linear")
    source = write(tmp_path / "style.pt", tree(make_sides(recipe, (12,)), metadata(recipe, "monkeypatch")))
    done = convert(source, tmp_path / "new.pt", normalize=True)
    assert "not normalized" in done.notes[0]
    assert same(plain(torch.load(tmp_path / "new.pt")), plain(torch.load(source)))


# -- other dtypes


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_casting_is_noted(name: str, suffix: str, tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree(16))
    done = convert(source, tmp_path / f"new{suffix}", dtype=name)
    assert done.lossless == (name == "float32")
    assert any("not lossless" in note for note in done.notes) != done.lossless
    one, two = (hnloader.load(path).state_dict() for path in (source, done.target))
    assert all(torch.equal(one[key].to(getattr(torch, name)), two[key]) for key in one)
    assert verify(source, done.target)


def test_values_too_large_for_a_dtype_are_refused(tmp_path: Path) -> None:
    content = simple_tree(8)
    content[8][1]["linear.0.weight"][2, 3] = 1e6
    source = write(tmp_path / "style.pt", content)
    with pytest.raises(HypernetworkError, match=r"linear.0.weight of the v side of width 8.* 1e\+06"):
        convert(source, tmp_path / "new.pt", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style.pt"]
    assert convert(source, tmp_path / "new.pt", dtype=torch.bfloat16).verified
    with pytest.raises(HypernetworkError, match="float8"):
        convert(source, tmp_path / "new.pt", dtype="float8")


# -- verified


def test_results_that_differ_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "style.pt", simple_tree(8))
    target = tmp_path / "style.safetensors"
    target.write_text("older")
    real = format_named("safetensors").write
    assert real is not None

    def spoiled(outgoing: object, path: Path) -> None:
        real(outgoing, path)  # type: ignore[arg-type]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    write_safetensors_with(monkeypatch, spoiled)
    with pytest.raises(VerificationError, match=target.name):
        convert(source, target)
    assert target.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style.pt", "style.safetensors"]
    assert convert(source, target, verify=False).verified == ()


@pytest.mark.parametrize("kind", ["tensor", "value", "type", "missing", "more", "width", "other source"])
def test_verify_names_the_difference(kind: str, tmp_path: Path) -> None:
    content = simple_tree(8)
    source = write(tmp_path / "style.pt", content)
    words = {
        "tensor": "linear.0.bias of the k side of width 8",
        "value": "'step'",
        "type": "'step'",
        "missing": "optional_info",
        "more": "extra",
        "width": "16",
        "other source": "sha256",
    }
    changed = simple_tree(8)
    if kind == "tensor":
        changed[8][0]["linear.0.bias"][0] += 1e-6
    elif kind == "value":
        changed["step"] = 7
    elif kind == "type":
        changed["step"] = float(changed["step"])
    elif kind == "missing":
        del changed["optional_info"]
    elif kind == "more":
        changed["extra"] = 1
    elif kind == "width":
        changed = simple_tree(16)
    target = write(tmp_path / "new.pt", changed)
    if kind == "other source":
        target = tmp_path / "new.safetensors"
        convert(write(tmp_path / "b.pt", simple_tree(8, seed=1)), target)
    with pytest.raises(HypernetworkError, match=words[kind]):
        verify(source, target)


# -- the optimizer's state


def companion(hypernetwork: Path, **changes: object) -> dict[str, object]:
    parameters = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    short = hashlib.sha256(hypernetwork.read_bytes()).hexdigest()[:10]
    return {"optimizer_name": "AdamW", "hash": short, "optimizer_state_dict": optimizer.state_dict(), **changes}


def test_optimizer_states_are_copied_and_renamed(tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree(8))
    content = companion(source)
    write(tmp_path / "style.pt.optim", content)
    done = convert(source, tmp_path / "style.safetensors")
    assert "names the new file" in done.notes[0]
    (tmp_path / "back").mkdir()
    convert(tmp_path / "style.safetensors", tmp_path / "back" / "style.pt")
    back = torch.load(tmp_path / "back" / "style.pt.optim", weights_only=True)
    assert back["hash"] == hashlib.sha256((tmp_path / "back" / "style.pt").read_bytes()).hexdigest()[:10]
    assert same({**back, "hash": content["hash"]}, content)


def test_foreign_and_unsafe_states(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    source = write(tmp_path / "style.pt", simple_tree(8))
    write(tmp_path / "style.pt.optim", companion(source, hash="0" * 10))
    done = convert(source, tmp_path / "a.safetensors")
    assert "belongs to another file" in done.notes[0]
    assert torch.load(tmp_path / "a.safetensors.optim")["hash"] == "0" * 10
    write(tmp_path / "style.pt.optim", companion(source, extra=Trap()))
    done = convert(source, tmp_path / "b.safetensors")
    assert "style.pt.optim was not copied" in done.notes[0]
    assert not (tmp_path / "b.safetensors.optim").exists()
    assert not (tmp_path / "ran").exists()


# -- what goes wrong


def test_existing_files(tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree(8))
    target = tmp_path / "new.safetensors"
    target.write_text("older")
    assert convert(source, target, on_existing="skip").action == "skipped"
    assert target.read_text() == "older"
    assert convert(source, target, on_existing="rename").target == tmp_path / "new-2.safetensors"
    assert target.read_text() == "older"
    convert(source, target)
    assert hnloader.load(target).widths == (8,)


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_the_source_is_never_overwritten(link: str, tmp_path: Path) -> None:
    source = write(tmp_path / "style.pt", simple_tree(8))
    target = source if link == "same" else tmp_path / "other.pt"
    if link == "symlink":
        target.symlink_to(source)
    elif link == "hardlink":
        os.link(source, target)
    before = source.read_bytes()
    with pytest.raises(HypernetworkError, match=target.name):
        convert(source, target)
    assert source.read_bytes() == before


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "style.pt", simple_tree(8))
    nan = simple_tree(8)
    nan[8][0]["linear.0.weight"][0, 0] = float("nan")
    (tmp_path / "all.hns").write_text("[style]")
    cases: list[tuple[Path, Path, type[Exception], str]] = [
        (tmp_path / "none.pt", tmp_path / "a.pt", HypernetworkError, "none.pt"),
        (write(tmp_path / "lora.pt", {"x.lora_up.weight": torch.zeros(2)}), tmp_path / "a.pt", OtherModelError, "LoRA"),
        (write(tmp_path / "nan.pt", nan), tmp_path / "a.pt", CorruptFileError, "linear.0.weight"),
        (tmp_path / "all.hns", tmp_path / "a.pt", OtherModelError, "hnloader merge"),
        (good, tmp_path / "a.ckpt", UnknownFormatError, r"\.ckpt"),
        (good, tmp_path / "folder.pt", HypernetworkError, "folder.pt"),
        (good, tmp_path / "missing" / "a.pt", HypernetworkError, "missing"),
        (good, tmp_path / ("n" * 300 + ".pt"), HypernetworkError, "nnn.pt"),
    ]
    (tmp_path / "folder.pt").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    for source, target, error, words in cases:
        with pytest.raises(error, match=words):
            convert(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "style.pt", simple_tree(8))
    target = tmp_path / "style.safetensors"
    target.write_text("older")

    def full(outgoing: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_safetensors_with(monkeypatch, full)
    with pytest.raises(HypernetworkError, match=r"style\.safetensors.*No space left"):
        convert(source, target)
    assert target.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style.pt", "style.safetensors"]


def test_unicode_names(tmp_path: Path) -> None:
    source = write(tmp_path / "стиль 日本 🎨.pt", simple_tree(8))
    done = convert(source, tmp_path / "ñandú.safetensors")
    assert header(done.target)["hnloader.source_name"] == "стиль 日本 🎨.pt"
