"""Hypernetworks: for each context width two small residual networks, one for keys, one for values.

In every attention layer whose context has last dimension D, a hypernetwork with width D computes
`K = to_k(h_k(context))` and `V = to_v(h_v(context))`, with `h(c) = c + strength * residual(c)`. A scope can limit a
pair of networks to some of the layers of a width.
This module depends only on torch. docs/format.md has the mathematics and the source of each rule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.activations import canonical_activation, make_activation
from hnloader.affine import AffineMap
from hnloader.scopes import Kind, Scope, ScopeLike, as_scope, check_apart
from hnloader.texts import shown

__all__ = [
    "SIDES",
    "Architecture",
    "Hypernetwork",
    "LayerSpec",
    "ResidualBlock",
    "ResidualSide",
    "SequentialSide",
    "Side",
    "SideName",
    "linear_layers",
    "make_side",
]

SideName = Literal["k", "v"]
SIDES: tuple[SideName, SideName] = ("k", "v")
T = TypeVar("T")
LayerKind = Literal["linear", "activation", "norm", "dropout"]


@dataclass(frozen=True)
class Architecture:
    """The architecture of the sides of a hypernetwork, equal for all widths.

    Attributes:
        layer_structure: Sizes of the layers as multiples of the width; the first and last are 1. A layer of ratio r has
            `int(width * r)` values (truncated, not rounded). Default: (1, 2, 1).
        activation: A key of `hnloader.activations.ACTIVATIONS`; None or "linear" for no activation. Default: None.
        norm: Apply a LayerNorm after each layer. Default: False.
        dropout: Rate after each position of `layer_structure`, in training only. Default: 0 everywhere.
        activate_output: Apply the activation after the last layer too. Default: False.
        residual: None for the usual network. The MonkeyPatch residual variant has "interpolate" or "linear": how each
            block resizes its input to the size of its output. Default: None.
        dropout_before_norm: Use the order of files of 2022-10-22, Dropout before LayerNorm. Default: False.

    Raises:
        UnsupportedArchitectureError: The activation is unknown.

    Source:
        `modules/hypernetworks/hypernetwork.py` of AUTOMATIC1111's webui defines the keys; docs/format.md lists them.

    Example:
        >>> from hnloader import Architecture
        >>> str(Architecture((1, 1.5, 1), activation="relu", norm=True))
        '1-1.5-1, relu, layer norm'
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation: str | None = None
    norm: bool = False
    dropout: tuple[float, ...] = (0, 0, 0)
    activate_output: bool = False
    residual: Literal["interpolate", "linear"] | None = None
    dropout_before_norm: bool = False

    def __post_init__(self) -> None:
        """Normalize the activation's name."""
        object.__setattr__(self, "activation", canonical_activation(self.activation))

    def __str__(self) -> str:
        words = ["-".join(f"{ratio:g}" for ratio in self.layer_structure), self.activation or "linear"]
        if self.norm:
            words.append("layer norm")
        if any(self.dropout):
            words.append("dropout " + "-".join(f"{rate:g}" for rate in self.dropout))
        if self.activate_output and self.activation and self.residual is None:
            words.append("activated output")
        if self.residual is not None:
            words.append(f"residual blocks ({self.residual})")
        return ", ".join(words)

    def to_metadata(self) -> dict[str, object]:
        """Return the metadata of a `.pt` file with this architecture.

        Returns:
            Values by key; docs/format.md describes each.
        """
        # A file has a rate for each position of layer_structure; missing ones are 0.
        count = len(self.layer_structure)
        rates = [*self.dropout, *[0] * count][:count]
        keys: dict[str, object] = {
            "layer_structure": list(self.layer_structure),
            "activation_func": self.activation or "linear",
            "is_layer_norm": self.norm,
            "activate_output": self.activate_output,
            "use_dropout": any(rates),
            "dropout_structure": rates,
            "last_layer_dropout": count > 1 and rates[-2] > 0,
        }
        if self.residual is not None:
            keys |= {"skip_connection": True, "upsample_linear": "Linear" if self.residual == "linear" else None}
        return keys

    @property
    def affine(self) -> bool:
        """True if each side is one affine map of its input, without activation and norm."""
        return self.activation is None and not self.norm

    def sizes(self, width: int) -> tuple[int, ...]:
        """Return the sizes of the layers.

        Args:
            width: Context width.

        Returns:
            Number of values before, between and after the layers of a side.
        """
        return tuple(int(width * ratio) for ratio in self.layer_structure)

    def layers(self, width: int) -> tuple[LayerSpec, ...]:
        """Return the modules of a usual (non-residual) side.

        Args:
            width: Context width.

        Returns:
            Modules in order. Names of tensors contain their index.
        """
        sizes = self.sizes(width)
        specs: list[LayerSpec] = []
        for position in range(1, len(sizes)):
            is_last = position == len(sizes) - 1
            specs.append(LayerSpec("linear", sizes[position - 1], sizes[position]))
            if self.activation is not None and (self.activate_output or not is_last):
                specs.append(LayerSpec("activation", sizes[position], sizes[position]))
            specs += self._regularization(position, sizes[position])
        return tuple(specs)

    def blocks(self, width: int) -> tuple[tuple[LayerSpec, ...], ...]:
        """Return the modules in each block of a residual side.

        Args:
            width: Context width.

        Returns:
            For each block a Linear, norm, dropout, and always the activation.
        """
        sizes = self.sizes(width)
        blocks: list[tuple[LayerSpec, ...]] = []
        for position in range(1, len(sizes)):
            block = [LayerSpec("linear", sizes[position - 1], sizes[position])]
            block += self._regularization(position, sizes[position])
            if self.activation is not None:
                block.append(LayerSpec("activation", sizes[position], sizes[position]))
            blocks.append(tuple(block))
        return tuple(blocks)

    def _regularization(self, position: int, size: int) -> list[LayerSpec]:
        norm = [LayerSpec("norm", size, size)] if self.norm else []
        rate = self.dropout[position] if position < len(self.dropout) else 0
        dropout = [LayerSpec("dropout", size, size, rate)] if rate > 0 else []
        return dropout + norm if self.dropout_before_norm else norm + dropout


@dataclass(frozen=True)
class LayerSpec:
    """A module of a side: its kind, the numbers of input and output values, and the rate of a dropout."""

    kind: LayerKind
    inputs: int
    outputs: int
    rate: float = 0.0


class Side(nn.Module):
    """One side (k or v) for one width: `forward(x, strength) = x + strength * residual(x)`.

    Example:
        >>> import hnloader, torch
        >>> hn = hnloader.Hypernetwork.new((8,), hnloader.Architecture(activation="relu"))
        >>> side = hn.side(8, "k")
        >>> side(torch.zeros(1, 2, 8), strength=0.5).shape
        torch.Size([1, 2, 8])
    """

    def residual(self, x: Tensor) -> Tensor:
        """Return the change of `x` at strength 1.

        Args:
            x: Context. [..., width], the dtype and device of the parameters.

        Returns:
            Change. Shape and dtype of `x`.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Return the changed context.

        Args:
            x: Context. [..., width], the dtype and device of the parameters.
            strength: Factor of the change. Default: 1.

        Returns:
            Changed context. Shape and dtype of `x`.
        """
        return x + self.residual(x) * strength

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """Return `residual` in eval mode as one affine map; it is equal up to rounding.

        Args:
            dtype: Dtype of the map and its computation. Default: float64.
            device: Device of the map and its computation. Default: CPU.

        Returns:
            Map, or None for a side with an activation or a norm.
        """
        raise NotImplementedError


class SequentialSide(Side):
    """The usual side: Linear, activation, LayerNorm and Dropout modules in one Sequential.

    Tensors have the names in files: `linear.<index>.<weight|bias>`, where the index counts every module.
    """

    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(*(_module(spec, architecture) for spec in architecture.layers(width)))

    def residual(self, x: Tensor) -> Tensor:
        """Return the network's output; see `Side.residual`."""
        result: Tensor = self.linear(x)
        return result

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """Return the product of the Linear layers; see `Side.affine_map`."""
        return _affine_map_of(self.linear, dtype, device)


class ResidualBlock(nn.Module):
    """A block of the MonkeyPatch variant: `resize(x) + linear(x)`, from `inputs` to `outputs` values."""

    def __init__(self, architecture: Architecture, specs: tuple[LayerSpec, ...]) -> None:
        super().__init__()
        inputs, self.outputs = specs[0].inputs, specs[0].outputs
        self.upsample_layer = nn.Linear(inputs, self.outputs, bias=False) if architecture.residual == "linear" else None
        self.linear = nn.Sequential(*(_module(spec, architecture) for spec in specs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [..., outputs] for `x` [..., inputs]."""
        resized = self._interpolated(x) if self.upsample_layer is None else self.upsample_layer(x)
        result: Tensor = resized + self.linear(x)
        return result

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """Return the block as one affine map; see `Side.affine_map`."""
        inner = _affine_map_of(self.linear, dtype, device)
        if inner is None:
            return None
        if self.upsample_layer is not None:
            return AffineMap.of_linear(self.upsample_layer, dtype, device) + inner
        inputs = inner.matrix.shape[1]
        # Nearest-exact interpolation copies values: of 0, 1, 2, ... it makes the indices of the copied values.
        taken = self._interpolated(torch.arange(inputs, dtype=torch.float64, device=device)).long()
        return AffineMap.identity(inputs, dtype, device).rows(taken) + inner

    def _interpolated(self, x: Tensor) -> Tensor:
        rows = functional.interpolate(x.reshape(-1, 1, x.shape[-1]), size=self.outputs, mode="nearest-exact")
        return rows.reshape(*x.shape[:-1], self.outputs)


class ResidualSide(Side):
    """A side of the MonkeyPatch variant: residual blocks in order. Strength interpolates from `x` to their output."""

    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        blocks = (ResidualBlock(architecture, specs) for specs in architecture.blocks(width))
        self.linear = nn.Sequential(*blocks)

    def residual(self, x: Tensor) -> Tensor:
        """Return the blocks' output minus `x`; see `Side.residual`."""
        result: Tensor = self.linear(x) - x
        return result

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """Return the product of the blocks minus the identity; see `Side.affine_map`."""
        result: AffineMap | None = None
        for block in self.linear:
            assert isinstance(block, ResidualBlock)
            step = block.affine_map(dtype, device)
            if step is None:
                return None
            result = step if result is None else result.then(step)
        assert result is not None
        return result - AffineMap.identity(result.matrix.shape[1], dtype, device)


def make_side(architecture: Architecture, width: int) -> Side:
    """Build a side with torch's default initial values, on the device of a surrounding `torch.device(...)`."""
    return SequentialSide(architecture, width) if architecture.residual is None else ResidualSide(architecture, width)


class Hypernetwork(nn.Module):
    """A hypernetwork: a k side and a v side for each width, or for each scope.

    `load` returns it in eval mode, with parameters in the dtype of the file and without gradients. As in the original
    programs, results are computed in float32 for any stored dtype and cast to the context's dtype. A float64 context is
    computed in float64.

    Args:
        sides: The (k, v) sides by width or scope. A site takes one pair at most.
        name: Name of the hypernetwork. Default: "".
        architecture: Architecture of the sides; None for a composition of several hypernetworks. Default: None.
        metadata: All other keys of a file with their values. Default: {}.
        variant: Kind of the source file, such as "A1111 webui, from 2022-11". Default: "".
        old_names: Files use the tensor names linear1 and linear2 of the first files. Default: False.

    Raises:
        ValueError: Two scopes have a site in common, or the text of a scope is malformed.

    Attributes:
        name: Name in the file, otherwise the file's stem.
        metadata: All other keys of the file with their values.
        architecture: Architecture of the sides; None for a composition.
        variant: Kind of the source file; "" for a new hypernetwork.
        old_names: `save` uses the tensor names of the first files.

    Example:
        >>> import hnloader, torch
        >>> hn = hnloader.Hypernetwork.new((8,), hnloader.Architecture(activation="relu"), name="small")
        >>> context = torch.randn(2, 7, 8)
        >>> k, v = hn(context, strength=0.5)
        >>> k.shape
        torch.Size([2, 7, 8])
        >>> hn(torch.zeros(1, 7, 16))[0].shape  # an unknown width: the context itself
        torch.Size([1, 7, 16])
    """

    def __init__(
        self,
        sides: Mapping[int, tuple[Side, Side]] | Mapping[Scope, tuple[Side, Side]] | Mapping[str, tuple[Side, Side]],
        *,
        name: str = "",
        architecture: Architecture | None = None,
        metadata: Mapping[str, object] | None = None,
        variant: str = "",
        old_names: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.architecture = architecture
        self.metadata: dict[str, object] = dict(metadata or {})
        self.variant = variant
        self.old_names = old_names
        by_scope = {as_scope(key): pair for key, pair in sides.items()}
        check_apart(by_scope)
        self._scopes = tuple(by_scope)
        self.sides = nn.ModuleDict({str(scope): nn.ModuleDict({"k": k, "v": v}) for scope, (k, v) in by_scope.items()})
        self._copies: dict[tuple[Scope, SideName, torch.device, torch.dtype], Side] = {}
        self._derived: dict[object, Any] = {}
        self.eval()

    @classmethod
    def new(
        cls,
        widths: tuple[ScopeLike, ...],
        architecture: Architecture,
        *,
        name: str = "",
        metadata: Mapping[str, object] | None = None,
    ) -> Hypernetwork:
        """Return a new hypernetwork for training: float32, torch's default initial values, gradients on, in eval mode.

        Args:
            widths: Context widths, or scopes.
            architecture: Architecture of all sides.
            name: Name of the hypernetwork. Default: "".
            metadata: Further keys for a file, besides those that state the architecture. Default: {}.

        Returns:
            Hypernetwork on the CPU, or on the device of a surrounding `torch.device(...)`.
        """
        scopes = map(as_scope, widths)
        sides = {
            scope: (make_side(architecture, scope.width), make_side(architecture, scope.width)) for scope in scopes
        }
        stated = {"name": name, **architecture.to_metadata(), **(metadata or {})}
        return cls(sides, name=name, architecture=architecture, metadata=stated)

    @property
    def widths(self) -> tuple[int, ...]:
        """Context widths that it changes, in the order of the file."""
        return tuple(dict.fromkeys(scope.width for scope in self._scopes))

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scope of each pair of sides, in the order of the file. Usually each is a whole width."""
        return self._scopes

    def scope_at(self, width: int, kind: Kind, number: int) -> Scope | None:
        """Return the scope of the sides that act at a site.

        Args:
            width: Width of its contexts.
            kind: Its kind of attention, "self" or "cross".
            number: Its number among the attention sites of the model.

        Returns:
            One of `scopes`, or None for a site that stays unchanged.
        """
        return next((scope for scope in self._scopes if scope.holds(width, kind, number)), None)

    def side(self, scope: ScopeLike, side: SideName) -> Side:
        """Return a side as stored.

        Args:
            scope: One of `scopes`, or its text or width.
            side: "k" or "v".

        Returns:
            The side itself.

        Raises:
            KeyError: The scope or the side is unknown.
        """
        if str(scope) not in self.sides:
            raise KeyError(
                f"Scope {shown(str(scope))}: the hypernetwork holds {', '.join(map(str, self._scopes))}. "
                "Use one of these."
            )
        if side not in SIDES:
            raise KeyError(f"Side {shown(side)}: a width has the sides 'k' and 'v'. Use one of them.")
        pair: Any = self.sides[str(scope)]
        found: Side = pair[side]
        return found

    def forward(self, context: Tensor, strength: float = 1.0, scope: ScopeLike | None = None) -> tuple[Tensor, Tensor]:
        """Return the contexts for `to_k` and `to_v`.

        Args:
            context: Context. [..., width], any floating dtype, any device.
            strength: Any real number: 1 is the trained effect, 0 the identity. Default: 1.
            scope: One of `scopes`. Default: the whole width.

        Returns:
            (k, v), each with the shape, dtype and device of `context`; `context` itself for an unknown width.

        Raises:
            TypeError: The context has a dtype that is not floating-point.
            ValueError: Only some sites of this width have sides, and no scope is given.
        """
        return self.transform("k", context, strength, scope), self.transform("v", context, strength, scope)

    def transform(
        self, side: SideName, context: Tensor, strength: float = 1.0, scope: ScopeLike | None = None
    ) -> Tensor:
        """Return one of the two results of `forward`.

        Args:
            side: "k" for the context of `to_k`, "v" for that of `to_v`.
            context: Context. [..., width], any floating dtype, any device.
            strength: Any real number. Default: 1.
            scope: One of `scopes`. Default: the whole width.

        Returns:
            Changed context with the shape, dtype and device of `context`.

        Raises:
            TypeError: The context has a dtype that is not floating-point.
            ValueError: Only some sites of this width have sides, and no scope is given.
        """
        if not context.is_floating_point():
            raise TypeError(
                f"Context: found the dtype {context.dtype}. Give a floating-point dtype such as torch.float32."
            )
        chosen = self._scope_of(context.shape[-1]) if scope is None else as_scope(scope)
        if strength == 0 or chosen is None:
            return context
        dtype = torch.float64 if context.dtype == torch.float64 else torch.float32
        run = self._in(dtype, context.device, chosen, side)
        return run(context.to(dtype), strength).to(context.dtype)

    def _scope_of(self, width: int) -> Scope | None:
        """Return the scope of a whole width, or None for an unknown width."""
        whole = Scope(width)
        if str(whole) in self.sides:
            return whole
        if width in self.widths:
            found = ", ".join(str(scope) for scope in self._scopes if scope.width == width)
            raise ValueError(f"Width {width}: the hypernetwork holds sides for {found}. Give one of these scopes.")
        return None

    def resident(self, scope: ScopeLike, side: SideName, dtype: torch.dtype, device: torch.device | str) -> Side:
        """Return a side in another dtype or on another device.

        Args:
            scope: One of `scopes`, or its text or width.
            side: "k" or "v".
            dtype: Dtype of the parameters.
            device: Device of the parameters.

        Returns:
            The stored side if it has both, otherwise a copy that is kept until `release`.

        Raises:
            KeyError: The scope is unknown.
        """
        stored, place = self.side(scope, side), torch.device(device)
        if all(p.dtype == dtype and p.device == place for p in stored.parameters()):
            return stored
        key = (as_scope(scope), side, place, dtype)
        if key not in self._copies:
            # Outside of inference mode, because a copy from inside cannot take part in gradients later.
            with torch.inference_mode(False), torch.no_grad():
                self._copies[key] = copy.deepcopy(stored).to(device=place, dtype=dtype).requires_grad_(False)
        return self._copies[key]

    def prepare(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        """Make the copies for contexts on a device now instead of at first use.

        Args:
            device: Device of the contexts.
            dtype: Dtype of the computation. Default: float32.
        """
        for scope in self._scopes:
            for side in SIDES:
                self._in(dtype, torch.device(device), scope, side)

    @property
    def kept_copies(self) -> int:
        """Number of sides with copies in another dtype or on another device; 0 after `release`."""
        return len(self._copies)

    def copied_bytes(self, scope: ScopeLike, side: SideName) -> int:
        """Return the memory of the kept copies of a side.

        Args:
            scope: One of `scopes`, or its text or width.
            side: "k" or "v".

        Returns:
            Size in bytes.
        """
        copies = [copied for key, copied in self._copies.items() if key[:2] == (as_scope(scope), side)]
        return sum(p.numel() * p.element_size() for copied in copies for p in copied.parameters())

    def release(self) -> None:
        """Drop the kept copies in other dtypes and on other devices."""
        self._copies.clear()
        self._derived.clear()

    def derived(self, key: object, make: Callable[[], T]) -> T:
        """Return a value that is computed once.

        Args:
            key: Key of the value.
            make: Computes the value.

        Returns:
            Value, kept until `release` or a conversion of the parameters.
        """
        if key not in self._derived:
            self._derived[key] = make()
        found: T = self._derived[key]
        return found

    def _in(
        self, dtype: torch.dtype, device: torch.device, scope: Scope, side: SideName
    ) -> Callable[[Tensor, float], Tensor]:
        """Return a side that computes in `dtype` on `device`: itself, a kept copy, or a cast that passes gradients."""
        stored = self.side(scope, side)
        parameters = list(stored.parameters())
        if any(p.requires_grad and (p.dtype != dtype or p.device != device) for p in parameters):
            return _casting(stored, device, dtype)
        return self.resident(scope, side, dtype, device)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Drop the kept copies when `.to`, `.half` and the like change the parameters."""
        self.release()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_copies": {}, "_derived": {}}

    def extra_repr(self) -> str:
        """Return the summary in `repr`.

        Returns:
            Name, scopes and architecture.
        """
        scopes = ", ".join(map(str, self._scopes))
        return f"name={shown(self.name)}, scopes={shown(scopes, 300)}, architecture={self.architecture}"


def linear_layers(side: Side) -> list[nn.Linear]:
    """Return the Linear layers of a side, in order, those that resize the input of residual blocks included."""
    return [module for module in side.modules() if isinstance(module, nn.Linear)]


def _module(spec: LayerSpec, architecture: Architecture) -> nn.Module:
    if spec.kind == "linear":
        return nn.Linear(spec.inputs, spec.outputs)
    if spec.kind == "norm":
        return nn.LayerNorm(spec.outputs)
    if spec.kind == "dropout":
        return nn.Dropout(spec.rate)
    assert architecture.activation is not None
    return make_activation(architecture.activation)


def _affine_map_of(modules: nn.Sequential, dtype: torch.dtype, device: torch.device | str) -> AffineMap | None:
    """Return the Linear layers of a Sequential as one map; None for other modules than Linear and Dropout."""
    result: AffineMap | None = None
    for module in modules:
        if isinstance(module, nn.Linear):
            step = AffineMap.of_linear(module, dtype, device)
            result = step if result is None else result.then(step)
        elif not isinstance(module, nn.Dropout):
            return None
    return result


def _casting(side: Side, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, float], Tensor]:
    """Return `side` with its parameters cast at each call, so that gradients reach the stored ones."""

    def run(x: Tensor, strength: float) -> Tensor:
        cast = {name: p.to(device=device, dtype=dtype) for name, p in side.named_parameters()}
        result: Tensor = torch.func.functional_call(side, cast, (x, strength))
        return result

    return run
