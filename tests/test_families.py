from __future__ import annotations

import pytest

from hnloader.families import embedding_family, families_of, family_of_model, made_for


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((320, 640, 768, 1280), ("SD 1",)),
        ((768,), ("SD 1",)),
        ((320, 640, 1024, 1280), ("SD 2",)),
        ((640, 1280, 2048), ("SDXL",)),
        ((2048,), ("SDXL",)),
        ((320, 640, 768, 1024, 1280), ("SD 1", "SD 2")),
        ((640, 1280), ("SD 1", "SD 2", "SDXL")),
        ((320,), ("SD 1", "SD 2")),
        ((1280,), ("SD 1", "SD 2", "SDXL")),
        ((768, 12), ("SD 1",)),
        ((640, 12), ()),
        ((24, 40), ()),
        ((), ()),
    ],
)
def test_widths_name_the_families_that_a_file_is_made_for(widths, expected):
    assert families_of(widths) == expected


@pytest.mark.parametrize(
    ("text", "own", "expected"),
    [
        ({768}, {320, 640, 1280}, "SD 1"),
        ({1024}, {320, 640, 1280}, "SD 2"),
        ({2048}, {640, 1280}, "SDXL"),
        ({1280}, {768, 1536}, "SDXL refiner"),
        ({768}, {32, 64}, None),
        ({48}, {20, 40, 80}, None),
        ((), {320, 640, 1280}, None),
    ],
)
def test_the_family_of_a_model_follows_from_its_widths(text, own, expected):
    family = family_of_model(text, own)
    assert (family and family.name) == expected


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ([768], "SD 1"),
        ([1024], "SD 2"),
        ([768, 1280], "SDXL"),
        ([1280], "SDXL, second encoder only"),
        ([1280, 768], None),
        ([768, 1024], None),
        ([1, 2], None),
        ([2048], None),
        ([], None),
    ],
)
def test_the_family_of_an_embedding_has_its_widths_in_order(widths, expected):
    assert embedding_family(widths) == expected


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["576:self"], ("language models of width 576",)),
        (["768:self:0-7", "768:self:8-"], ("language models of width 768",)),
        (["576"], ()),
        (["576:self", "960:self"], ()),
        (["576:cross"], ()),
        (["1280:self"], ("SD 1", "SD 2", "SDXL")),
        ([768, 320], ("SD 1",)),
        ([], ()),
    ],
)
def test_models_in_words(scopes: list[object], expected: tuple[str, ...]) -> None:
    assert made_for(scopes) == expected
