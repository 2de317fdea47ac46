"""Writes hypernetwork files of every kind from modules built by the rules of docs/format.md alone.

Nothing here uses hnloader: what the tests compare it with must not share its mistakes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation as activation_module

Sides = dict[int, tuple[nn.Module, nn.Module]]

ACTIVATION_CLASSES: dict[str, type[nn.Module]] = {
    name.lower(): cls
    for name, cls in inspect.getmembers(activation_module, inspect.isclass)
    if cls.__module__ == activation_module.__name__
} | {"swish": nn.Hardswish}

# They need arguments, or change the width: no file with them can ever have worked.
IMPOSSIBLE_ACTIVATIONS = ("threshold", "multiheadattention", "glu")
ACTIVATIONS = tuple(sorted(set(ACTIVATION_CLASSES) - set(IMPOSSIBLE_ACTIVATIONS)))


@dataclass(frozen=True)
class Recipe:
    """The architecture of the sides of a file; `dropout` has a rate per position of `structure`."""

    structure: tuple[float, ...] = (1, 2, 1)
    activation: str | None = None
    norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] | None = None
    dropout_before_norm: bool = False
    residual: str | None = None

    @property
    def acts(self) -> bool:
        return self.activation not in (None, "linear")

    def rate(self, position: int) -> float:
        return self.dropout[position] if self.dropout is not None else 0


class PlainSide(nn.Module):
    """Linear, activation, LayerNorm, Dropout in one Sequential; `x + strength * linear(x)`."""

    def __init__(self, recipe: Recipe, width: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        last = len(recipe.structure) - 1
        for position in range(1, last + 1):
            size_in, size_out = int(width * recipe.structure[position - 1]), int(width * recipe.structure[position])
            modules.append(nn.Linear(size_in, size_out))
            if recipe.acts and (position < last or recipe.activate_output):
                modules.append(ACTIVATION_CLASSES[str(recipe.activation)]())
            norm = [nn.LayerNorm(size_out)] if recipe.norm else []
            dropout = [nn.Dropout(recipe.rate(position))] if recipe.rate(position) > 0 else []
            modules += [*dropout, *norm] if recipe.dropout_before_norm else [*norm, *dropout]
        self.linear = nn.Sequential(*modules)

    def forward(self, x: Tensor, strength: float) -> Tensor:
        return x + strength * self.linear(x)


class OldSide(nn.Module):
    """The first kind: linear1 and linear2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * width)
        self.linear2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, strength: float) -> Tensor:
        return x + strength * self.linear2(self.linear1(x))


class ResidualBlock(nn.Module):
    def __init__(self, recipe: Recipe, size_in: int, size_out: int, rate: float) -> None:
        super().__init__()
        self.size_out = size_out
        if recipe.residual == "linear":
            self.upsample_layer = nn.Linear(size_in, size_out, bias=False)
        modules: list[nn.Module] = [nn.Linear(size_in, size_out)]
        modules += [nn.LayerNorm(size_out)] if recipe.norm else []
        modules += [nn.Dropout(rate)] if rate > 0 else []
        modules += [ACTIVATION_CLASSES[str(recipe.activation)]()] if recipe.acts else []
        self.linear = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "upsample_layer"):
            return self.upsample_layer(x) + self.linear(x)
        return functional.interpolate(x, size=self.size_out, mode="nearest-exact") + self.linear(x)


class ResidualSide(nn.Module):
    """MonkeyPatch's skip_connection: `x + strength * (blocks(x) - x)`; x must have three dimensions."""

    def __init__(self, recipe: Recipe, width: int) -> None:
        super().__init__()
        sizes = [int(width * ratio) for ratio in recipe.structure]
        self.linear = nn.Sequential(
            *(ResidualBlock(recipe, sizes[i - 1], sizes[i], recipe.rate(i)) for i in range(1, len(sizes)))
        )

    def forward(self, x: Tensor, strength: float) -> Tensor:
        return x + strength * (self.linear(x) - x)


def make_sides(
    recipe: Recipe,
    widths: tuple[int, ...],
    *,
    old_names: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Sides:
    """A k and a v side per width, in eval mode, float32, with values that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def side(width: int) -> nn.Module:
        made: nn.Module
        if old_names:
            made = OldSide(width)
        else:
            made = PlainSide(recipe, width) if recipe.residual is None else ResidualSide(recipe, width)
        with torch.no_grad():
            for parameter in made.parameters():
                scale = 0.5 / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.3
                values = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(values.to(dtype))
        return made.eval()

    return {width: (side(width), side(width)) for width in widths}


# -- eras: which keys a program of the time wrote

NAMED = ("step", "name", "sd_checkpoint", "sd_checkpoint_name")
LAYERS = ("layer_structure", "activation_func", "is_layer_norm")
OCTOBER_23 = (*LAYERS, "weight_initialization", "use_dropout")
OCTOBER_26 = (*OCTOBER_23, "activate_output", "last_layer_dropout")
NOVEMBER = (*OCTOBER_26, "dropout_structure", "optional_info")
MONKEYPATCH = (*NOVEMBER, "skip_connection", "upsample_linear")

ERAS: dict[str, tuple[str, ...]] = {
    "nai": (),
    "2022-10-11": NAMED,
    "2022-10-19": NAMED,
    "2022-10-21": (*NAMED, *LAYERS),
    "2022-10-22": (*NAMED, *LAYERS, "use_dropout"),
    "2022-10-23": (*NAMED, *OCTOBER_23),
    "2022-10-26": (*NAMED, *OCTOBER_26),
    "2022-11": (*NAMED, *NOVEMBER),
    "monkeypatch": (*NAMED, *MONKEYPATCH),
}
OLD_NAMED_ERAS = ("nai", "2022-10-11")


def derived_dropout(count: int, *, last: bool) -> tuple[float, ...]:
    """Return the rates that use_dropout means without dropout_structure."""
    return (0, *[0.3] * (count - 3), 0.3 if last else 0, 0)


def fit(recipe: Recipe, era: str) -> Recipe:
    """The nearest recipe that a program of the era could build."""
    count = len(recipe.structure)
    if era != "monkeypatch":
        recipe = replace(recipe, residual=None)
    if era in OLD_NAMED_ERAS:
        return Recipe()
    if era == "2022-10-19":
        return replace(recipe, activation=None, activate_output=False, dropout=None, dropout_before_norm=False)
    drops = any(recipe.dropout or ())
    if era in ("2022-10-21", "2022-10-22", "2022-10-23"):
        recipe = replace(recipe, activate_output=True)
    if era == "2022-10-21":
        return replace(recipe, dropout=None, dropout_before_norm=False)
    if era == "2022-10-22":
        return replace(recipe, dropout=(0, *[0.3] * (count - 1)) if drops else None, dropout_before_norm=drops)
    recipe = replace(recipe, dropout_before_norm=False)
    if era == "2022-10-23":
        return replace(recipe, dropout=derived_dropout(count, last=False) if drops and count > 2 else None)
    if era == "2022-10-26":
        last = bool(drops and recipe.rate(count - 2))
        return replace(recipe, dropout=derived_dropout(count, last=last) if drops and count > 2 else None)
    return recipe


def metadata(recipe: Recipe, era: str, *, name: str = "style", step: int = 1200) -> dict[str, object]:
    """The text keys that a program of the era wrote, in its order."""
    dropout = recipe.dropout or (0,) * len(recipe.structure)
    values: dict[str, object] = {
        "step": step,
        "name": name,
        "sd_checkpoint": "7460a6fa",
        "sd_checkpoint_name": "model-v1-4",
        "layer_structure": list(recipe.structure),
        "activation_func": recipe.activation,
        "is_layer_norm": recipe.norm,
        "weight_initialization": "Normal",
        "use_dropout": any(dropout),
        "activate_output": recipe.activate_output,
        "last_layer_dropout": len(dropout) > 2 and dropout[-2] != 0,
        "dropout_structure": list(dropout),
        "optional_info": None,
        "skip_connection": recipe.residual is not None,
        "upsample_linear": "Linear" if recipe.residual == "linear" else None,
    }
    return {key: values[key] for key in ERAS[era]}


def tree(
    sides: Sides, keys: Mapping[str, object], *, dtype: torch.dtype = torch.float32, pair: type = tuple
) -> dict[object, object]:
    """The object that a program saves: state dicts by width, then the text keys."""

    def state(side: nn.Module) -> Mapping[str, Tensor]:
        state_dict = side.state_dict()  # an OrderedDict with _metadata, as the programs saved it
        for name, tensor in state_dict.items():
            state_dict[name] = tensor.to(dtype)
        return state_dict

    return {**{width: pair((state(k), state(v))) for width, (k, v) in sides.items()}, **keys}


def write(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def simple_tree(width: int = 8, seed: int = 0, **keys: object) -> dict[object, object]:
    """A small file of today's kind with a relu, its keys changed by `keys`; a key given as `...` is left out."""
    recipe = Recipe(activation="relu")
    written = {**metadata(recipe, "2022-11"), **keys}
    return tree(make_sides(recipe, (width,), seed=seed), {k: v for k, v in written.items() if v is not ...})


# -- comparing


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    assert found.shape == expected.shape
    difference = (found.detach().float() - expected.detach().float()).abs().max()
    return float(difference / expected.detach().float().abs().max().clamp_min(1e-12))


def worst_error(hypernetwork: object, sides: Sides, strengths: tuple[float, ...] = (1.0, 0.35, -0.7)) -> float:
    """Of the hypernetwork's outputs against those of the sides, over widths, sides and strengths."""
    worst = 0.0
    for width, pair in sides.items():
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
        for strength in strengths:
            with torch.no_grad():
                found = hypernetwork(x, strength)  # type: ignore[operator]
                for output, side in zip(found, pair, strict=True):
                    worst = max(worst, relative_error(output, side(x, strength)))
    return worst
