from __future__ import annotations

import pytest

from hnloader.attention import attach, find_sites
from hnloader.attention.strengths import check_strength, site_strengths
from hnloader.errors import NoMatchingSitesError
from tests.support.small_models import assert_same, make_hypernetwork, make_unet, reference, run

SITES = find_sites(make_unet("sd1"))
NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"


def strengths(**by_pattern: float) -> dict[tuple[str, str], set[float]]:
    """Return the strengths in each block, by kind."""
    found: dict[tuple[str, str], set[float]] = {}
    for site, strength in zip(SITES, site_strengths(by_pattern, SITES), strict=True):
        found.setdefault((site.block, site.kind), set()).add(strength)
    return found


def test_a_number_holds_everywhere():
    assert set(site_strengths(0.3, SITES)) == {0.3}


def test_a_layer_that_no_pattern_matches_gets_zero():
    found = strengths(up=1.0)
    assert {block for (block, _), values in found.items() if values == {1.0}} == {"up.1", "up.2", "up.3"}
    assert {block for (block, _), values in found.items() if values == {0.0}} == {
        "down.0",
        "down.1",
        "down.2",
        "mid",
    }


def test_a_star_is_for_the_rest():
    found = strengths(**{"mid": 0.5, "*": 0.1})
    assert found["mid", "self"] == {0.5}
    assert found["down.2", "cross"] == found["up.3", "self"] == {0.1}


# Each pattern is more specific than the one before it; a later one must win wherever both match.
ORDER = ["*", "cross", "down", "down.cross", "down.1", "down.1.cross", "down_blocks.1.*.attn2", "3"]


@pytest.mark.parametrize("more", range(1, len(ORDER)))
@pytest.mark.parametrize("backwards", [False, True])
def test_the_more_specific_pattern_wins_in_any_order(more, backwards):
    position = next(site.index for site in SITES if site.name == NAME)
    assert position == 3
    pair = [(ORDER[more - 1], 0.25), (ORDER[more], 0.75)]
    assert site_strengths(dict(reversed(pair) if backwards else pair), SITES)[position] == 0.75


def test_all_patterns_at_once():
    by_pattern = {pattern: float(rank) for rank, pattern in enumerate(ORDER)}
    found = dict(zip((site.name for site in SITES), site_strengths(by_pattern, SITES), strict=True))
    assert found["up_blocks.1.attentions.0.transformer_blocks.0.attn1"] == 0
    assert found["up_blocks.1.attentions.0.transformer_blocks.0.attn2"] == 1
    assert found["down_blocks.0.attentions.0.transformer_blocks.0.attn1"] == 2
    assert found["down_blocks.0.attentions.0.transformer_blocks.0.attn2"] == 3
    assert found["down_blocks.1.attentions.0.transformer_blocks.0.attn1"] == 4
    assert found[NAME] == 7


def test_the_later_of_two_globs_wins():
    assert site_strengths({"*attn2": 0.2, "down_blocks.1.*": 0.6}, SITES)[3] == 0.6
    assert site_strengths({"down_blocks.1.*": 0.6, "*attn2": 0.2}, SITES)[3] == 0.2


def test_a_full_name_is_a_pattern():
    assert [s.name for s, v in zip(SITES, site_strengths({NAME: 1.0}, SITES), strict=True) if v] == [NAME]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("dwn.1", "down.1"), ("crosss", "cross"), ("down.1.cros", "down.1.cross"), ("middle", "mid")],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_a_suggestion(wrong, meant):
    with pytest.raises(NoMatchingSitesError) as caught:
        site_strengths({"up": 1.0, wrong: 0.5}, SITES)
    assert repr(wrong) in str(caught.value)
    assert meant in str(caught.value)
    assert "down.0, down.1, down.2, mid, up.1, up.2, up.3" in str(caught.value)


def test_a_block_without_attention_is_an_error():
    with pytest.raises(NoMatchingSitesError, match=r"up\.0"):
        site_strengths({"up.0": 1.0}, SITES)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_strength_must_be_finite(value):
    with pytest.raises(ValueError, match="finite"):
        check_strength(value)
    with pytest.raises(ValueError, match="'up'"):
        check_strength({"up": value})


@pytest.mark.parametrize("value", ["strong", None, [1.0], {"up": "x"}])
def test_a_strength_must_be_a_number(value):
    with pytest.raises(TypeError, match="number"):
        check_strength(value)


def test_an_empty_mapping_is_an_error():
    with pytest.raises(ValueError, match="Strength"):
        check_strength({})


@pytest.mark.parametrize(
    "by_pattern",
    [
        {"down.1": 0.5, "up": 1.2},
        {"self": 0.2, "cross": 1.0},
        {"*": 0.3, "mid": 0},
        {"7": 1.0, "*.attn1": -0.5},
    ],
)
def test_the_model_computes_with_the_strength_of_each_layer(by_pattern):
    unet = make_unet("sd1")
    hypernetwork = make_hypernetwork((20, 40, 48, 80))
    by_name = dict(zip((site.name for site in SITES), site_strengths(by_pattern, SITES), strict=True))
    expected = run(reference(unet, lambda name: [(hypernetwork, by_name[name], by_name[name])]))
    with attach(unet, hypernetwork, by_pattern):
        assert_same(run(unet), expected)
