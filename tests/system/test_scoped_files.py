"""Files with scopes: read, written, inspected, converted, merged, composed, attached and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hnloader
from hnloader import Architecture, Hypernetwork, Scope, UnsupportedArchitectureError
from hnloader.attention import attach, find_sites
from hnloader.cli.app import app
from hnloader.errors import CorruptFileError, NoMatchingSitesError, NotMergeableError, PartialMatchWarning
from hnloader.library import Library
from hnloader.network import SIDES
from tests.support.errors import raises
from tests.support.small_models import assert_same, assert_untouched, fingerprint, make_unet, run

SCOPES = ("20:self:0-3", "20:self:4-", "48:cross", "40", "8:0-30/2")


def make(*scopes: str | int, seed: int = 0, activation: str | None = "relu", name: str = "style") -> Hypernetwork:
    made = Hypernetwork.new(scopes, Architecture(activation=activation), name=name).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    hnloader.save(make(*SCOPES), tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def described(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["hypernetwork"])  # type: ignore[no-any-return]


def test_a_file_keeps_its_scopes(file: Path) -> None:
    found, wanted = hnloader.load(file), make(*SCOPES)
    assert found.scopes == tuple(map(Scope.parse, SCOPES))
    assert found.widths == (20, 48, 40, 8)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert described(file)["layout"] == 2
    assert described(file)["scopes"] == list(SCOPES)
    assert "widths" not in described(file)


def test_a_file_of_whole_widths_has_the_first_layout(tmp_path: Path) -> None:
    hnloader.save(make(8, 16), tmp_path / "plain.safetensors")
    assert described(tmp_path / "plain.safetensors")["layout"] == 1
    assert described(tmp_path / "plain.safetensors")["widths"] == [8, 16]
    assert "scopes" not in described(tmp_path / "plain.safetensors")


def test_a_pt_file_is_refused(file: Path, tmp_path: Path) -> None:
    with raises(UnsupportedArchitectureError, "20:self:0-3", ".safetensors"):
        hnloader.save(make(*SCOPES), tmp_path / "style.pt")
    result = CliRunner().invoke(app, ["convert", str(file), "--to", "pt", "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "20:self:0-3" in result.output + result.stderr
    assert not list(tmp_path.rglob("*.pt"))


def test_inspect_and_the_library_list_the_scopes(file: Path) -> None:
    info = hnloader.inspect(file)
    assert info.scopes == SCOPES
    assert info.to_dict()["scopes"] == list(SCOPES)
    assert Library([file.parent]).find("style") == file
    shown = CliRunner().invoke(app, ["inspect", str(file)]).output
    assert "20:self:0-3" in shown


@pytest.mark.parametrize(
    ("scopes", "families"),
    [
        ((768,), ("SD 1",)),
        (("768:cross",), ("SD 1",)),
        (("768:self",), ()),
        (("320:self",), ("SD 1", "SD 2")),
        (("320:cross",), ()),
    ],
)
def test_a_kind_of_attention_decides_the_family(
    scopes: tuple[str, ...], families: tuple[str, ...], tmp_path: Path
) -> None:
    hnloader.save(make(*scopes), tmp_path / "a.safetensors")
    assert hnloader.inspect(tmp_path / "a.safetensors").families == families


@pytest.mark.parametrize("options", [[], ["--normalize"], ["--dtype", "bfloat16"]])
def test_convert_keeps_scopes(file: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["convert", str(file), *options, "--to", "safetensors", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert hnloader.load(out / "style.safetensors").scopes == tuple(map(Scope.parse, SCOPES))


def test_scopes_with_a_common_site_are_refused(tmp_path: Path) -> None:
    with raises(ValueError, "8:3"):
        make("8", "8:3")
    path = tmp_path / "style.safetensors"
    hnloader.save(make("8:0-4", "8:5-"), path)
    path.write_bytes(path.read_bytes().replace(b"8:5-", b"8:4-"))
    for read in (hnloader.load, hnloader.inspect):
        with raises(UnsupportedArchitectureError, "8:4-"):
            read(path)


def test_a_context_needs_a_scope_where_a_width_has_several() -> None:
    made, x = make("8:0-3", "8:4-", 16), torch.randn(1, 2, 8)
    with raises(ValueError, "8:0-3", "8:4-"):
        made(x)
    assert torch.equal(made(x, scope="8:4-")[0], made.side("8:4-", "k")(x))
    assert made(torch.zeros(1, 2, 16))[0].shape == (1, 2, 16)
    assert made.scope_at(8, "self", 7) == Scope.parse("8:4-")
    assert made.scope_at(24, "self", 7) is None
    with raises(KeyError, "8:5", "8:0-3"):
        made.side("8:5", "k")


# -- merging and compositions


@pytest.mark.parametrize("mode", ["chain", "side-by-side"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_merge_acts_at_each_site_as_its_parts(mode: str, order: tuple[int, int]) -> None:
    parts = [make("8", seed=1, activation=None), make("8:self:0-3", "8:cross:2-", seed=2, activation=None)]
    parts = [parts[index] for index in order]
    merged = hnloader.merge([(part, 0.5) for part in parts], mode=mode).hypernetwork  # type: ignore[arg-type]
    x = torch.randn(1, 3, 8)
    for kind in ("self", "cross"):
        for number in range(6):
            for side in SIDES:
                expected, added = x, x
                for part in parts:
                    scope = part.scope_at(8, kind, number)  # type: ignore[arg-type]
                    if scope is not None:
                        added = added + part.transform(side, x, 0.5, scope) - x
                        expected = part.transform(side, expected, 0.5, scope)
                scope = merged.scope_at(8, kind, number)  # type: ignore[arg-type]
                found = merged.transform(side, x, 1.0, scope)
                assert torch.allclose(found, expected if mode == "chain" else added, atol=1e-5)


def test_a_merged_file_can_be_saved(tmp_path: Path) -> None:
    merged = hnloader.merge([make("8", activation=None), make("8:0-3", seed=1, activation=None)]).hypernetwork
    hnloader.save(merged, tmp_path / "merged.safetensors")
    assert hnloader.load(tmp_path / "merged.safetensors").scopes == merged.scopes


def test_average_needs_the_same_scopes() -> None:
    average = hnloader.merge([make("8:0-3"), make("8:0-3", seed=1)], mode="average").hypernetwork
    assert average.scopes == (Scope.parse("8:0-3"),)
    with raises(NotMergeableError, "8:0-3", "8:4-"):
        hnloader.merge([make("8:0-3"), make("8:4-")], mode="average")


def test_a_composition_acts_at_each_site_as_its_members(tmp_path: Path) -> None:
    members = {"a": make("8", seed=1), "b": make("8:self:0-3", "8:cross:2-", seed=2), "c": make("8:0-9/3", seed=3)}
    for name, member in members.items():
        hnloader.save(member, tmp_path / f"{name}.safetensors")
    (tmp_path / "all.hns").write_text("['a', {'b': 1, 'c': 3}]")
    found = hnloader.load(tmp_path / "all.hns")
    x = torch.randn(1, 3, 8)

    def side_of(name: str, kind: str, number: int, context: torch.Tensor) -> torch.Tensor:
        scope = members[name].scope_at(8, kind, number)  # type: ignore[arg-type]
        return context if scope is None else members[name].transform("k", context, 1.0, scope)

    for kind in ("self", "cross"):
        for number in range(12):
            first = side_of("a", kind, number, x)
            expected = 0.25 * side_of("b", kind, number, first) + 0.75 * side_of("c", kind, number, first)
            scope = found.scope_at(8, kind, number)  # type: ignore[arg-type]
            assert torch.allclose(found.transform("k", x, 1.0, scope), expected, atol=1e-6)
    assert hnloader.inspect(tmp_path / "all.hns").scopes == tuple(map(str, found.scopes))


def test_a_composition_of_too_many_scopes_is_refused(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 1)):
        hnloader.save(make(*(f"8:{number}" for number in range(first, 300, 2))), tmp_path / f"{name}.safetensors")
    (tmp_path / "all.hns").write_text("['a', 'b']")
    with raises(CorruptFileError, "256"):
        hnloader.load(tmp_path / "all.hns")


# -- attaching to a UNet by block


def by_block(unet: torch.nn.Module) -> Hypernetwork:
    """Make separate sides for each block, width and kind."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for site in find_sites(unet):
        groups.setdefault((site.block, site.width, site.kind), []).append(site.index)
    return make(*(str(Scope.of(width, found, kind)) for (_, width, kind), found in groups.items()))  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_unet_takes_sides_by_block(activation: str | None) -> None:
    unet = make_unet("sd1")
    before, plain = fingerprint(unet), run(unet)
    made = by_block(unet)
    made = make(*map(str, made.scopes), activation=activation)
    assert len(made.scopes) > 8
    reference = make_unet("sd1")
    for site in find_sites(reference):
        scope = made.scope_at(site.width, site.kind, site.index)
        assert scope is not None
        for side in SIDES:
            projection = getattr(site.module, f"to_{side}")
            change = made.side(scope, side)
            projection.register_forward_pre_hook(lambda module, args, change=change: (change(args[0], 0.7),))
    attachment = attach(unet, made, 0.7)
    assert_same(run(unet), run(reference))
    assert "relu" in str(attachment.explain()) or activation is None
    attachment.set_strength(0)
    assert torch.equal(run(unet), plain)
    attachment.detach()
    assert_untouched(unet, before)


def test_layers_outside_of_the_scopes_stay() -> None:
    unet = make_unet("sd1")
    site = next(site for site in find_sites(unet) if site.kind == "cross")
    with attach(unet, make(f"48:{site.index}")) as attachment:
        assert [each.index for each in attachment.sites] == [site.index]
        assert "1 of " in attachment.summary()


def test_a_model_without_the_layers_of_a_file_is_refused() -> None:
    unet = make_unet("sd1")
    with raises(NoMatchingSitesError, "48:self", "48:cross:"):
        attach(unet, make("48:self"))
    with raises(NoMatchingSitesError, "48:900-"):
        attach(unet, make("48:900-"))
    with pytest.warns(PartialMatchWarning, match="48:1,900"):
        attach(unet, make("48:1,900")).detach()
