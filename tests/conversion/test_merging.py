"""Merges equal their parts, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import Hypernetwork, HypernetworkError
from hnloader.conversion.composing import composition
from hnloader.conversion.merging import Part, merge
from hnloader.errors import NotMergeableError
from hnloader.network import Architecture

# softmax runs over torch's implicit dimension, as the originals' does.
pytestmark = pytest.mark.filterwarnings("ignore:Implicit dimension choice")

INNER = st.lists(st.sampled_from([0.5, 1, 1.5, 2]), max_size=2).map(lambda inner: (1, *inner, 1))
STRENGTH = st.floats(-1.5, 1.5).map(lambda number: round(number, 3))


def make(architecture: Architecture, seed: int, widths: tuple[int, ...] = (12, 16), name: str = "") -> Hypernetwork:
    made = Hypernetwork.new(widths, architecture, name=name or f"n{seed}").requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def outputs(parts: list[tuple[Hypernetwork, float]], width: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    k = v = x
    for hypernetwork, strength in parts:
        k, v = hypernetwork.transform("k", k, strength), hypernetwork.transform("v", v, strength)
    return k, v


def assert_gives(found: Hypernetwork, parts: list[tuple[Hypernetwork, float]], tolerance: float = 1e-5) -> None:
    for width in dict.fromkeys(width for part, _ in parts for width in part.widths):
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
        for one, two in zip(found(x), outputs(parts, width, x), strict=True):
            assert float((one - two).abs().max() / two.abs().max()) < tolerance


# -- chains of affine networks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(INNER, st.sampled_from([None, "interpolate", "linear"]), STRENGTH), min_size=1, max_size=4))
def test_affine_chains_become_one_file(given_parts: list[tuple[tuple[float, ...], str | None, float]]) -> None:
    parts = [
        (make(Architecture(structure, residual=residual), seed), strength)
        for seed, (structure, residual, strength) in enumerate(given_parts)
    ]
    made = merge(parts)
    assert made.exact
    assert made.error < 1e-5
    assert_gives(made.hypernetwork, parts)


def test_missing_widths_pass_through() -> None:
    parts = [(make(Architecture(), 1, (12,)), 0.8), (make(Architecture(), 2, (12, 16)), 0.5)]
    made = merge(parts)
    assert made.hypernetwork.widths == (12, 16)
    assert_gives(made.hypernetwork, parts)


# -- a strength baked in


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    structure=INNER,
    activation=st.sampled_from(["relu", "leakyrelu", "prelu", "tanh", "mish", "swish", "softmax"]),
    norm=st.booleans(),
    activate_output=st.booleans(),
    k=STRENGTH,
    v=STRENGTH,
)
def test_strengths_are_folded_in_or_refused(
    structure: tuple[float, ...], activation: str, norm: bool, activate_output: bool, k: float, v: float
) -> None:
    architecture = Architecture(structure, activation, norm, (0,) * len(structure), activate_output)
    source = make(architecture, 3)
    free = norm or not activate_output
    homogeneous = activation in ("relu", "leakyrelu", "prelu") and k >= 0 and v >= 0
    # At strength 1 there is nothing to put anywhere; with both at 0 nothing is left.
    plain = (k in (0, 1) and v in (0, 1)) and (k, v) != (0, 0)
    try:
        made = merge([Part(source, k, v)])
    except NotMergeableError:
        assert not free or (k, v) == (0, 0)
        assert not homogeneous or (k, v) == (0, 0)
        return
    assert made.exact
    assert free or homogeneous or plain or 0 in (k, v) or 1 in (k, v)
    x = torch.randn(1, 5, 12)
    for side, strength in (("k", k), ("v", v)):
        found, wanted = made.hypernetwork.transform(side, x), source.transform(side, x, strength)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_residual_networks_with_activation_keep_their_strength_outside() -> None:
    source = make(Architecture((1, 2, 1), "relu", residual="linear"), 1)
    with pytest.raises(NotMergeableError):
        merge([(source, 0.5)])


# -- side by side


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    inner=st.lists(st.lists(st.sampled_from([1, 1.5, 2, 3]), min_size=2, max_size=2), min_size=1, max_size=3),
    deep=st.booleans(),
    activation=st.sampled_from(["relu", "mish", "tanh"]),
    strengths=st.lists(STRENGTH.filter(bool), min_size=3, max_size=3),
)
def test_networks_side_by_side_make_one_wider_network(
    inner: list[list[float]], deep: bool, activation: str, strengths: list[float]
) -> None:
    parts = [
        (make(Architecture((1, *(sizes if deep else sizes[:1]), 1), activation), seed), strength)
        for seed, (sizes, strength) in enumerate(zip(inner, strengths, strict=False))
    ]
    made = merge(parts, mode="side-by-side")
    assert made.exact
    x = torch.randn(2, 3, 12)
    for side in ("k", "v"):
        wanted = x + sum((part.transform(side, x) - x) * strength for part, strength in parts)
        torch.testing.assert_close(made.hypernetwork.transform(side, x), wanted, rtol=1e-4, atol=1e-5)


def test_different_networks_side_by_side_are_refused() -> None:
    relu = make(Architecture(activation="relu"), 1)
    for other in (Architecture(activation="tanh"), Architecture((1, 2, 2, 1), "relu")):
        with pytest.raises(NotMergeableError, match="relu"):
            merge([relu, make(other, 2)], mode="side-by-side")
    normed = make(Architecture(activation="relu", norm=True), 1)
    with pytest.raises(NotMergeableError, match="norm"):
        merge([normed, normed], mode="side-by-side")
    with pytest.raises(NotMergeableError, match="16"):
        merge([relu, make(Architecture(activation="relu"), 2, (12,))], mode="side-by-side")


# -- compositions


@pytest.mark.parametrize("text", ["[a, (b, 0.4)]", "{a: 3, b: 1}", "[{a, b}, ('[b, a]', 0.5)]"])
def test_compositions_of_affine_members_become_one_file(text: str, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        hnloader.save(make(Architecture((1, 2, 1)), seed, name=name), tmp_path / f"{name}.pt")
    (tmp_path / "all.hns").write_text(text)
    made = merge([(tmp_path / "all.hns", 0.7)])
    assert made.exact
    assert_gives(made.hypernetwork, [(hnloader.load(tmp_path / "all.hns"), 0.7)])


def test_members_with_activation_side_by_side_become_one_file(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        hnloader.save(make(Architecture((1, 2, 1), "relu"), seed, name=name), tmp_path / f"{name}.pt")
    (tmp_path / "all.hns").write_text("{a: 3, b: 1}")
    made = merge([(tmp_path / "all.hns", 0.7)])
    assert made.exact
    assert_gives(made.hypernetwork, [(hnloader.load(tmp_path / "all.hns"), 0.7)])
    (tmp_path / "chain.hns").write_text("[a, b]")
    with pytest.raises(NotMergeableError, match="hns"):
        merge([tmp_path / "chain.hns"])


def test_compositions_equal_their_chain(tmp_path: Path) -> None:
    parts = []
    for seed, (name, strength) in enumerate({"a": 0.8, "b": 0.25}.items()):
        path = tmp_path / f"{name}.pt"
        hnloader.save(make(Architecture(activation="relu"), seed, name=name), path)
        parts.append(Part(hnloader.load(path), strength, strength, path=path))
    with pytest.raises(NotMergeableError):
        merge(parts)
    (tmp_path / "both.hns").write_text(composition(parts))
    assert_gives(hnloader.load(tmp_path / "both.hns"), [(part.hypernetwork, part.k) for part in parts])
    for wrong in (Part(parts[0].hypernetwork, 1.5, 1.5, path=tmp_path / "a.pt"), Part(parts[0].hypernetwork)):
        with pytest.raises(NotMergeableError):
            composition([wrong])


# -- averages


def test_weights_are_averaged_by_their_shares() -> None:
    one, two = (make(Architecture(activation="relu", norm=True), seed) for seed in (1, 2))
    made = merge([(one, 3), (two, 1)], mode="average")
    assert not made.exact
    assert "does not average" in made.how
    for name, tensor in made.hypernetwork.state_dict().items():
        wanted = one.state_dict()[name] * 0.75 + two.state_dict()[name] * 0.25
        torch.testing.assert_close(tensor, wanted)


def test_averages_of_single_matrices_are_exact() -> None:
    one, two = (make(Architecture((1, 1), dropout=(0, 0)), seed) for seed in (1, 2))
    made = merge([one, two], mode="average")
    assert made.exact
    assert made.error < 1e-5


def test_averages_ignore_output_activation_without_activation() -> None:
    """Files from before 2022-10-26 do, later ones do not; without an activation it is the same."""
    one, two = (
        make(Architecture((1, 1), dropout=(0, 0), activate_output=True), 1),
        make(Architecture((1, 1), dropout=(0, 0)), 2),
    )
    made = merge([one, two], mode="average")
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    for side in ("k", "v"):
        torch.testing.assert_close(
            made.hypernetwork.transform(side, x, 1), (one.transform(side, x, 1) + two.transform(side, x, 1)) / 2
        )


def test_other_architectures_are_not_averaged() -> None:
    with pytest.raises(NotMergeableError, match=r"1-2-1, tanh.*1-2-1, relu"):
        merge([make(Architecture(activation="relu"), 1), make(Architecture(activation="tanh"), 2)], mode="average")
    one, two = make(Architecture(), 1), make(Architecture(), 2)
    with pytest.raises(NotMergeableError, match="0"):
        merge([(one, 1), (two, -1)], mode="average")


def test_messages_about_unnamed_hypernetworks_name_a_subject() -> None:
    one, two = make(Architecture(activation="relu"), 1), make(Architecture(activation="tanh"), 2)
    one.name = two.name = ""
    for mode in ("chain", "average"):
        with pytest.raises(NotMergeableError) as caught:
            merge([one, two], mode=mode)
        assert str(caught.value).startswith("Hypernetwork")


# -- the file


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_results_state_their_parts(suffix: str, tmp_path: Path) -> None:
    paths = []
    for seed, name in enumerate("ab"):
        paths.append(tmp_path / f"{name}.pt")
        hnloader.save(make(Architecture((1, 2, 1)), seed, name=name), paths[-1])
    made = hnloader.merge([(paths[0], 0.8), paths[1]], name="both")
    hnloader.save(made.hypernetwork, tmp_path / f"both{suffix}")
    found = hnloader.load(tmp_path / f"both{suffix}")
    origin = json.loads(str(found.metadata["merged_from"]))
    assert origin["exact"] is True
    assert [(part["name"], part["k"]) for part in origin["parts"]] == [("a", 0.8), ("b", 1.0)]
    assert origin["parts"][0]["sha256"] == hnloader.inspect(paths[0]).sha256
    assert_gives(found, [(hnloader.load(paths[0]), 0.8), (hnloader.load(paths[1]), 1.0)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_have_a_measured_error(dtype: str) -> None:
    made = merge([(make(Architecture(), 1), 0.5)], dtype=dtype)
    assert 1e-6 < made.error < 0.1
    assert next(made.hypernetwork.parameters()).dtype == getattr(torch, dtype)


def test_impossible_merges_are_refused() -> None:
    with pytest.raises(HypernetworkError):
        merge([])
    with pytest.raises(HypernetworkError, match="averge"):
        merge([make(Architecture(), 1)], mode="averge")  # type: ignore[arg-type]
    with pytest.raises(HypernetworkError, match="float8"):
        merge([make(Architecture(), 1)], dtype="float8")
